package stream

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple/secure"
	"github.com/fivetuple/fivetuple/stats"
)

// command makes a handler, and fails the test if a process it started remains.
func command(t *testing.T, o ExecOptions, argv ...string) Handler {
	t.Helper()
	h, err := Exec(argv, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if left := ownChildren(t); len(left) > 0 {
			t.Errorf("processes left: %v", left)
		}
	})
	return h
}

// ownChildren lists the processes that this one started and has not reaped.
func ownChildren(t *testing.T) (left []string) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		b, _ := os.ReadFile(path)
		line := string(b)
		fields := strings.Fields(line[strings.LastIndexByte(line, ')')+1:])
		if len(fields) > 1 && fields[1] == strconv.Itoa(os.Getpid()) {
			left = append(left, line[:strings.LastIndexByte(line, ')')+1]+" "+fields[0])
		}
	}
	return left
}

// gone waits until there is no process of that number.
func gone(t *testing.T, pid string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) { // until the kernel has ended it
		if _, err := os.Stat("/proc/" + pid); err != nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %s is still there", pid)
		}
	}
}

// execTransports are a server and its client for each way a command gets its
// connection.
var execTransports = []struct {
	name, where string
	tls, pipes  bool
	counted     bool
}{
	{name: "tcp", where: "0", counted: true},
	{name: "tcp6", where: "tcp6://0", counted: true},
	{name: "unix", where: "unix://@stream-test-exec"},
	{name: "tls", where: "tls://0", tls: true, counted: true},
	{name: "unix by pipes", where: "unix://@stream-test-exec", pipes: true, counted: true},
	{name: "seqpacket", where: "seqpacket://@stream-test-exec", counted: true},
}

func TestACommandGetsEveryByteAndBothEnds(t *testing.T) {
	for _, tt := range execTransports {
		t.Run(tt.name, func(t *testing.T) {
			const size = 600_000 // more than a socket holds while cat waits for the client to read
			ev := newEvents()
			s := &Server{Sink: ev, Handler: command(t, ExecOptions{Pipes: tt.pipes}, "cat")}
			ln, c := serveExec(t, s, tt.where, tt.tls)
			other := dialExec(t, ln, tt.tls)
			sent := make([]byte, size)
			rand.NewChaCha8([32]byte{7}).Read(sent)
			go func() {
				for b := range slices.Chunk(sent, 30_001) {
					c.Write(b)
				}
				c.(interface{ CloseWrite() error }).CloseWrite()
			}()
			var got bytes.Buffer
			_, err := io.CopyBuffer(struct{ io.Writer }{&got}, struct{ io.Reader }{c}, make([]byte, chunkSize)) // which holds a whole record
			if err != nil || !bytes.Equal(got.Bytes(), sent) {
				t.Errorf("got %d bytes of %d, %v", got.Len(), size, err)
			}
			end := ev.wait(t, "disconnect", kindIs(stats.Disconnect))
			if end.Cause != causePeerClosed || end.Err != "" {
				t.Errorf("got %+v", end)
			}
			want := uint64(0)
			if tt.counted {
				want = size
			}
			if end.BytesIn != want || end.BytesOut != want {
				t.Errorf("counted %d in and %d out, want %d", end.BytesIn, end.BytesOut, want)
			}
			other.Write([]byte("x"))
			readFull(t, other, 1)
		})
	}
}

// serveExec starts s and connects to it.
func serveExec(t *testing.T, s *Server, where string, secured bool) (net.Listener, net.Conn) {
	t.Helper()
	if secured {
		s.TLS = selfSigned(t)
	}
	ln := serve(t, s, where)
	return ln, dialExec(t, ln, secured)
}

func dialExec(t *testing.T, ln net.Listener, secured bool) net.Conn {
	t.Helper()
	c := connect(t, ln)
	if secured {
		return tls.Client(c, &tls.Config{InsecureSkipVerify: true})
	}
	return c
}

func TestTheEndOfACommand(t *testing.T) {
	for _, tt := range []struct {
		name, script string
		sends        string // what the client sends, and then ends its side unless it ends in "..."
		want         string // what it gets, and then the end
		cause, err   string
	}{
		{"exits early", "head -c 3", strings.Repeat("abc", 50_000) + "...", "abc", causeDone, ""},
		{"fails", "echo out; exit 3", "...", "out\n", causeCommand, "exec sh: exit status 3"},
		{"fails with input unread", "echo out; exit 3", strings.Repeat("x", 100_000) + "...", "out\n", causeCommand, "exec sh: exit status 3"},
		{"kills itself", "echo out; kill -9 $$", "...", "out\n", causeCommand, "exec sh: signal: killed"},
		{"answers after the end of its input", "cat >/dev/null; echo done", "input", "done\n", causePeerClosed, ""},
		{"leaves a child behind", "sleep 1000 & echo out", "...", "out\n", causeDone, ""},
		{"leaves a child that ignores SIGHUP", "trap '' HUP; sleep 1000 & echo out", "...", "out\n", causeDone, ""},
		{"leaves a child in a session of its own", "setsid sleep 0.5 & echo out", "...", "out\n", causeDone, ""},
		{"does not read", "echo out", "...", "out\n", causeDone, ""},
		{"writes much at the end", "head -c 1000000 /dev/zero | tr '\\0' x", "...", strings.Repeat("x", 1_000_000), causeDone, ""},
	} {
		for _, tr := range execTransports[1:4] {
			t.Run(tt.name+" over "+tr.name, func(t *testing.T) {
				ev := newEvents()
				s := &Server{Sink: ev, Handler: command(t, ExecOptions{Grace: 200 * time.Millisecond}, "sh", "-c", tt.script)}
				_, c := serveExec(t, s, tr.where, tr.tls)
				sends, stays := strings.CutSuffix(tt.sends, "...")
				go func() {
					io.WriteString(c, sends)
					if !stays {
						c.(interface{ CloseWrite() error }).CloseWrite()
					}
				}()
				if got, err := io.ReadAll(c); string(got) != tt.want || err != nil {
					t.Errorf("got %.40q (%d bytes), %v; want %.40q", got, len(got), err, tt.want)
				}
				c.Close()
				end := ev.wait(t, "disconnect", kindIs(stats.Disconnect))
				if end.Cause == causePeerClosed && tr.tls && tt.cause == causeDone { // it saw the end before the command had exited
					end.Cause = causeDone
				}
				if end.Cause != tt.cause || end.Err != tt.err {
					t.Errorf("ended as %q, %q; want %q, %q", end.Cause, end.Err, tt.cause, tt.err)
				}
			})
		}
	}
}

func TestACommandEndsWithItsConnection(t *testing.T) {
	for i, tt := range []struct{ name, script string }{
		{"that reads", "echo $$; cat >/dev/null; sleep 1000"},
		{"that only waits", "echo $$; exec sleep 1000"},
		{"that ignores SIGHUP", "trap '' HUP; echo $$; exec sleep 1000"},
		{"with a child", "sleep 1000 & echo $!; wait"},
		{"with a child that ignores SIGHUP", "(trap '' HUP; exec sleep 1000) & echo $!; wait"},
		{"that is stopped", "echo $$; kill -STOP $$"},
	} {
		for _, tr := range execTransports[1:4] {
			ways := []string{"peer resets", "cut", "idle"}
			if i > 1 || tr.name == "unix" { // of which nobody knows whether it is idle
				ways = ways[:2]
			}
			for _, way := range ways {
				t.Run(tt.name+" over "+tr.name+": "+way, func(t *testing.T) {
					ev := newEvents()
					s := &Server{Sink: ev, Handler: command(t, ExecOptions{Grace: 150 * time.Millisecond}, "sh", "-c", tt.script)}
					_, c := serveExec(t, s, tr.where, tr.tls)
					lines := bufio.NewReader(c)
					pid, err := lines.ReadString('\n')
					if err != nil {
						t.Fatal(err)
					}
					switch way {
					case "peer resets":
						if tc, ok := secure.NetConn(c).(*net.TCPConn); ok {
							tc.SetLinger(0)
						}
						secure.NetConn(c).Close()
					case "cut":
						s.Cut(1)
					case "idle":
						s.SetLimits(Limits{IdleTimeout: 100 * time.Millisecond})
					}
					end := ev.wait(t, "disconnect", kindIs(stats.Disconnect))
					causes := map[string][]string{"peer resets": {causePeerReset, causePeerClosed}, "cut": {causeCut}, "idle": {causeIdle}}
					if !slices.Contains(causes[way], end.Cause) {
						t.Errorf("ended as %q: %s", end.Cause, end.Err)
					}
					if way != "peer resets" {
						if _, err := lines.ReadByte(); err == nil {
							t.Error("the connection goes on")
						}
					}
					gone(t, strings.TrimSpace(pid))
				})
			}
		}
	}
}

func TestACommandThatDiesOfAResetIsNotToBlame(t *testing.T) {
	ev := newEvents()
	ln := serve(t, &Server{Sink: ev, Handler: command(t, ExecOptions{}, "cat")}, "0")
	for id := range uint64(30) { // cat or the server may be the first to know
		c := connect(t, ln).(*net.TCPConn)
		c.Write([]byte("x"))
		readFull(t, c, 1)
		c.SetLinger(0)
		c.Close()
		end := ev.wait(t, "disconnect", func(e stats.Event) bool { return e.Kind == stats.Disconnect && e.Conn == id+1 })
		if end.Cause != causePeerReset || end.BytesIn != 1 || end.BytesOut != 1 {
			t.Fatalf("got %+v", end)
		}
	}
}

func TestAStoppedCommandHearsThatItShallEnd(t *testing.T) {
	ev := newEvents()
	s := &Server{Sink: ev, Handler: command(t, ExecOptions{Grace: time.Hour}, "sh", "-c", "echo here; kill -STOP $$")}
	c := connect(t, serve(t, s, "0"))
	readFull(t, c, 5)
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
	ev.wait(t, "disconnect", kindIs(stats.Disconnect))
}

func TestASocketIsGivenInBlockingModeAndTakenBackWithout(t *testing.T) {
	inner := command(t, ExecOptions{}, "cat", "/proc/self/fdinfo/0")
	back := make(chan int, 1)
	s := &Server{Handler: HandlerFunc(func(ctx context.Context, c *Conn) error {
		err := inner.ServeConn(ctx, c)
		c.control(func(fd int) error {
			flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
			back <- flags
			return err
		})
		return err
	})}
	got, err := io.ReadAll(connect(t, serve(t, s, "0")))
	if err != nil || !bytes.Contains(got, []byte("flags:\t02\n")) {
		t.Errorf("the command has %q, %v; want O_RDWR alone", got, err)
	}
	if flags := <-back; flags&unix.O_NONBLOCK == 0 {
		t.Errorf("afterwards the flags are %#o, without O_NONBLOCK", flags)
	}
}

func TestShutdownEndsCommands(t *testing.T) {
	ev := newEvents()
	s := &Server{Sink: ev, Handler: command(t, ExecOptions{}, "sh", "-c", "trap 'echo bye; exit' HUP; echo here; while :; do sleep 0.01; done")}
	ln, err := ListenConfig{}.Listen(t.Context(), endpoint(t, "0"))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	c := connect(t, ln)
	readFull(t, c, 5)
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	<-served
	if got, err := io.ReadAll(c); string(got) != "bye\n" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if end := ev.wait(t, "disconnect", kindIs(stats.Disconnect)); end.Cause != causeDrained || end.BytesOut != 9 {
		t.Errorf("got %+v", end)
	}
}

func TestACommandAtWorkIsNotIdle(t *testing.T) {
	s := &Server{Limits: Limits{IdleTimeout: 400 * time.Millisecond, FirstByteTimeout: time.Second},
		Handler: command(t, ExecOptions{}, "sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do read x; echo $i; sleep 0.1; done")}
	c := connect(t, serve(t, s, "0"))
	io.WriteString(c, strings.Repeat("\n", 12))
	if got, err := io.ReadAll(c); err != nil || !strings.HasSuffix(string(got), "\n12\n") {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestACommandThatReadsLateLosesNothing(t *testing.T) {
	for _, tr := range execTransports[1:4] {
		t.Run(tr.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "got")
			ev := newEvents()
			s := &Server{Sink: ev, Handler: command(t, ExecOptions{}, "sh", "-c", "sleep 0.2; cat >$0; sleep 0.2; echo end >>$0", file)}
			_, c := serveExec(t, s, tr.where, tr.tls)
			sent := bytes.Repeat([]byte("0123456789"), 5000)
			if _, err := c.Write(sent); err != nil {
				t.Fatal(err)
			}
			c.Close() // at once: to the command it is the end of its input
			if end := ev.wait(t, "disconnect", kindIs(stats.Disconnect)); end.Cause != causePeerClosed {
				t.Errorf("got %+v", end)
			}
			if got, err := os.ReadFile(file); string(got) != string(sent)+"end\n" || err != nil {
				t.Errorf("got %d bytes, %v; want %d and the command's end", len(got), err, len(sent))
			}
		})
	}
}

func TestACommandCanEndItsOutputAndReadOn(t *testing.T) {
	for _, tr := range execTransports[3:5] { // those with pipes: of a socket it would have to call shutdown(2)
		t.Run(tr.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "got")
			ev := newEvents()
			s := &Server{Sink: ev, Handler: command(t, ExecOptions{Pipes: true}, "sh", "-c", "echo bye; exec >&-; exec cat >$0", file)}
			_, c := serveExec(t, s, tr.where, tr.tls)
			if got, err := io.ReadAll(c); string(got) != "bye\n" || err != nil {
				t.Errorf("got %q, %v", got, err)
			}
			io.WriteString(c, "after your end")
			c.(interface{ CloseWrite() error }).CloseWrite()
			ev.wait(t, "disconnect", kindIs(stats.Disconnect))
			if got, _ := os.ReadFile(file); string(got) != "after your end" {
				t.Errorf("the command got %q", got)
			}
		})
	}
}

func TestACommandThatClosesItsInputIsStillHeard(t *testing.T) {
	ev := newEvents()
	s := &Server{Sink: ev, Handler: command(t, ExecOptions{}, "sh", "-c", "exec <&-; sleep 0.2; echo heard")}
	_, c := serveExec(t, s, "tls://0", true)
	go c.Write(make([]byte, 1<<20)) // more than pipe and sockets hold
	if got, err := bufio.NewReader(c).ReadString('\n'); got != "heard\n" {
		t.Errorf("got %q, %v", got, err)
	}
}

// buffer is a writer that two goroutines use.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func TestACommandsErrorsGoWhereTheyAreWanted(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "errors"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var errs buffer
	for _, tt := range []struct {
		name string
		w    io.Writer
		got  func() string
	}{
		{"nowhere", nil, func() string { return "oops\n" }},
		{"a writer", &errs, errs.String},
		{"a file", file, func() string { b, _ := os.ReadFile(file.Name()); return string(b) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ev := newEvents()
			c := connect(t, serve(t, &Server{Sink: ev, Handler: command(t, ExecOptions{Stderr: tt.w}, "sh", "-c", "echo oops >&2; echo out")}, "0"))
			if got, err := io.ReadAll(c); string(got) != "out\n" || err != nil {
				t.Errorf("the client got %q, %v", got, err)
			}
			c.Close()
			ev.wait(t, "disconnect", kindIs(stats.Disconnect))
			if got := tt.got(); got != "oops\n" {
				t.Errorf("got %q", got)
			}
		})
	}
}

func TestACommandKnowsItsConnection(t *testing.T) {
	t.Setenv("FT_UID", "4711") // of a connection that this server is run for
	t.Setenv("FT_CONN", "99")
	script := `echo "$FT_CONN $FT_PROTOCOL $FT_LOCAL $FT_REMOTE $FT_PID $FT_UID $FT_GID $MORE"`
	for _, where := range []string{"0", "unix://@stream-test-env"} {
		ln := serve(t, &Server{Handler: command(t, ExecOptions{Env: []string{"MORE=more"}}, "sh", "-c", script)}, where)
		c := connect(t, ln)
		want := fmt.Sprintf("1 tcp %s %s    more\n", ln.Addr(), c.LocalAddr())
		if ln.Addr().Network() == "unix" {
			want = fmt.Sprintf("1 unix %s  %d %d %d more\n", ln.Addr(), os.Getpid(), os.Geteuid(), os.Getegid())
		}
		if got, err := io.ReadAll(c); string(got) != want || err != nil {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
	}
}

func TestACommandRunsInItsDirectory(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(connect(t, serve(t, &Server{Handler: command(t, ExecOptions{Dir: dir}, "pwd")}, "0"))); string(got) != dir+"\n" {
		t.Errorf("got %q, %v; want %s", got, err, dir)
	}
}

func TestACommandThatIsNotThere(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	os.WriteFile(plain, []byte("text"), 0o600)
	for _, tt := range []struct{ name, want string }{
		{"no-such-command", "exec no-such-command: executable file not found in $PATH"},
		{plain, "exec " + plain + ": permission denied"},
		{dir, "exec " + dir + ": is a directory"},
	} {
		if _, err := Exec([]string{tt.name}, ExecOptions{}); err == nil || err.Error() != tt.want {
			t.Errorf("got %v, want %s", err, tt.want)
		}
	}
	if _, err := Exec(nil, ExecOptions{}); err == nil {
		t.Error("no command at all is none")
	}

	script := filepath.Join(dir, "script")
	os.WriteFile(script, []byte("#!/bin/sh\n"), 0o700)
	ev := newEvents()
	s := &Server{Sink: ev, Handler: command(t, ExecOptions{}, script)}
	ln := serve(t, s, "0")
	os.Remove(script)
	for _, secured := range []bool{false, true} { // the socket itself, and pipes
		if secured {
			ln = serve(t, &Server{Sink: ev, TLS: selfSigned(t), Handler: s.Handler}, "tls://0")
		}
		c := dialExec(t, ln, secured)
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("got something of a command that is not there")
		}
		failed := ev.wait(t, "error", kindIs(stats.Error))
		if !strings.Contains(failed.Err, "exec "+script+": ") || !strings.Contains(failed.Err, "no such file") || failed.Tuple.Remote.IsZero() {
			t.Errorf("got %+v", failed)
		}
		if end := ev.wait(t, "disconnect", kindIs(stats.Disconnect)); end.Cause != causeFailed {
			t.Errorf("got %+v", end)
		}
		ev.clear()
	}
}

func TestWhatIsSentToAllDoesNotReachASocketThatWasGivenAway(t *testing.T) {
	s := &Server{Handler: command(t, ExecOptions{}, "sh", "-c", "echo here; exec cat")}
	c := connect(t, serve(t, s, "0"))
	readFull(t, c, 5)
	if n := s.Broadcast([]byte("x")); n != 0 {
		t.Errorf("reached %d", n)
	}
	if err := s.Send(1, []byte("x")); !errors.Is(err, ErrNoConn) {
		t.Errorf("got %v", err)
	}
}

func TestAGivenSocketIsCountedToTheByteAlsoWhenReset(t *testing.T) {
	ev := newEvents()
	s := &Server{Sink: ev, Handler: command(t, ExecOptions{}, "sh", "-c", "head -c 1000 >/dev/null; echo 12345; exec sleep 1000")}
	for i, fin := range []bool{false, true} {
		c := connect(t, serve(t, s, "0")).(*net.TCPConn)
		c.Write(make([]byte, 1000))
		readFull(t, c, 6)
		if fin {
			c.CloseWrite()
			waitFor(t, "the FIN", func() bool { return s.snapshot()[0].given.fin.Load() })
		}
		c.SetLinger(0)
		c.Close()
		end := ev.wait(t, "disconnect", func(e stats.Event) bool { return e.Kind == stats.Disconnect && e.Conn == uint64(i+1) })
		if end.BytesIn != 1000 || end.BytesOut != 6 || end.Cause != causePeerReset || end.Err == "" {
			t.Errorf("after FIN %v: %+v", fin, end)
		}
	}
}
