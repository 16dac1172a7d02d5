package join

import (
	"bytes"
	"errors"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestDumpShowsBothDirections(t *testing.T) {
	tests := map[string]struct {
		dump Dump
		want string
	}{
		"text": {Dump{}, `> GET \\ é\r\n
> \x00\xff
< 200\n
`},
		"text with times": {Dump{Timestamps: true}, `2000-01-01T00:00:00.000000Z > GET \\ é\r\n
2000-01-01T00:00:00.000000Z > \x00\xff
2000-01-01T00:00:01.500000Z < 200\n
`},
		"hex": {Dump{Hex: true}, `> 00000000: 4745 5420 5c20 c3a9 0d0a 00ff            GET \ ......
< 00000000: 3230 300a                                200.
`},
	}
	for name, test := range tests {
		synctest.Test(t, func(t *testing.T) {
			var shown bytes.Buffer
			test.dump.W = &shown
			a, peerA := memoryPair()
			b, peerB := memoryPair()
			done := run(t.Context(), a, b, Options{Dump: &test.dump})
			write(t, peerA, "GET \\ é\r\n\x00\xff")
			wantRead(t, peerB, "GET \\ é\r\n\x00\xff")
			time.Sleep(1500 * time.Millisecond)
			write(t, peerB, "200\n")
			wantRead(t, peerA, "200\n")
			closeWrite(t, peerA)
			closeWrite(t, peerB)
			if o := <-done; o.err != nil {
				t.Error(o.err)
			}
			if got := shown.String(); got != test.want {
				t.Errorf("%s: got\n%swant\n%s", name, got, test.want)
			}
		})
	}
}

func TestXxdReadsTheHexDump(t *testing.T) {
	xxd, err := exec.LookPath("xxd")
	if err != nil {
		t.Fatal("xxd is missing: apt-get install xxd")
	}
	var shown bytes.Buffer
	d := newDumper(Dump{W: &shown, Hex: true})
	sent := random(1, 5000)
	d.show('>', sent[:1])
	d.show('<', []byte("other"))
	d.show('>', sent[1:])
	var rows []string
	for row := range strings.Lines(shown.String()) {
		if row, ours := strings.CutPrefix(row, "> "); ours {
			rows = append(rows, row)
		}
	}
	program := exec.CommandContext(t.Context(), xxd, "-r")
	program.Stdin = strings.NewReader(strings.Join(rows, ""))
	got, err := program.Output()
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("xxd read %d bytes, %v, want the %d sent", len(got), err, len(sent))
	}
}

func TestDumpShowsTheWire(t *testing.T) {
	var shown bytes.Buffer
	a, peerA := tcpPair(t)
	b, peerB := tcpPair(t)
	done := run(t.Context(), a, b, Options{CRLF: true, Telnet: true, Dump: &Dump{W: &shown}})
	write(t, peerB, "\xff\xfd\x1fhi")
	wantRead(t, peerA, "hi")
	wantRead(t, peerB, "\xff\xfc\x1f")
	write(t, peerA, "me\n")
	wantRead(t, peerB, "me\r\n")
	closeWrite(t, peerA)
	closeWrite(t, peerB)
	wait(t, done)
	want := "< \\xff\\xfd\\x1fhi\n> \\xff\\xfc\\x1f\n> me\\r\\n\n"
	if got := shown.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestDumpedRowsDoNotMix(t *testing.T) {
	var shown bytes.Buffer // its writes would race, too
	a, peerA := tcpPair(t)
	b, peerB := tcpPair(t)
	done := run(t.Context(), a, b, Options{Dump: &Dump{W: &shown, Hex: true, Timestamps: true}})
	exchangeBytes(t, done, peerA, peerB, 300_000, 100_000)
	row := regexp.MustCompile(`^\S{27} [<>] [0-9a-f]{8}:( [0-9a-f ]{4}){8}  .{1,16}$`)
	n := 0
	for line := range strings.Lines(shown.String()) {
		n++
		if !row.MatchString(strings.TrimSuffix(line, "\n")) {
			t.Fatalf("row %d is mixed: %q", n, line)
		}
	}
	if n < 400_000/16 {
		t.Errorf("%d rows", n)
	}
}

var errNoRoom = errors.New("no room")

// failing fails after one write.
type failing struct {
	mu     sync.Mutex
	writes int
}

func (f *failing) Write(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.writes++; f.writes > 1 {
		return 0, errNoRoom
	}
	return len(b), nil
}

func TestADumpThatFailsIsAnErrorAtTheEnd(t *testing.T) {
	w := &failing{}
	a, peerA := tcpPair(t)
	b, peerB := tcpPair(t)
	done := run(t.Context(), a, b, Options{Dump: &Dump{W: w}})
	for range 3 {
		write(t, peerA, "x")
		wantRead(t, peerB, "x")
	}
	closeWrite(t, peerA)
	closeWrite(t, peerB)
	o := wait(t, done)
	wantError(t, o.err, errNoRoom, "dump")
	wantBytes(t, o.result, 3, 0)
	if o.result.AToB.Err != nil || w.writes != 2 {
		t.Errorf("got %+v after %d writes, want no error of the transfer after 2", o.result, w.writes)
	}
}
