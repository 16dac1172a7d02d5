package join

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestStdioIsReadAndWrittenToItsEnd(t *testing.T) {
	for name, blocking := range map[string]bool{"pipes": false, "blocking pipes": true} {
		t.Run(name, func(t *testing.T) {
			s, peerA := stdioPair(t, blocking)
			b, peerB := tcpPair(t)
			exchange(t, run(t.Context(), s, b, Options{}), peerA, peerB)
		})
	}
}

func TestSocketpairsPassRandomBytes(t *testing.T) {
	a, peerA := socketPair(t, unix.SOCK_STREAM)
	b, peerB := tcpPair(t)
	end, err := net.FileConn(a)
	if err != nil {
		t.Fatal(err)
	}
	peer, err := net.FileConn(peerA)
	if err != nil {
		t.Fatal(err)
	}
	a.Close()
	peerA.Close()
	bounded(t, end, peer)
	exchange(t, run(t.Context(), end, b, Options{}), peer, peerB)
}

func TestATerminalPassesBytesAndDoesNotHoldUpTheEnd(t *testing.T) {
	master, slave := terminal(t)
	b, peerB := tcpPair(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := run(ctx, Stdio(slave, again(t, slave)), b, Options{})
	write(t, master, "typed")
	wantRead(t, peerB, "typed")
	write(t, peerB, "shown")
	wantRead(t, master, "shown")
	cancel()
	o := wait(t, done)
	wantError(t, o.err, context.Canceled)
	wantBytes(t, o.result, 5, 5)
}

func TestATerminalThatHangsUpEndsLikeAFile(t *testing.T) {
	master, slave := terminal(t)
	b, peerB := tcpPair(t)
	done := run(t.Context(), Stdio(slave, again(t, slave)), b, Options{})
	master.Close()
	wantAll(t, peerB, "")
	closeWrite(t, peerB)
	o := wait(t, done)
	if o.err != nil && !errors.Is(o.err, unix.EIO) {
		t.Errorf("got %v, want nil or %v", o.err, unix.EIO)
	}
}

func TestABlockedPipeDoesNotHoldUpTheEnd(t *testing.T) {
	for _, blocking := range []bool{false, true} {
		s, _ := stdioPair(t, blocking)
		b, peerB := tcpPair(t)
		ctx, cancel := context.WithCancel(t.Context())
		done := run(ctx, s, b, Options{})
		fill(t, peerB) // nobody reads standard output
		cancel()
		o := wait(t, done)
		wantError(t, o.err, context.Canceled)
		wantError(t, o.result.BToA.Err, context.Canceled)
	}
}

func TestClosedStandardOutputEndsBothWithAnError(t *testing.T) {
	closedPipe := func(t *testing.T) *os.File {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
		return blockingFile(t, w)
	}
	badDescriptor := func(t *testing.T) *os.File {
		f := closedPipe(t)
		unix.Close(int(f.Fd()))
		return f
	}
	closedFile := func(t *testing.T) *os.File {
		f := closedPipe(t)
		f.Close()
		return f
	}
	readOnly := func(t *testing.T) *os.File {
		f, err := os.Open("/dev/null")
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	full := func(t *testing.T) *os.File {
		f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	tests := map[string]struct {
		out  func(t *testing.T) *os.File
		want error
	}{
		"nobody reads":   {closedPipe, unix.EPIPE},
		"bad descriptor": {badDescriptor, unix.EBADF},
		"closed":         {closedFile, os.ErrClosed},
		"read-only":      {readOnly, unix.EBADF},
		"full":           {full, unix.ENOSPC},
	}
	for name, test := range tests {
		for network, pair := range map[string]pair{"tcp": tcpPair, "tls": tlsPair} {
			t.Run(name+"/"+network, func(t *testing.T) {
				in, typed, err := os.Pipe()
				if err != nil {
					t.Fatal(err)
				}
				defer typed.Close()
				b, peerB := pair(t)
				done := run(t.Context(), Stdio(blockingFile(t, in), test.out(t)), b, Options{})
				write(t, peerB, "answer")
				o := wait(t, done)
				wantError(t, o.err, test.want)
				wantError(t, o.result.BToA.Err, test.want)
				wantBytes(t, o.result, 0, 0)
				if _, err := peerB.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
					t.Errorf("the peer, whose answer was dropped, got %v", err)
				}
			})
		}
	}
}

func TestStandardInputThatCannotBeReadIsAtItsEnd(t *testing.T) {
	closed := func(t *testing.T) *os.File {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		w.Close()
		r.Close()
		return r
	}
	directory := func(t *testing.T) *os.File {
		f, err := os.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	empty := func(t *testing.T) *os.File {
		f, err := os.Open("/dev/null")
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	tests := map[string]struct {
		in   func(t *testing.T) *os.File
		want error
	}{
		"closed":    {closed, os.ErrClosed},
		"directory": {directory, unix.EISDIR},
		"empty":     {empty, nil},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			shown, out, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer shown.Close()
			b, peerB := tcpPair(t)
			done := run(t.Context(), Stdio(test.in(t), out), b, Options{})
			wantAll(t, peerB, "")
			write(t, peerB, "answer")
			closeWrite(t, peerB)
			wantAll(t, shown, "answer")
			o := wait(t, done)
			wantError(t, o.err, test.want)
			wantBytes(t, o.result, 0, 6)
		})
	}
}

func TestABrokenPipeOnDescriptor1IsAnErrorAndNoSignal(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	program := exec.CommandContext(t.Context(), os.Args[0])
	program.Env = append(os.Environ(), "JOIN_TEST_CONNECT="+l.Addr().String())
	var stderr strings.Builder
	program.Stderr = &stderr
	typed, err := program.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer typed.Close()
	shown, err := program.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	shown.Close()
	write(t, peer, "answer")
	program.Wait()
	if code := program.ProcessState.ExitCode(); code != 3 || !strings.Contains(stderr.String(), "broken pipe") {
		t.Errorf("%v, %q, want exit status 3 and broken pipe", program.ProcessState, stderr.String())
	}
}

func TestAPipeThatAnotherProcessMadeNonblockingStillWorks(t *testing.T) {
	s, peerA := stdioPair(t, true)
	for _, f := range []*os.File{s.(*stdio).in.(*patientReader).f, s.(*stdio).outFile} {
		if err := unix.SetNonblock(int(f.Fd()), true); err != nil {
			t.Fatal(err)
		}
	}
	b, peerB := tcpPair(t)
	exchange(t, run(t.Context(), s, b, Options{}), peerA, peerB)
}

func TestAFileIsSentAndReceivedThroughStdio(t *testing.T) {
	directory := t.TempDir()
	content := random(1, 3<<20)
	name := filepath.Join(directory, "in")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(filepath.Join(directory, "out"))
	if err != nil {
		t.Fatal(err)
	}
	b, peerB := tcpPair(t)
	done := run(t.Context(), Stdio(in, out), b, Options{})
	go func() {
		io.Copy(peerB, peerB)
		peerB.(closeWriter).CloseWrite()
	}()
	if o := wait(t, done); o.err != nil {
		t.Fatal(o.err)
	}
	if got, err := os.ReadFile(out.Name()); err != nil || string(got) != string(content) {
		t.Errorf("%d bytes came back, %v, want the %d sent", len(got), err, len(content))
	}
}

func TestAKeptStdioServesOnePeerAfterTheOther(t *testing.T) {
	for _, blocking := range []bool{false, true} {
		s, peerA := stdioPair(t, blocking)
		for _, text := range []string{"first", "second", "third"} {
			b, peerB := tcpPair(t)
			done := run(t.Context(), Keep(s), b, Options{QuitWithB: true})
			write(t, peerA, text)
			wantRead(t, peerB, text)
			write(t, peerB, text)
			closeWrite(t, peerB)
			wantRead(t, peerA, text)
			if o := wait(t, done); o.err != nil {
				t.Fatal(o.err)
			}
		}
		closeWrite(t, peerA)
		b, peerB := tcpPair(t)
		done := run(t.Context(), Keep(s), b, Options{})
		wantAll(t, peerB, "")
		closeWrite(t, peerB)
		if o := wait(t, done); o.err != nil {
			t.Fatal(o.err)
		}
	}
}

func TestIdleEndsWhatATerminalHolds(t *testing.T) {
	_, slave := terminal(t)
	b, _ := tcpPair(t)
	done := run(t.Context(), Stdio(slave, again(t, slave)), b, Options{Idle: 20 * time.Millisecond})
	wantError(t, wait(t, done).err, ErrIdle)
}

func TestASlowPeerIsNotIdle(t *testing.T) {
	a, peerA := unixPair(t)
	b, peerB := unixPair(t)
	done := run(t.Context(), a, b, Options{Idle: 600 * time.Millisecond})
	content := random(1, 600_000)
	go func() {
		peerA.Write(content)
		peerA.(closeWriter).CloseWrite()
	}()
	var got []byte
	pause := time.NewTicker(60 * time.Millisecond) // a write of 256 KiB takes a second
	defer pause.Stop()
	for piece := make([]byte, 16<<10); ; <-pause.C {
		n, err := peerB.Read(piece)
		got = append(got, piece[:n]...)
		if err != nil {
			break
		}
	}
	closeWrite(t, peerB)
	if o := wait(t, done); o.err != nil || string(got) != string(content) {
		t.Errorf("%d bytes came of %d, %v", len(got), len(content), o.err)
	}
}

func TestTheNetcatsHalfCloseWithUs(t *testing.T) {
	for _, command := range [][]string{{"nc.openbsd", "-N"}, {"ncat"}, {"socat", "-t10", "-"}} {
		t.Run(command[0], func(t *testing.T) {
			if _, err := exec.LookPath(command[0]); err != nil {
				t.Fatalf("%s is missing: apt-get install netcat-openbsd ncat socat", command[0])
			}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			host, port, _ := net.SplitHostPort(l.Addr().String())
			if command[0] == "socat" {
				command = append(command, "tcp:"+host+":"+port)
			} else {
				command = append(command, host, port)
			}
			program := exec.CommandContext(t.Context(), command[0], command[1:]...)
			program.Stdin = strings.NewReader("question")
			var shown strings.Builder
			program.Stdout = &shown
			if err := program.Start(); err != nil {
				t.Fatal(err)
			}
			b, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			a, peerA := tcpPair(t)
			done := run(t.Context(), a, b, Options{})
			wantAll(t, peerA, "question")
			write(t, peerA, "late answer")
			closeWrite(t, peerA)
			if o := wait(t, done); o.err != nil {
				t.Error(o.err)
			}
			if err := program.Wait(); err != nil || shown.String() != "late answer" {
				t.Errorf("%s: %v, showed %q", command[0], err, shown.String())
			}
		})
	}
}
