package changes

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/netns"
	"github.com/fivetuple/fivetuple/owner"
	"github.com/fivetuple/fivetuple/sockdiag"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/table"
)

// tcp is a TCP socket.
func tcp(cookie uint64, state fivetuple.State, local, remote string) table.Row {
	r := table.Row{
		Socket:    sockdiag.Socket{Protocol: fivetuple.TCP, State: state, Cookie: cookie, Local: netip.MustParseAddrPort(local)},
		Namespace: &netns.Namespace{ID: 7},
	}
	if remote != "" {
		r.Remote = netip.MustParseAddrPort(remote)
	}
	return r
}

func heldBy(r table.Row, pids ...int) table.Row {
	for _, pid := range pids {
		r.Owners = append(r.Owners, owner.Holder{Process: owner.Process{PID: pid, Command: "nginx", User: "root"}, FD: pid})
	}
	return r
}

func withBytes(r table.Row, in, out uint64) table.Row {
	r.Info = &sockopt.TCPInfo{Size: 280, BytesReceived: in, BytesAcked: out}
	return r
}

func sample() *Snapshot {
	unix := table.Row{Socket: sockdiag.Socket{Protocol: fivetuple.Unix, State: fivetuple.StateListen, Cookie: 3, Name: `/run/a "b".sock`, Inode: 9}, Namespace: &netns.Namespace{ID: 7}}
	return &Snapshot{
		Format: format, Schema: schema, Time: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Host: "web1", Boot: "b", Netns: 7,
		Kernel: "6.18", Filter: "tcp", Unreadable: 2, Partial: "some",
		Rows: []table.Row{
			heldBy(tcp(1, fivetuple.StateListen, "[::]:80", ""), 10, 11),
			withBytes(heldBy(tcp(2, fivetuple.StateEstablished, "10.0.0.1:80", "10.0.0.2:5000"), 10), 5, 6),
			unix,
		},
	}
}

func written(t *testing.T, s *Snapshot) string {
	t.Helper()
	var b bytes.Buffer
	if err := s.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestSnapshotComesBackFromItsFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.ndjson")
	want := sample()
	if err := want.Save(path); err != nil {
		t.Fatal(err)
	}
	got, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v, want 0600", info.Mode(), err)
	}
}

func TestReadSaysWhatIsWrongWithAFile(t *testing.T) {
	whole := written(t, sample())
	lines := strings.SplitAfter(whole, "\n")
	head, rows, tail := lines[0], strings.Join(lines[1:4], ""), lines[4]
	for name, tt := range map[string]struct {
		text string
		is   error
		says string
	}{
		"empty":                {"", ErrForeign, "empty"},
		"text":                 {"hello\n", ErrForeign, ""},
		"text without lines":   {"hello", ErrForeign, ""},
		"other JSON":           {`{"schema":1}` + "\n", ErrForeign, ""},
		"binary":               {strings.Repeat("\x00", maxLine+1), ErrForeign, ""},
		"newer":                {strings.Replace(whole, `"schema":1`, `"schema":2`, 1), ErrNewer, "its schema is 2"},
		"without an end":       {head + rows, ErrTruncated, "after 4 lines"},
		"head alone":           {head, ErrTruncated, "after 1 lines"},
		"within the head":      {head[:len(head)-9], ErrTruncated, "line 1"},
		"within a line":        {whole[:len(head)+20], ErrTruncated, "line 2 breaks off"},
		"within the end":       {whole[:len(whole)-1], ErrTruncated, "line 5 breaks off"},
		"a row missing":        {head + lines[1] + tail, ErrCorrupt, "1 rows are there, it counts 3"},
		"a row twice":          {head + lines[1] + rows + tail, ErrCorrupt, "4 rows are there"},
		"more behind the end":  {whole + "\n", ErrCorrupt, "line 5: there is more"},
		"a row of something":   {head + "{}\n" + tail, ErrCorrupt, "line 2: no socket"},
		"a row of no JSON":     {head + "}\n" + tail, ErrCorrupt, "line 2"},
		"a wrong address":      {head + strings.Replace(rows, `"cookie":"1"`, `"cookie":"x"`, 1) + tail, ErrCorrupt, "line 2"},
		"a wrong state":        {head + strings.Replace(rows, "ESTABLISHED", "ODD", 1) + tail, ErrCorrupt, "line 3"},
		"a line without end":   {head + strings.Repeat("x", maxLine+1), ErrCorrupt, "line 2: longer than 16 MiB"},
		"a count of something": {head + `{"rows":null}` + "\n", ErrCorrupt, "no count"},
		"a head of wrong type": {strings.Replace(whole, `"host":"web1"`, `"host":1`, 1), ErrCorrupt, "line 1"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := Read(strings.NewReader(tt.text))
			if s != nil || !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v, %v, want %v with %q", s, err, tt.is, tt.says)
			}
		})
	}
}

type broken struct{ io.Reader }

func (b broken) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err == io.EOF {
		err = fs.ErrPermission
	}
	return n, err
}

func TestReadPassesErrorsOn(t *testing.T) {
	if _, err := Read(broken{strings.NewReader(written(t, sample())[:300])}); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("got %v, want %v", err, fs.ErrPermission)
	}
}

func FuzzRead(f *testing.F) {
	var b bytes.Buffer
	sample().Write(&b)
	f.Add(b.Bytes())
	f.Add(b.Bytes()[:b.Len()/2])
	f.Add([]byte("{\"fivetuple\":\"snapshot\",\"schema\":1}\n{\"rows\":0}\n"))
	f.Add([]byte("{\"fivetuple\":\"snapshot\"}\n{\"protocol\":\"tcp\",\"local\":\"1\"}\n{\"rows\":1}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Read(bytes.NewReader(b))
		if err != nil {
			if s != nil {
				t.Errorf("a snapshot and %v", err)
			}
			return
		}
		if Diff(s.Rows, s.Rows) != nil || DiffEnds(s.Rows, s.Rows) != nil {
			t.Errorf("it differs from itself")
		}
		text := written(t, s)
		again, err := Read(strings.NewReader(text))
		if err != nil {
			t.Fatalf("%v:\n%s", err, text)
		}
		if len(again.Rows) != len(s.Rows) || written(t, again) != text {
			t.Errorf("got\n%s\nwant\n%s", written(t, again), text)
		}
	})
}

func TestSaveReplacesOrLeavesAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.ndjson")
	if err := os.WriteFile(path, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := sample().Save(path); err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Stat(path); info.Mode() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	if all, _ := os.ReadDir(filepath.Dir(path)); len(all) != 1 {
		t.Errorf("more was left behind: %v", all)
	}
}

func TestSaveSaysWhyItCannot(t *testing.T) {
	dir := t.TempDir()
	for path, want := range map[string]string{
		dir:                              "it is no regular file",
		"/dev/null":                      "it is no regular file",
		filepath.Join(dir, "no", "file"): "no such file or directory",
	} {
		err := sample().Save(path)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) || strings.Count(err.Error(), dir) > 1 {
			t.Errorf("%s: got %v, want %q", path, err, want)
		}
	}
}

func TestComparable(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*Snapshot)
		why    string
	}{
		"same":              {func(*Snapshot) {}, ""},
		"restarted":         {func(s *Snapshot) { s.Boot = "c" }, "the machine started again in between"},
		"not known":         {func(s *Snapshot) { s.Boot = "" }, "it is not known whether"},
		"other machine":     {func(s *Snapshot) { s.Boot, s.Host = "c", "web2" }, `different machines, "web1" and "web2"`},
		"other namespace":   {func(s *Snapshot) { s.Netns = 8 }, "different network namespaces, 7 and 8"},
		"host name changed": {func(s *Snapshot) { s.Host = "web2" }, ""},
	} {
		a, b := sample(), sample()
		tt.change(b)
		for i := range b.Rows { // the kernel numbers anew
			if tt.why != "" {
				b.Rows[i].Cookie += 100
				b.Rows[i].Namespace = &netns.Namespace{ID: b.Netns}
			}
		}
		why, ok := a.Comparable(b)
		if ok != (tt.why == "") || !strings.Contains(why, tt.why) {
			t.Errorf("%s: got %q, %v, want %q", name, why, ok, tt.why)
		}
		if d := a.Diff(b); len(d) != 0 {
			t.Errorf("%s: %d differences", name, len(d))
		}
	}
}

func TestDiff(t *testing.T) {
	listener := heldBy(tcp(1, fivetuple.StateListen, "[::]:80", ""), 10)
	conn := withBytes(heldBy(tcp(2, fivetuple.StateEstablished, "10.0.0.1:80", "10.0.0.2:5000"), 10), 100, 200)
	left := tcp(9, fivetuple.StateTimeWait, "10.0.0.1:80", "10.0.0.2:5000")
	other := tcp(9, fivetuple.StateTimeWait, "10.0.0.1:80", "10.0.0.2:5001")
	moved := withBytes(heldBy(conn, 11), 150, 260)
	moved.State, moved.RecvQueue = fivetuple.StateCloseWait, 9
	busy := withBytes(conn, 1000, 2000)
	busy.RecvQueue = 5
	again := heldBy(listener, 10)
	unowned := listener
	unowned.Owners = nil
	for _, tt := range []struct {
		name          string
		before, after []table.Row
		want          string
	}{
		{"nothing", []table.Row{listener, conn}, []table.Row{conn, listener}, ""},
		{"opened", nil, []table.Row{listener, conn}, "opened 1, opened 2"},
		{"closed", []table.Row{listener, conn}, nil, "closed 1, closed 2"},
		{"replaced", []table.Row{listener}, []table.Row{tcp(5, fivetuple.StateListen, "[::]:80", "")}, "closed 1, opened 5"},
		{"state and owners", []table.Row{conn}, []table.Row{moved}, "changed 2 state+owners 50/60"},
		{"queues and counters", []table.Row{conn}, []table.Row{busy}, ""},
		{"another descriptor", []table.Row{listener}, []table.Row{again}, ""},
		{"owners not known", []table.Row{listener}, []table.Row{unowned}, ""},
		{"became TIME_WAIT", []table.Row{conn}, []table.Row{left}, "changed 9 state"},
		{"TIME_WAIT of others", []table.Row{left}, []table.Row{other}, ""},
	} {
		var got []string
		for _, c := range Diff(tt.before, tt.after) {
			text := fmt.Sprintf("%s %d", c.Kind, c.Row().Cookie)
			if len(c.What) > 0 {
				text += " " + strings.Join(c.What, "+")
			}
			if c.BytesIn > 0 {
				text += fmt.Sprintf(" %d/%d", c.BytesIn, c.BytesOut)
			}
			got = append(got, text)
		}
		if got := strings.Join(got, ", "); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestDiffEndsCountsSocketsThatShareTheirEnds(t *testing.T) {
	a, b := heldBy(tcp(1, fivetuple.StateListen, "[::]:80", ""), 10), heldBy(tcp(2, fivetuple.StateListen, "[::]:80", ""), 11)
	c := heldBy(tcp(3, fivetuple.StateListen, "[::]:80", ""), 12)
	got := DiffEnds([]table.Row{a, b}, []table.Row{c})
	if len(got) != 1 || got[0].Kind != Closed {
		t.Errorf("got %+v, want one closed", got)
	}
}
