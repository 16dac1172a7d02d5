package lab

import (
	"errors"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestProgramsOfTwoHostsTalk(t *testing.T) {
	a, b := NewHost(t, "a"), NewHost(t, "b")
	Link(t, a, b, "10.0.0.0/24")
	for _, tt := range []struct {
		network        string
		server, client []string
	}{
		{"tcp", []string{"-l", "80"}, []string{"-N", "10.0.0.2", "80"}},
		{"udp", []string{"-u", "-l", "80"}, []string{"-u", "-w1", "10.0.0.2", "80"}},
	} {
		t.Run(tt.network, func(t *testing.T) {
			server := b.Start(t, exec.Command("nc", tt.server...))
			server.WaitListening(t, tt.network, 80)
			nc := exec.Command("nc", tt.client...)
			nc.Stdin = strings.NewReader("hello\n")
			a.Start(t, nc)
			eventually(t, "the server has the message", func() bool { return server.Output() == "hello\n" })
		})
	}
}

func TestServerProgramIsReached(t *testing.T) {
	a, b := NewHost(t, "a"), NewHost(t, "b")
	Link(t, a, b, "10.0.0.0/24")
	nc := exec.Command("nc", "-lk", "80")
	nc.Stdin = strings.NewReader("220 ready\n")
	b.Start(t, nc).WaitListening(t, "tcp", 80)
	conn, err := a.Dial(t.Context(), "tcp", "10.0.0.2:80")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	greeting := make([]byte, 10)
	if _, err := io.ReadFull(conn, greeting); err != nil || string(greeting) != "220 ready\n" {
		t.Errorf("greeting: got %q, %v", greeting, err)
	}
}

func TestWaitListeningFailsAtOnceWhenTheProgramEnds(t *testing.T) {
	h := NewHost(t, "h")
	p := h.Start(t, exec.Command("sh", "-c", "echo no such luck >&2; exit 3"))
	got := failure(t, func(tb testing.TB) { p.WaitListening(tb, "tcp", 80) })
	if want := "exit status 3"; !strings.Contains(got, want) {
		t.Errorf("got failure %q, want %q in it", got, want)
	}
	if got, want := p.Output(), "no such luck\n"; got != want {
		t.Errorf("output: got %q, want %q", got, want)
	}
}

func TestSignalAndWait(t *testing.T) {
	h := NewHost(t, "h")
	p := h.Start(t, exec.Command("nc", "-l", "80"))
	p.WaitListening(t, "tcp", 80)
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got, want := p.Wait(), "signal: terminated"; got == nil || got.Error() != want {
		t.Errorf("wait: got %v, want %s", got, want)
	}
}

func TestNothingIsLeftOfAClosedHost(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	var pids []int
	t.Run("lifetime", func(t *testing.T) {
		h := NewHost(t, "h")
		// A daemon: in a session of its own, its parent gone, holding on to the output.
		p := h.Start(t, exec.Command("setsid", "sh", "-c", "nc -lk 81 & echo $!"))
		p.WaitListening(t, "tcp", 81)
		daemon, err := strconv.Atoi(strings.TrimSpace(p.Output()))
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, daemon)
		server := h.Start(t, exec.Command("nc", "-lku", "80"))
		server.WaitListening(t, "udp", 80)
		pids = append(pids, server.Pid())
	})
	for _, pid := range pids {
		eventually(t, "process "+strconv.Itoa(pid)+" is gone", func() bool {
			return errors.Is(unix.Kill(pid, 0), unix.ESRCH)
		})
	}
}
