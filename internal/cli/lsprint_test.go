package cli

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"charm.land/lipgloss/v2"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/filter"
	"github.com/fivetuple/fivetuple/owner"
	"github.com/fivetuple/fivetuple/sockdiag"
	"github.com/fivetuple/fivetuple/table"
)

// tcpRow is a TCP socket; without a remote end it listens.
func tcpRow(local, remote string) table.Row {
	s := sockdiag.Socket{Protocol: fivetuple.TCP, State: fivetuple.StateListen, Local: netip.MustParseAddrPort(local), Inode: 7}
	if remote != "" {
		s.State, s.Remote = fivetuple.StateEstablished, netip.MustParseAddrPort(remote)
	}
	return table.Row{Socket: s}
}

func unixRow(name string) table.Row {
	return table.Row{Socket: sockdiag.Socket{Protocol: fivetuple.Unix, State: fivetuple.StateListen, Name: name, Inode: 8}}
}

func held(r table.Row, command string, pids ...int) table.Row {
	for _, pid := range pids {
		r.Owners = append(r.Owners, owner.Holder{Process: owner.Process{PID: pid, Command: command}})
	}
	return r
}

// listed prints rows as ft ls does with these columns.
func listed(t *testing.T, format string, columns string, rows ...table.Row) (stdout, stderr string) {
	t.Helper()
	l, err := lsFlags{all: true, columns: strings.Split(columns, ",")}.listing(nil, false)
	if err != nil {
		t.Fatal(err)
	}
	var out, below bytes.Buffer
	a := &app{out: &out, err: &below, format: format}
	if err := a.showSockets(&table.Table{Rows: rows}, l, 0); err != nil {
		t.Fatal(err)
	}
	return out.String(), below.String()
}

var oddNames = []string{"/run/a,b \"c\"\n\x1b[31m", "@\u009b2J", "/run/世界", "/run/\xff"}

func TestOddNamesStayInTheirField(t *testing.T) {
	var rows []table.Row
	for _, name := range oddNames {
		rows = append(rows, unixRow(name))
	}
	slices.SortFunc(rows, func(a, b table.Row) int { return strings.Compare(a.Name, b.Name) })

	out, _ := listed(t, formatNDJSON, "proto,local", rows...)
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	if len(lines) != len(rows) {
		t.Fatalf("%d lines for %d rows:\n%s", len(lines), len(rows), out)
	}
	for i, line := range lines {
		var got struct{ Protocol, Local string }
		want := strings.ToValidUTF8(rows[i].Name, "\ufffd")
		if err := json.Unmarshal([]byte(line), &got); err != nil || got.Protocol != "unix" || got.Local != want {
			t.Errorf("%s read back: got %+v, %v, want %q", line, got, err, want)
		}
		if strings.ContainsAny(line, "\x1b\u009b") {
			t.Errorf("%q would speak to the terminal", line)
		}
	}

	out, _ = listed(t, formatCSV, "proto,local,rtt", rows...)
	records, err := csv.NewReader(strings.NewReader(out)).ReadAll()
	if err != nil || len(records) != len(rows)+1 {
		t.Fatalf("%d records, %v:\n%s", len(records), err, out)
	}
	for i, r := range rows {
		if want := []string{"unix", r.Name, ""}; !slices.Equal(records[i+1], want) {
			t.Errorf("got %q, want %q", records[i+1], want)
		}
	}

	out, _ = listed(t, formatTable, "proto,local", rows...)
	want := "PROTO  LOCAL\n" +
		"unix   /run/a,b \"c\"\\n\\x1b[31m\n" +
		"unix   /run/世界\n" +
		"unix   /run/\\xff\n" +
		"unix   @\\u009b2J\n"
	if out != want {
		t.Errorf("got\n%swant\n%s", out, want)
	}
}

func TestCellsAreAsWideAsTheyAreShown(t *testing.T) {
	out, _ := listed(t, formatTable, "local,inode", unixRow("/run/世界"), unixRow("/run/e\u0301"), unixRow("/run/abcdefg"))
	want := "LOCAL         INODE\n" +
		"/run/abcdefg      8\n" +
		"/run/e\u0301            8\n" +
		"/run/世界         8\n"
	if out != want {
		t.Errorf("got\n%swant\n%s", out, want)
	}
}

func TestATableOfSocketsFitsTheTerminal(t *testing.T) {
	rows := []table.Row{
		held(tcpRow("127.0.0.1:80", "127.0.0.1:40000"), "nginx", 1, 2),
		held(tcpRow("[2001:db8:1111:2222:3333:4444:5555:6666]:50000", "[2001:db8:1111:2222:3333:4444:5555:7777]:443"), "curl", 3),
		held(tcpRow("10.0.0.1:1", "10.0.0.2:65535"), "many", 1001, 1002, 1003, 1004, 1005, 1006, 1007, 1008, 1009, 1010, 1011, 1012, 1013),
		held(unixRow("/run/世界世界世界世界世界世界世界世界世界世界世界世界"), "a word and 世界世界世界世界世界世界世界世界世界 more", 5),
	}
	l, err := lsFlags{all: true}.listing(nil, false)
	if err != nil {
		t.Fatal(err)
	}
	text := func(width int) string {
		var b bytes.Buffer
		p := newTableSockets(lineWriter{w: &b}, l.columns, false, width, 0)
		for i := range rows {
			if err := p.row(&rows[i]); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.end(); err != nil {
			t.Fatal(err)
		}
		if got := strings.Count(b.String(), "\n"); got != p.printed {
			t.Errorf("%d columns: counted %d lines of %d", width, p.printed, got)
		}
		return b.String()
	}
	bare := func(s string) string { return strings.Join(strings.Fields(s), "") }
	whole := bare(text(0))
	for width := 60; width <= 250; width++ {
		got := text(width)
		for line := range strings.Lines(got) {
			if n := lipgloss.Width(strings.TrimSuffix(line, "\n")); n > width {
				t.Errorf("%d columns: a line of %d: %s", width, n, line)
			}
		}
		if bare(got) != whole {
			t.Errorf("%d columns: got other text than without a bound:\n%s", width, got)
		}
	}
	want := "" +
		"PROTO  STATE        RECV-Q  SEND-Q  LOCAL                  REMOTE\n" +
		"    PROCESS\n" +
		"tcp    ESTABLISHED       0       0  127.0.0.1:80           127.0.0.1:40000\n" +
		"    nginx/1,2\n"
	if got := text(80); !strings.HasPrefix(got, want) {
		t.Errorf("80 columns: got\n%swant\n%s", got, want)
	}
}

func TestTheLastColumnIsFoldedInItsPlace(t *testing.T) {
	l, err := lsFlags{columns: []string{"local", "process"}}.listing(nil, false)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	p := newTableSockets(lineWriter{w: &b}, l.columns, false, 34, 0)
	for _, r := range []table.Row{
		held(held(tcpRow("127.0.0.1:80", ""), "nginx", 1, 2), "another", 3, 4),
		held(tcpRow("127.0.0.1:81", ""), strings.Repeat("世", 12), 5),
	} {
		if err := p.row(&r); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.end(); err != nil {
		t.Fatal(err)
	}
	want := "" +
		"LOCAL         PROCESS\n" +
		"127.0.0.1:80  nginx/1,2\n" +
		"              another/3,4\n" +
		"127.0.0.1:81  世世世世世世世世世世\n" +
		"              世世/5\n"
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", &b, want)
	}
}

func TestATableIsCutToTheScreen(t *testing.T) {
	columns, err := lsFlags{columns: []string{"local"}}.listing(nil, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		rows, lines int
		want        string
	}{
		{3, 0, "LOCAL 1 2 3"},
		{3, 4, "LOCAL 1 2 3"},
		{4, 4, "LOCAL 1 2 and 2 more"},
		{sortedRows + 5, 3, fmt.Sprintf("LOCAL 1 and %d more", sortedRows+4)},
	} {
		var b bytes.Buffer
		p := newTableSockets(lineWriter{w: &b}, columns.columns, false, 0, tt.lines)
		for i := range tt.rows {
			r := unixRow(fmt.Sprint(i + 1))
			if err := p.row(&r); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.end(); err != nil {
			t.Fatal(err)
		}
		if got := strings.ReplaceAll(strings.TrimSuffix(b.String(), "\n"), "\n", " "); got != tt.want {
			t.Errorf("%d rows in %d lines: got %q, want %q", tt.rows, tt.lines, got, tt.want)
		}
	}
}

func TestRowsBeyondThoseThatAreMeasuredArePrintedAtOnce(t *testing.T) {
	l, err := lsFlags{columns: []string{"local", "uid"}}.listing(nil, false)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	p := newTableSockets(lineWriter{w: &b}, l.columns, false, 0, 0)
	for i := range sortedRows + 2 {
		r := unixRow(fmt.Sprint(i))
		if err := p.row(&r); err != nil {
			t.Fatal(err)
		}
		if i >= sortedRows && len(p.cells) > 0 {
			t.Fatalf("row %d is kept", i)
		}
	}
	if err := p.end(); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	if len(lines) != sortedRows+3 || lines[0] != "LOCAL  UID" || lines[1] != "0        0" || lines[sortedRows+2] != "10001    0" {
		t.Errorf("%d lines, %q to %q", len(lines), lines[:2], lines[len(lines)-1])
	}
}

func TestGroupsAreCutToTheScreen(t *testing.T) {
	for lines, want := range map[int]string{0: "a\nb\nc\n", 3: "a\nb\nc\n", 2: "a\nand 2 more lines\n"} {
		if got := cutLines("a\nb\nc\n", lines); got != want {
			t.Errorf("%d lines: got %q, want %q", lines, got, want)
		}
	}
}

func TestRowsAreInOrderUpToTenThousand(t *testing.T) {
	var l listing
	for _, tt := range []struct {
		n    int
		want string
	}{{sortedRows, "127.0.0.1:1"}, {sortedRows + 1, fmt.Sprintf("127.0.0.1:%d", sortedRows+1)}} {
		rows := make([]table.Row, tt.n)
		for i := range rows {
			rows[i] = tcpRow(fmt.Sprintf("127.0.0.1:%d", tt.n-i), "")
		}
		if l.order(rows); rows[0].Local.String() != tt.want {
			t.Errorf("of %d rows the first is %v, want %s", tt.n, rows[0].Local, tt.want)
		}
	}
}

func TestTheFooterSaysWhatIsNotKnown(t *testing.T) {
	expr, err := filter.Parse(t.Context(), "proc:nginx")
	if err != nil {
		t.Fatal(err)
	}
	wait := tcpRow("127.0.0.1:80", "127.0.0.1:1")
	wait.State = fivetuple.StateTimeWait
	full := held(tcpRow("127.0.0.1:81", ""), "slow", 9)
	full.RecvQueue, full.SendQueue = 2, 1
	full2 := full
	full2.Local = netip.MustParseAddrPort("127.0.0.1:82")
	listens := tcpRow("127.0.0.1:80", "")
	for _, tt := range []struct {
		name  string
		table table.Table
		query table.Query
		n     int
		want  string
	}{
		{"nothing", table.Table{}, table.Query{}, 0, "0 sockets"},
		{"one", table.Table{Rows: []table.Row{listens}}, table.Query{}, 1, "1 socket"},
		{"time wait", table.Table{Rows: []table.Row{wait}}, table.Query{Owners: true}, 1, "1 socket, 1 without an owner: 1 TIME_WAIT"},
		{
			"one process", table.Table{Rows: []table.Row{listens}, Unreadable: 1}, table.Query{Owners: true}, 1,
			"1 socket, 1 without an owner: 1 no permission (1 process may not be looked into" + asRoot() + ")",
		},
		{
			"processes", table.Table{Rows: []table.Row{listens}, Unreadable: 64}, table.Query{Owners: true}, 1,
			"1 socket, 1 without an owner: 1 no permission (64 processes may not be looked into" + asRoot() + ")",
		},
		{
			"hidden", table.Table{Rows: []table.Row{listens}, Partial: "hidepid=2 hides them"}, table.Query{Owners: true}, 1,
			"1 socket, 1 without an owner: 1 " + table.Hidden.String() + " (hidepid=2 hides them)",
		},
		{"all seen", table.Table{Rows: nil, Partial: "hidepid=2 hides them"}, table.Query{Owners: true}, 0, "0 sockets"},
		{
			"a filter that asks for owners", table.Table{Unreadable: 2}, table.Query{Filter: expr}, 0,
			"0 sockets (2 processes may not be looked into" + asRoot() + ")",
		},
		{"such a filter, hidden", table.Table{Partial: "hidepid=2 hides them"}, table.Query{Filter: expr}, 0, "0 sockets (hidepid=2 hides them)"},
		{
			"full queue", table.Table{Rows: []table.Row{full}}, table.Query{}, 1,
			"1 socket\nft: the accept queue of tcp 127.0.0.1:81 (slow/9) is full: its peers wait until the program accepts; see ft inspect",
		},
		{
			"full queues", table.Table{Rows: []table.Row{full, full2}}, table.Query{}, 2,
			"2 sockets\nft: the accept queues of tcp 127.0.0.1:81 (slow/9) and 1 more are full: their peers wait until the programs accept; see ft inspect",
		},
		{"many", table.Table{}, table.Query{}, sortedRows + 1, "10001 sockets, as the kernel gives them (--sort puts them in order)"},
	} {
		want, warnings, _ := strings.Cut(tt.want, "\nft: ")
		if want = wrap(want, ""); warnings != "" {
			want += "\nft: " + warnings
		}
		if got := strings.Join(newFooter(&tt.table, tt.n, listing{query: tt.query}), "\n"); got != want {
			t.Errorf("%s: got\n%s\nwant\n%s", tt.name, got, want)
		}
	}
}

func TestAFullQueueIsMarked(t *testing.T) {
	full := tcpRow("127.0.0.1:81", "")
	full.RecvQueue, full.SendQueue = 2, 1
	free := tcpRow("127.0.0.1:80", "")
	free.RecvQueue, free.SendQueue = 1, 1
	out, _ := listed(t, formatTable, "local,queue", full, free)
	if want := "LOCAL           QUEUE\n127.0.0.1:80      1/1\n127.0.0.1:81  full 2/1\n"; strings.ReplaceAll(out, " ", "") != strings.ReplaceAll(want, " ", "") {
		t.Errorf("got\n%swant\n%s", out, want)
	}
	out, _ = listed(t, formatCSV, "local,queue", full)
	if want := "local,queue\n127.0.0.1:81,2/1\n"; out != want {
		t.Errorf("for programs: got\n%swant\n%s", out, want)
	}
}

func TestTheFooterLeavesRoomOnTheScreen(t *testing.T) {
	f := footer{strings.Repeat("x", 80), strings.Repeat("y", 81)}
	for _, tt := range []struct{ lines, width, want int }{{0, 80, 0}, {24, 80, 20}, {24, 100, 21}, {3, 80, 3}} {
		if got := f.room(tt.lines, tt.width); got != tt.want {
			t.Errorf("%d lines of %d columns: room for %d, want %d", tt.lines, tt.width, got, tt.want)
		}
	}
}

// failing is a file on a disk that is full.
type failing struct{}

var errFull = errors.New("no space left on device")

func (failing) Write([]byte) (int, error) { return 0, errFull }

func TestOutputThatCannotBeWrittenIsAnError(t *testing.T) {
	for _, format := range []string{formatTable, formatWide, formatJSON, formatNDJSON, formatCSV} {
		for _, by := range []string{"", "port"} {
			l, err := lsFlags{all: true, group: by}.listing(nil, false)
			if err != nil {
				t.Fatal(err)
			}
			a := &app{out: failing{}, err: io.Discard, format: format}
			if err := a.showSockets(&table.Table{Rows: []table.Row{tcpRow("127.0.0.1:80", "")}}, l, 0); !errors.Is(err, errFull) {
				t.Errorf("-o %s --group %q: got error %v, want %v", format, by, err, errFull)
			}
		}
	}
}

// BenchmarkPrintSockets is a row of each format, 100,000 of which the kernel needs some
// 60 ms to tell.
func BenchmarkPrintSockets(b *testing.B) {
	r := tcpRow("127.0.0.1:8080", "127.0.0.1:40312")
	for _, tt := range []struct{ format, columns string }{
		{formatNDJSON, "proto,state,local,remote"},
		{formatJSON, "proto,state,local,remote"},
		{formatCSV, "proto,state,local,remote"},
		{formatTable, "state,recvq,sendq,local,remote"},
	} {
		b.Run(tt.format, func(b *testing.B) {
			l, err := lsFlags{all: true, columns: strings.Split(tt.columns, ",")}.listing(nil, false)
			if err != nil {
				b.Fatal(err)
			}
			a := &app{out: io.Discard, err: io.Discard, format: tt.format}
			p := a.socketPrinter(l)
			b.ReportAllocs()
			for b.Loop() {
				if err := p.row(&r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
