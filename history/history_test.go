package history

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/google/go-cmp/cmp"
)

func open(t testing.TB, opts Options) *DB {
	t.Helper()
	return openAt(t, filepath.Join(t.TempDir(), "history.db"), opts)
}

func openAt(t testing.TB, path string, opts Options) *DB {
	t.Helper()
	if opts.Log == nil {
		opts.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	d, err := Open(t.Context(), path, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// record writes the events in a run of their own and waits until they are there.
func record(t testing.TB, d *DB, events ...stats.Event) {
	t.Helper()
	w, err := d.Writer()
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		w.Record(e)
	}
	if err := w.Close(); err != nil || w.Lost() != 0 {
		t.Fatalf("closed with %v, %d lost", err, w.Lost())
	}
}

func query(t testing.TB, d *DB, q Query) (entries []Entry) {
	t.Helper()
	for e, err := range d.Query(t.Context(), q) {
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, e)
	}
	return entries
}

func tcp(local, remote string) fivetuple.Tuple {
	return fivetuple.Tuple{Protocol: fivetuple.TCP, Local: fivetuple.ParseAddress(local), Remote: fivetuple.ParseAddress(remote)}
}

func unixTuple(local, remote string) fivetuple.Tuple {
	return fivetuple.Tuple{Protocol: fivetuple.Unix, Local: fivetuple.Address{Name: local}, Remote: fivetuple.Address{Name: remote}}
}

func TestEventsComeBackAsRecorded(t *testing.T) {
	at := func(ns int64) time.Time { return time.Unix(1_700_000_000, ns) }
	nasty := "a'; DROP TABLE events; --\n\r\x00\x1b[31m\t\"%s\u202e \xff\xfe"
	events := []stats.Event{
		{Time: at(1), Kind: stats.Listen, Service: "web", Tuple: tcp("0.0.0.0:80", "")},
		{Time: at(2), Kind: stats.Accept, Service: "web", Conn: 1, Tuple: tcp("127.0.0.1:80", "127.0.0.1:40000")},
		{Time: at(3), Kind: stats.Connect, Service: "", Conn: math.MaxUint64, Tuple: tcp("[fe80::1%eth0]:1", "[2001:db8::1]:65535")},
		{Time: at(4), Kind: stats.Data, Service: "web", Conn: 1, BytesIn: 1, BytesOut: math.MaxInt64, PacketsIn: 3, PacketsOut: 4},
		{Time: at(5), Kind: stats.Disconnect, Service: "web", Conn: 1, BytesIn: 5, Duration: time.Hour, Cause: "reset", Err: "read: connection reset",
			TCP: &stats.TCP{RTT: time.Millisecond, RTTVar: time.Microsecond, Retransmits: 1, Cwnd: 10, MSS: math.MaxUint32}},
		{Time: at(6), Kind: stats.Disconnect, Service: "web", TCP: &stats.TCP{}},
		{Time: at(7), Kind: stats.Accept, Service: "sock", Tuple: unixTuple("/run/a b\n.sock", "@abstract\x00name")},
		{Time: at(8), Kind: stats.Error, Service: nasty, Cause: nasty, Err: nasty, Tuple: unixTuple(nasty, nasty)},
		{Time: at(9), Kind: stats.Error, Service: strings.Repeat("long", 50_000), Err: strings.Repeat("x", 1<<20)},
		{Time: at(0), Kind: stats.Close, Service: "web", Tuple: fivetuple.Tuple{Protocol: fivetuple.Vsock, Local: fivetuple.Address{Name: "2:1024"}}},
	}
	d := open(t, Options{MaxAge: -1})
	record(t, d, events...)
	entries := query(t, d, Query{})
	for i, e := range entries {
		if e.ID != int64(i+1) || e.Run != 1 {
			t.Errorf("entry %d has id %d and run %d", i, e.ID, e.Run)
		}
	}
	var got []stats.Event
	for _, e := range entries {
		got = append(got, e.Event)
	}
	same := cmp.Comparer(func(a, b fivetuple.Tuple) bool { return a == b })
	if diff := cmp.Diff(events, got, same); diff != "" {
		t.Errorf("read back (-want +got):\n%s", diff)
	}
}

func TestMappedAddressesAreKeptAsIPv4(t *testing.T) {
	d := open(t, Options{})
	tuple := tcp("127.0.0.1:80", "127.0.0.1:81")
	tuple.Remote.AddrPort = netip.MustParseAddrPort("[::ffff:10.1.2.3]:81")
	record(t, d, stats.Event{Kind: stats.Accept, Tuple: tuple})
	got := query(t, d, Query{Host: netip.MustParsePrefix("10.0.0.0/8")})
	if len(got) != 1 || got[0].Tuple.Remote.String() != "10.1.2.3:81" {
		t.Errorf("got %v, want the event with remote 10.1.2.3:81", got)
	}
}

func TestEventWithoutATimeGetsThePresent(t *testing.T) {
	d := open(t, Options{})
	record(t, d, stats.Event{Kind: stats.Listen})
	if e := query(t, d, Query{})[0]; time.Since(e.Time).Abs() > time.Minute {
		t.Errorf("got time %v", e.Time)
	}
}

func TestEntryJSON(t *testing.T) {
	e := Entry{ID: 7, Run: 2, Event: stats.Event{Kind: stats.Accept, Service: "a\nb"}}
	b, err := json.Marshal(e)
	want := `{"id":7,"run":2,"time":"0001-01-01T00:00:00Z","kind":"accept","service":"a\nb",`
	if err != nil || !strings.HasPrefix(string(b), want) || !json.Valid(b) {
		t.Errorf("got %s, %v; want it to begin with %s", b, err, want)
	}
}

// The numbers of kinds and protocols are in people's files: they can be added to, never changed.
func TestNumbersInTheFileStayTheSame(t *testing.T) {
	kinds := map[stats.Kind]int{stats.Listen: 1, stats.Connect: 2, stats.Accept: 3, stats.Data: 4, stats.Disconnect: 5, stats.Error: 6, stats.Close: 7, stats.Forward: 8}
	for kind, want := range kinds {
		if int(kind) != want {
			t.Errorf("%v is %d, but %d in files of version 1", kind, kind, want)
		}
	}
	protocols := map[fivetuple.Network]int{fivetuple.NetworkNone: 0, fivetuple.TCP: 1, fivetuple.UDP: 4, fivetuple.Unix: 8, fivetuple.Unixgram: 9, fivetuple.Seqpacket: 10, fivetuple.Vsock: 11}
	for protocol, want := range protocols {
		if int(protocol) != want {
			t.Errorf("%v is %d, but %d in files of version 1", protocol, protocol, want)
		}
	}
	if len(kinds) != len(stats.Kinds()) {
		t.Errorf("there are %d kinds, and %d in this test: add the new ones", len(stats.Kinds()), len(kinds))
	}
}

func TestQueryConditions(t *testing.T) {
	at := func(s int64) time.Time { return time.Unix(1_700_000_000+s, 0) }
	year := func(y int) time.Time { return time.Date(y, 12, 31, 0, 0, 0, 0, time.UTC) }
	prefix := netip.MustParsePrefix
	d := open(t, Options{MaxAge: -1})
	record(t, d,
		stats.Event{Time: at(1), Kind: stats.Listen, Service: "web", Tuple: tcp("0.0.0.0:80", "")},
		stats.Event{Time: at(2), Kind: stats.Accept, Service: "web", Tuple: tcp("10.0.0.1:80", "10.0.0.2:4000")},
		stats.Event{Time: at(3), Kind: stats.Accept, Service: "api", Tuple: tcp("[::1]:81", "[2001:db8::5]:80")},
		stats.Event{Time: at(4), Kind: stats.Error, Service: "a,b'\n", Tuple: unixTuple("/run/x", "")},
		stats.Event{Time: at(5), Kind: stats.Disconnect, Service: "web", Tuple: tcp("10.0.0.1:80", "192.168.7.1:4001")},
		stats.Event{Time: at(6), Kind: stats.Close, Service: "", Tuple: tcp("0.0.0.0:80", "")},
	)
	for name, tc := range map[string]struct {
		q    Query
		want []int64
	}{
		"all":                     {Query{}, []int64{1, 2, 3, 4, 5, 6}},
		"since is included":       {Query{Since: at(5)}, []int64{5, 6}},
		"until is not":            {Query{Until: at(2)}, []int64{1}},
		"since and until":         {Query{Since: at(2), Until: at(4)}, []int64{2, 3}},
		"empty time":              {Query{Since: at(4), Until: at(4)}, nil},
		"backward time":           {Query{Since: at(5), Until: at(2)}, nil},
		"future":                  {Query{Since: at(7)}, nil},
		"since before all":        {Query{Since: year(2)}, []int64{1, 2, 3, 4, 5, 6}},
		"since after all":         {Query{Since: year(3000)}, nil},
		"until before all":        {Query{Until: year(1600)}, nil},
		"until after all":         {Query{Until: year(9999)}, []int64{1, 2, 3, 4, 5, 6}},
		"service":                 {Query{Services: []string{"web"}}, []int64{1, 2, 5}},
		"two services":            {Query{Services: []string{"web", "api"}}, []int64{1, 2, 3, 5}},
		"service of any name":     {Query{Services: []string{"a,b'\n"}}, []int64{4}},
		"no service":              {Query{Services: []string{""}}, []int64{6}},
		"unknown service":         {Query{Services: []string{"nobody"}}, nil},
		"kind":                    {Query{Kinds: []stats.Kind{stats.Accept}}, []int64{2, 3}},
		"two kinds":               {Query{Kinds: []stats.Kind{stats.Close, stats.Listen}}, []int64{1, 6}},
		"either port":             {Query{Port: 80}, []int64{1, 2, 3, 5, 6}},
		"local port":              {Query{LocalPort: 80}, []int64{1, 2, 5, 6}},
		"remote port":             {Query{RemotePort: 80}, []int64{3}},
		"host":                    {Query{Host: prefix("10.0.0.2/32")}, []int64{2}},
		"net at either end":       {Query{Host: prefix("10.0.0.0/8")}, []int64{2, 5}},
		"unaligned net":           {Query{Host: prefix("192.168.6.9/23")}, []int64{5}},
		"all of IPv4":             {Query{Host: prefix("0.0.0.0/0")}, []int64{1, 2, 5, 6}},
		"mapped IPv4":             {Query{Host: prefix("::ffff:10.0.0.2/128")}, []int64{2}},
		"IPv6 host":               {Query{Host: prefix("2001:db8::5/128")}, []int64{3}},
		"IPv6 net":                {Query{Host: prefix("2001:db8::/32")}, []int64{3}},
		"all of IPv6":             {Query{Host: prefix("::/0")}, []int64{3}},
		"IPv6 with an IPv4 start": {Query{Host: prefix("a00:1::/32")}, nil}, // the bytes of 10.0.0.1
		"several conditions":      {Query{Services: []string{"web"}, Kinds: []stats.Kind{stats.Accept, stats.Error}, Port: 80, Since: at(2)}, []int64{2}},
		"after":                   {Query{After: 4}, []int64{5, 6}},
		"after the end":           {Query{After: 6}, nil},
		"newest two":              {Query{Limit: 2}, []int64{5, 6}},
		"newest two of web":       {Query{Limit: 2, Services: []string{"web"}}, []int64{2, 5}},
		"newest since":            {Query{Limit: 2, Since: at(2), Until: at(5)}, []int64{3, 4}},
		"limit beyond all":        {Query{Limit: 100}, []int64{1, 2, 3, 4, 5, 6}},
		"limit of nothing":        {Query{Limit: 3, Port: 9}, nil},
		"after and newest":        {Query{After: 1, Limit: 1}, []int64{6}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []int64
			for _, e := range query(t, d, tc.q) {
				got = append(got, e.ID)
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("got entries %v, want %v", got, tc.want)
			}
		})
	}
}

func TestQueryReadsMoreThanAPage(t *testing.T) {
	d := open(t, Options{})
	const n = 3*pageRows + 7
	events := make([]stats.Event, n)
	for i := range events {
		events[i] = sample(i)
	}
	record(t, d, events...)
	for _, limit := range []int{0, n, pageRows, pageRows + 1, 2 * pageRows} {
		got, want := query(t, d, Query{Limit: limit}), limit
		if limit == 0 {
			want = n
		}
		if len(got) != want || got[0].ID != int64(n-want+1) || got[len(got)-1].ID != n {
			t.Errorf("limit %d: got %d entries, ids %d to %d", limit, len(got), got[0].ID, got[len(got)-1].ID)
		}
		if !slices.IsSortedFunc(got, func(a, b Entry) int { return int(a.ID - b.ID) }) {
			t.Errorf("limit %d: out of order", limit)
		}
	}
}

// A reader who takes its time must not hold up the writer, nor see what came after it began.
func TestQueryCanBeInterruptedAndWrittenUnder(t *testing.T) {
	d := open(t, Options{})
	w, err := d.Writer()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		w.Record(sample(i))
	}
	if err := w.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, err := range d.Query(t.Context(), Query{}) {
		if err != nil {
			t.Fatal(err)
		}
		w.Record(sample(seen))
		if err := w.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		for range d.Query(t.Context(), Query{}) {
			break
		}
		seen++
	}
	if total := len(query(t, d, Query{})); seen != 10 || total != 20 {
		t.Errorf("saw %d entries of 10; %d were written of 20", seen, total)
	}
}

func TestQueryOfACancelledContextFails(t *testing.T) {
	d := open(t, Options{})
	record(t, d, sample(0))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range d.Query(ctx, Query{}) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want context.Canceled", err)
		}
	}
}

func TestClockSetBackLosesAndMisordersNothing(t *testing.T) {
	now := time.Now().Round(0)
	d := open(t, Options{})
	var events []stats.Event
	for _, minutes := range []int{0, 1, 2, -60, -59, 1, 3} {
		events = append(events, stats.Event{Time: now.Add(time.Duration(minutes) * time.Minute), Kind: stats.Accept})
	}
	record(t, d, events...)
	ids := func(q Query) (ids []int64) {
		for _, e := range query(t, d, q) {
			ids = append(ids, e.ID)
		}
		return ids
	}
	for _, tc := range []struct {
		q    Query
		want []int64
	}{
		{Query{}, []int64{1, 2, 3, 4, 5, 6, 7}},
		{Query{Limit: 3}, []int64{5, 6, 7}},
		{Query{Since: now}, []int64{1, 2, 3, 6, 7}},
		{Query{Since: now.Add(time.Minute)}, []int64{2, 3, 6, 7}},
		{Query{Until: now}, []int64{4, 5}},
		{Query{Since: now, Limit: 3}, []int64{3, 6, 7}},
	} {
		if got := ids(tc.q); !slices.Equal(got, tc.want) {
			t.Errorf("%+v: got %v, want %v", tc.q, got, tc.want)
		}
	}
}

func TestOpenMakesPrivateFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state", "ft")
	path := filepath.Join(dir, "what? 100%#1 'x'.db") // characters that URIs and SQL know
	d := openAt(t, path, Options{})
	w, err := d.Writer()
	if err != nil {
		t.Fatal(err)
	}
	w.Record(sample(0))
	if err := w.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		info, _ := e.Info()
		if info.Mode() != 0o600 {
			t.Errorf("%s has mode %s, want 0600", e.Name(), info.Mode())
		}
		names = append(names, e.Name())
	}
	base := filepath.Base(path)
	if want := []string{base, base + "-runs", base + "-shm", base + "-wal"}; !slices.Equal(names, want) {
		t.Errorf("got files %q, want %q", names, want)
	}
	for _, made := range []string{dir, filepath.Dir(dir)} {
		if info, _ := os.Stat(made); info.Mode().Perm() != 0o700 {
			t.Errorf("%s has mode %s, want 0700", made, info.Mode())
		}
	}
}

func TestOpenRefusesWhatIsNotAHistory(t *testing.T) {
	exec := func(path, statements string) {
		db, err := sql.Open("sqlite", path)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if _, err := db.Exec(statements); err != nil {
			t.Fatal(err)
		}
	}
	for name, tc := range map[string]struct {
		prepare func(path string)
		want    error
		advice  string
	}{
		"text":      {func(path string) { os.WriteFile(path, []byte("x"), 0o600) }, ErrDamaged, "move it away to begin a new history"},
		"another's": {func(path string) { exec(path, "CREATE TABLE t (x)") }, ErrForeign, "name another file for the history"},
		"newer": {func(path string) {
			openAt(t, path, Options{}).Close()
			exec(path, "PRAGMA user_version = 2")
		}, ErrNewer, "its format is 2, this version knows 1"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "history.db")
			tc.prepare(path)
			before, _ := os.ReadFile(path)
			for how, open := range map[string]func(context.Context, string, Options) (*DB, error){"Open": Open, "OpenReadOnly": OpenReadOnly} {
				_, err := open(t.Context(), path, Options{})
				if !errors.Is(err, tc.want) || !strings.HasPrefix(err.Error(), "history "+path+": ") || !strings.Contains(err.Error(), tc.advice) {
					t.Errorf("%s: got error %v, want %v with %q", how, err, tc.want, tc.advice)
				}
			}
			if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
				t.Error("the file was changed")
			}
		})
	}
}

// damage overwrites all pages but the header's 100 bytes.
func damage(t testing.TB, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(bytes.Repeat([]byte("garbage!"), 4000), 100); err != nil {
		t.Fatal(err)
	}
}

// The file's settings and numbers are those of the files that people have.
func TestFormatStaysTheSame(t *testing.T) {
	d := open(t, Options{})
	for name, want := range map[string]int{
		"application_id": 0x66743574, "user_version": 1, "auto_vacuum": 2,
		"synchronous": 1, "wal_autocheckpoint": 0, "journal_size_limit": 4000 * 4096,
	} {
		var got int
		if err := d.handle().QueryRowContext(t.Context(), "PRAGMA "+name).Scan(&got); err != nil || got != want {
			t.Errorf("%s is %d, %v; want %d", name, got, err, want)
		}
	}
}

func TestOpenReadOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history.db")
	if _, err := OpenReadOnly(t.Context(), path, Options{}); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "ft serve") {
		t.Errorf("without a history: got error %v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the file was created")
	}
	os.WriteFile(path, nil, 0o600)
	if _, err := OpenReadOnly(t.Context(), path, Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an empty file: got error %v", err)
	}
	d := openAt(t, path, Options{})
	w, err := d.Writer()
	if err != nil {
		t.Fatal(err)
	}
	r, err := OpenReadOnly(t.Context(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for i := range 5 {
		w.Record(sample(i))
		if err := w.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := len(query(t, r, Query{})); n != i+1 {
			t.Errorf("the reader sees %d of %d events", n, i+1)
		}
	}
	if _, err := r.Writer(); err == nil || !strings.Contains(err.Error(), "is open for reading only") {
		t.Errorf("a writer of a history that is open for reading: %v", err)
	}
}

func TestRelativePathStaysWhereItWas(t *testing.T) {
	t.Chdir(t.TempDir())
	d := openAt(t, "history.db", Options{})
	t.Chdir(t.TempDir())
	record(t, d, sample(0))
	if n := len(query(t, d, Query{})); n != 1 {
		t.Errorf("%d events, want 1", n)
	}
}

func TestManyOpenANewHistoryAtOnce(t *testing.T) {
	for range 10 {
		path := filepath.Join(t.TempDir(), "history.db")
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				d, err := Open(t.Context(), path, Options{})
				if err != nil {
					t.Error(err)
					return
				}
				defer d.Close()
				w, err := d.Writer()
				if err != nil {
					t.Error(err)
					return
				}
				w.Record(sample(i))
				if err := w.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		d := openAt(t, path, Options{})
		runs := map[int64]bool{}
		for _, e := range query(t, d, Query{}) {
			runs[e.Run] = true
		}
		if len(runs) != 8 {
			t.Fatalf("events of %d runs, want 8", len(runs))
		}
		d.Close()
	}
}

func TestOneWriterAtATime(t *testing.T) {
	d := open(t, Options{})
	w, err := d.Writer()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Writer(); err == nil {
		t.Error("got a second writer")
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w.Record(sample(0))
	if w.Lost() != 1 {
		t.Errorf("an event after Close: %d lost, want 1", w.Lost())
	}
	if err := w.Close(); err != nil {
		t.Errorf("closed again: %v", err)
	}
	record(t, d, sample(1)) // a new one can follow
}

func BenchmarkOpenReadOnly(b *testing.B) {
	d := open(b, Options{})
	record(b, d, sample(0))
	b.Run("recording", func(b *testing.B) { benchmarkOpen(b, d.path) })
	d.Close()
	b.Run("closed", func(b *testing.B) { benchmarkOpen(b, d.path) })
}

func benchmarkOpen(b *testing.B, path string) {
	for b.Loop() {
		d, err := OpenReadOnly(b.Context(), path, Options{})
		if err != nil {
			b.Fatal(err)
		}
		if n := len(query(b, d, Query{})); n != 1 {
			b.Fatal(n)
		}
		d.Close()
	}
}
