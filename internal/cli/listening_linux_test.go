package cli

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// listening is an ft listen, or forward, that runs as a process of its own.
type listening struct {
	*exec.Cmd
	address string // of its first socket
	mu      sync.Mutex
	said    bytes.Buffer // on standard error
	changed chan struct{}
	ended   chan struct{} // closed when it is reaped
}

// startListening starts ft listen and waits until it says where it listens.
func startListening(t *testing.T, args ...string) *listening {
	t.Helper()
	return startServing(t, append([]string{"listen"}, args...)...)
}

// startForward starts ft forward and waits until it says where it listens.
func startForward(t *testing.T, args ...string) *listening {
	t.Helper()
	return startServing(t, append([]string{"forward"}, args...)...)
}

// startServing starts an ft that listens.
func startServing(t *testing.T, args ...string) *listening {
	t.Helper()
	l := &listening{Cmd: exec.Command("ft", args...), changed: make(chan struct{}), ended: make(chan struct{})}
	stderr, err := l.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if l.Stdin == nil {
		l.Stdin, _ = os.Open(os.DevNull)
	}
	if err := l.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(l.ended)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			l.mu.Lock()
			l.said.WriteString(lines.Text() + "\n")
			close(l.changed)
			l.changed = make(chan struct{})
			l.mu.Unlock()
		}
		l.Wait()
	}()
	t.Cleanup(func() {
		l.Process.Kill()
		<-l.ended
	})
	line := l.await(t, "listening on ")
	_, l.address, _ = strings.Cut(line, "listening on ")
	_, l.address, _ = strings.Cut(l.address, " ")
	l.address, _, _ = strings.Cut(l.address, ": ")
	return l
}

// await waits until it has said the text, and returns the line.
func (l *listening) await(t *testing.T, text string) string {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		l.mu.Lock()
		said, changed := l.said.String(), l.changed
		l.mu.Unlock()
		for line := range strings.Lines(said) {
			if strings.Contains(line, text) {
				return strings.TrimSpace(line)
			}
		}
		select {
		case <-changed:
		case <-l.ended:
			t.Fatalf("ft %s ended without saying %q:\n%s", l.Args[1], text, said)
		case <-timeout:
			t.Fatalf("ft %s did not say %q:\n%.1000s", l.Args[1], text, said)
		}
	}
}

// awaitTimes waits until it has said the text so many times.
func (l *listening) awaitTimes(t *testing.T, text string, times int) {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		l.mu.Lock()
		said, changed := l.said.String(), l.changed
		l.mu.Unlock()
		if strings.Count(said, text) >= times {
			return
		}
		select {
		case <-changed:
		case <-l.ended:
			t.Fatalf("ft %s ended without saying %q:\n%s", l.Args[1], text, said)
		case <-timeout:
			t.Fatalf("ft %s did not say %q %d times:\n%.1000s", l.Args[1], text, times, said)
		}
	}
}

// stop ends it by SIGTERM and returns its exit code.
func (l *listening) stop(t *testing.T) int {
	t.Helper()
	l.Process.Signal(syscall.SIGTERM)
	return l.exitCode(t)
}

// exitCode waits for its end.
func (l *listening) exitCode(t *testing.T) int {
	t.Helper()
	select {
	case <-l.ended:
	case <-time.After(20 * time.Second):
		t.Fatalf("ft %s did not end:\n%.1000s", l.Args[1], &l.said)
	}
	return l.ProcessState.ExitCode()
}
