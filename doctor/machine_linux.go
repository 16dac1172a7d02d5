package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/owner"
	"github.com/fivetuple/fivetuple/sockdiag"
	"github.com/fivetuple/fivetuple/table"
)

// machine is what the checks look at.
type machine struct {
	root string // of proc and sys

	tcp     []table.Row // every TCP socket
	tcpErr  error
	unix    []table.Row // listening Unix sockets
	unixErr error
}

func newMachine(ctx context.Context, root string) *machine {
	if root == "" {
		root = "/"
	}
	m := &machine{root: root}
	m.tcp, m.tcpErr = rows(ctx, table.Query{Protocols: []fivetuple.Network{fivetuple.TCP}})
	m.unix, m.unixErr = rows(ctx, table.Query{
		Protocols: []fivetuple.Network{fivetuple.Unix, fivetuple.Seqpacket},
		States:    sockdiag.StatesOf(fivetuple.StateListen),
	})
	// Only those that a check names a process for.
	var named []*table.Row
	var inodes []uint32
	for _, rows := range [][]table.Row{m.tcp, m.unix} {
		for i := range rows {
			if r := &rows[i]; r.State == fivetuple.StateCloseWait || queueLevel(r) != OK {
				named, inodes = append(named, r), append(inodes, r.Inode)
			}
		}
	}
	found, _ := owner.Find(ctx, inodes...) // without owners the findings name users, or nobody
	for _, r := range named {
		r.Owners = found.Of(r.Inode)
	}
	return m
}

func rows(ctx context.Context, q table.Query) ([]table.Row, error) {
	t, err := table.Read(ctx, q)
	if err != nil {
		return nil, err
	}
	return t.Rows, nil
}

// read returns the text of a file below the root. The path in the error is
// the one that the file has on the machine.
func (m *machine) read(path string) (string, error) {
	b, err := os.ReadFile(filepath.Join(m.root, path))
	return strings.TrimSpace(string(b)), renamed(err, "/"+path)
}

func renamed(err error, path string) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return &fs.PathError{Op: p.Op, Path: path, Err: p.Err}
	}
	return err
}

// sysctl returns a kernel parameter, such as net.ipv4.tcp_mem, of at least
// count numbers.
func (m *machine) sysctl(name string, count int) ([]int64, error) {
	text, err := m.sysctlText(name)
	if err != nil {
		return nil, err
	}
	var numbers []int64
	for field := range strings.FieldsSeq(text) {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s holds %q, want %d numbers", name, text, count)
		}
		numbers = append(numbers, n)
	}
	if len(numbers) < count {
		return nil, fmt.Errorf("%s holds %q, want %d numbers", name, text, count)
	}
	return numbers, nil
}

func (m *machine) sysctlText(name string) (string, error) {
	text, err := m.read("proc/sys/" + strings.ReplaceAll(name, ".", "/"))
	return text, renamed(err, name)
}

// number is sysctl for a single one.
func (m *machine) number(name string) (int64, error) {
	n, err := m.sysctl(name, 1)
	if err != nil {
		return 0, err
	}
	return n[0], nil
}

// sockstat returns a number of /proc/net/sockstat (proc(5)): that of the key
// in the line of the protocol. thread-self, since /proc/net is the network
// namespace of the process's first thread.
func (m *machine) sockstat(protocol, key string) (int64, error) {
	const path = "proc/thread-self/net/sockstat"
	text, err := m.read(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != protocol+":" {
			continue
		}
		for i := 1; i+1 < len(fields); i += 2 {
			if fields[i] == key {
				return strconv.ParseInt(fields[i+1], 10, 64)
			}
		}
	}
	return 0, fmt.Errorf("/%s has no %s of %s", path, key, protocol)
}

// netstat returns a counter of the network namespace from /proc/net/netstat: a
// line of names, then a line of values, both with the same first word.
func (m *machine) netstat(name string) (int64, error) {
	const path = "proc/thread-self/net/netstat"
	text, err := m.read(path)
	if err != nil {
		return 0, err
	}
	lines := strings.Split(text, "\n")
	for i := 0; i+1 < len(lines); i += 2 {
		names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
		for j := 1; j < min(len(names), len(values)); j++ {
			if names[j] == name {
				return strconv.ParseInt(values[j], 10, 64)
			}
		}
	}
	return 0, fmt.Errorf("/%s has no %s", path, name)
}

// statusField returns a field of this thread's /proc/PID/status.
func (m *machine) statusField(name string) (string, error) {
	const path = "proc/thread-self/status"
	text, err := m.read(path)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value), nil
		}
	}
	return "", fmt.Errorf("/%s has no %s", path, name)
}

// mount is a line of /proc/self/mountinfo (proc(5)).
type mount struct{ point, kind, options string }

func (m *machine) mounts() ([]mount, error) {
	text, err := m.read("proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	var mounts []mount
	for line := range strings.Lines(text) {
		before, after, _ := strings.Cut(line, " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if len(left) >= 6 && len(right) >= 3 {
			mounts = append(mounts, mount{left[4], right[0], left[5] + "," + right[2]})
		}
	}
	return mounts, nil
}

// size writes bytes for people: "208 KiB".
func size(bytes int64) string {
	switch {
	case bytes >= 10<<30 || bytes >= 1<<30 && bytes%(1<<30) == 0:
		return fmt.Sprintf("%d GiB", bytes>>30)
	case bytes >= 10<<20 || bytes >= 1<<20 && bytes%(1<<20) == 0:
		return fmt.Sprintf("%d MiB", bytes>>20)
	case bytes >= 1<<10:
		return fmt.Sprintf("%d KiB", bytes>>10)
	}
	return fmt.Sprintf("%d bytes", bytes)
}
