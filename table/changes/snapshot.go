package changes

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/table"
)

// Snapshot is a reading of the table, and where and when it was made. In a file
// it is one JSON object a line: the fields below, the rows, and how many they were.
type Snapshot struct {
	Format     string      `json:"fivetuple"` // "snapshot"
	Schema     int         `json:"schema"`
	Time       time.Time   `json:"time"`
	Host       string      `json:"host"`
	Boot       string      `json:"boot_id"` // of the machine's last start; "" if not known
	Netns      uint64      `json:"netns"`   // the network namespace
	Kernel     string      `json:"kernel"`
	Filter     string      `json:"filter,omitempty"`
	Unreadable int         `json:"unreadable"`        // processes that could not be looked into: their sockets have no owners
	Partial    string      `json:"partial,omitempty"` // why processes were not even seen
	Rows       []table.Row `json:"-"`
}

const (
	format = "snapshot"
	schema = 1
)

// end is the last line of a file.
type end struct {
	Rows *int `json:"rows"`
}

// Errors of [Read]. Those of a damaged file say at which line.
var (
	ErrForeign   = errors.New("no snapshot of the socket table")
	ErrNewer     = errors.New("made by a newer ft")
	ErrTruncated = errors.New("its end is missing")
	ErrCorrupt   = errors.New("damaged")
)

// New makes a snapshot of a table that this process has just read, without the
// netlink(7) sockets by which it did so.
func New(t *table.Table, filter string) *Snapshot {
	s := &Snapshot{
		Format: format, Schema: schema, Time: time.Now(), Filter: filter,
		Unreadable: t.Unreadable, Partial: t.Partial,
	}
	own := fmt.Sprintf("sock_diag:%d", os.Getpid())
	s.Rows = slices.DeleteFunc(slices.Clone(t.Rows), func(r table.Row) bool {
		return r.Protocol == fivetuple.Netlink && r.Name == own
	})
	s.Host, _ = os.Hostname()
	s.machine()
	return s
}

// Comparable says whether sockets of the two snapshots have names in common, so
// that [Diff] can be used; if not, in a sentence, why.
func (s *Snapshot) Comparable(other *Snapshot) (why string, ok bool) {
	switch {
	case s.Boot == "" || other.Boot == "":
		return "it is not known whether the machine started again in between", false
	case s.Host != other.Host && s.Boot != other.Boot:
		return fmt.Sprintf("they are of different machines, %q and %q", s.Host, other.Host), false
	case s.Boot != other.Boot:
		return "the machine started again in between", false
	case s.Netns != other.Netns:
		return fmt.Sprintf("they are of different network namespaces, %d and %d", s.Netns, other.Netns), false
	}
	return "", true
}

// Diff says what changed from s to the other, by [Diff] if they are [Snapshot.Comparable],
// otherwise by [DiffEnds].
func (s *Snapshot) Diff(other *Snapshot) []Change {
	if _, ok := s.Comparable(other); ok {
		return Diff(s.Rows, other.Rows)
	}
	return DiffEnds(s.Rows, other.Rows)
}

// Write writes the snapshot.
func (s *Snapshot) Write(w io.Writer) error {
	b := bufio.NewWriterSize(w, 64<<10)
	head, err := json.Marshal(s)
	if err != nil {
		return err
	}
	b.Write(append(head, '\n'))
	var line []byte
	for i := range s.Rows {
		line = append(s.Rows[i].AppendJSON(line[:0]), '\n')
		if _, err := b.Write(line); err != nil {
			return err
		}
	}
	fmt.Fprintf(b, "{\"rows\":%d}\n", len(s.Rows))
	return b.Flush()
}

// Save writes the snapshot to a file, or leaves the one that was there as it is.
// Only its owner may read it: it names the processes and peers of all users that
// whoever made it could see. What is no regular file is not replaced.
func (s *Snapshot) Save(path string) error {
	if err := s.save(path); err != nil {
		return fmt.Errorf("save snapshot %s: %w", path, err)
	}
	return nil
}

func (s *Snapshot) save(path string) error {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return errors.New("it is no regular file: name another, or - for standard output")
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return plain(err)
	}
	err = s.Write(f)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return plain(err)
	}
	return syncDirectory(filepath.Dir(path))
}

// plain takes the name of the temporary file off an error.
func plain(err error) error {
	var path *os.PathError
	var link *os.LinkError
	switch {
	case errors.As(err, &path):
		return path.Err
	case errors.As(err, &link):
		return link.Err
	}
	return err
}

// Load reads the snapshot in a file.
func Load(path string) (*Snapshot, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read snapshot %s: %w", path, plain(err))
	}
	defer f.Close()
	s, err := Read(f)
	if err != nil {
		return nil, fmt.Errorf("read snapshot %s: %w", path, plain(err))
	}
	return s, nil
}

// maxLine bounds a line: a socket with 100,000 holders fits.
const maxLine = 16 << 20

// Read reads a snapshot. The error wraps [ErrForeign], [ErrNewer],
// [ErrTruncated] or [ErrCorrupt], or is that of r.
func Read(r io.Reader) (*Snapshot, error) {
	lines := lineReader{r: bufio.NewReaderSize(r, 64<<10)}
	s := new(Snapshot)
	head, err := lines.next()
	switch {
	case err == io.EOF:
		return nil, fmt.Errorf("%w: the file is empty", ErrForeign)
	case errors.Is(err, ErrTruncated), errors.Is(err, ErrCorrupt): // of any file without lines
		if !bytes.HasPrefix(head, []byte(`{"fivetuple":"snapshot"`)) {
			return nil, ErrForeign
		}
		return nil, err
	case err != nil:
		return nil, err
	}
	var kind struct {
		Format string `json:"fivetuple"`
		Schema int    `json:"schema"`
	}
	if json.Unmarshal(head, &kind) != nil || kind.Format != format {
		return nil, ErrForeign
	}
	if kind.Schema > schema {
		return nil, fmt.Errorf("%w (its schema is %d, this ft knows %d): read it with that one", ErrNewer, kind.Schema, schema)
	}
	if err := json.Unmarshal(head, s); err != nil {
		return nil, lines.corrupt(err)
	}
	for {
		line, err := lines.next()
		if err == io.EOF {
			return nil, fmt.Errorf("%w: it ends after %d lines, without their count", ErrTruncated, lines.n)
		}
		if err != nil {
			return nil, err
		}
		if bytes.HasPrefix(line, []byte(`{"rows":`)) {
			if err := lines.end(line, len(s.Rows)); err != nil {
				return nil, err
			}
			return s, nil
		}
		var row table.Row
		if err := row.UnmarshalJSON(line); err != nil { // json.Unmarshal would go through the line twice more
			return nil, lines.corrupt(err)
		}
		if row.Protocol == 0 {
			return nil, lines.corrupt(errors.New("no socket"))
		}
		s.Rows = append(s.Rows, row)
	}
}

// lineReader reads lines of bounded length and counts them.
type lineReader struct {
	r *bufio.Reader
	n int
}

// next returns a line without its end, or io.EOF. With an error the line is as
// much as was read.
func (l *lineReader) next() (line []byte, err error) {
	l.n++
	for {
		part, err := l.r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > maxLine:
			return line, l.corrupt(fmt.Errorf("longer than %d MiB", maxLine>>20))
		case err == io.EOF && len(line) == 0:
			l.n--
			return nil, io.EOF
		case err == io.EOF:
			return line, fmt.Errorf("%w: line %d breaks off", ErrTruncated, l.n)
		case err == nil:
			return line[:len(line)-1], nil
		case err != bufio.ErrBufferFull:
			return line, err
		}
	}
}

func (l *lineReader) corrupt(err error) error {
	return fmt.Errorf("%w: line %d: %w", ErrCorrupt, l.n, err)
}

// end checks the last line.
func (l *lineReader) end(line []byte, rows int) error {
	var e end
	if err := json.Unmarshal(line, &e); err != nil || e.Rows == nil {
		return l.corrupt(errors.New("no count of rows"))
	}
	if *e.Rows != rows {
		return l.corrupt(fmt.Errorf("%d rows are there, it counts %d", rows, *e.Rows))
	}
	if _, err := l.r.ReadByte(); err != io.EOF {
		return l.corrupt(errors.New("there is more behind the end"))
	}
	return nil
}
