package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// A Process is a program that was started in a host.
type Process struct {
	host   *Host
	cmd    *exec.Cmd
	output output
	ended  chan struct{}
	err    error // of cmd.Wait, once ended is closed
}

// Start starts a program in the host. When the test ends it is killed, and what it
// wrote to standard output and error is logged if the test failed; what it started
// itself lives as long as the host. Start a server in the foreground, and set
// cmd.Stdout rather than read from cmd.StdoutPipe.
//
// Where that is not what is wanted, any method of an [exec.Cmd] works inside [Host.Do].
func (h *Host) Start(t testing.TB, cmd *exec.Cmd) *Process {
	t.Helper()
	p := &Process{host: h, cmd: cmd, ended: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = &p.output
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &p.output
	}
	if cmd.WaitDelay == 0 {
		cmd.WaitDelay = 100 * time.Millisecond
	}
	h.must(t, "start "+cmd.String(), func() error {
		return withAdvice(cmd, cmd.Start())
	})
	go func() {
		defer close(p.ended)
		// A daemon may hold the output after the program has ended well.
		if err := cmd.Wait(); !errors.Is(err, exec.ErrWaitDelay) {
			p.err = err
		}
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-p.ended
		if t.Failed() {
			t.Logf("lab: host %s: %s: %v\n%s", h.name, cmd, cmd.ProcessState, p.Output())
		}
	})
	return p
}

// Pid returns the process's number, as the test sees it.
func (p *Process) Pid() int {
	return p.cmd.Process.Pid
}

// Signal sends a signal; the error is [os.ErrProcessDone] once the program has ended.
func (p *Process) Signal(s os.Signal) error {
	return p.cmd.Process.Signal(s)
}

// Wait waits until the program ends. The error is that of [exec.Cmd.Wait]: nil for exit code 0.
func (p *Process) Wait() error {
	<-p.ended
	return p.err
}

// Output returns what the program has written so far.
func (p *Process) Output() string {
	return p.output.String()
}

// WaitListening waits until somebody in the process's host listens on a port of
// network "tcp", or has one of network "udp" bound, on whichever address. It fails
// the test after ten seconds, or at once when the program ends with an error.
func (p *Process) WaitListening(t testing.TB, network string, port uint16) {
	t.Helper()
	const patience = 10 * time.Second
	deadline := time.After(patience)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	ended := p.ended
	for !p.host.listening(t, network, port) {
		select {
		case <-tick.C:
		case <-ended:
			if p.err != nil {
				t.Fatalf("lab: host %s: %s ended before it listened on %s port %d: %v", p.host.name, p.cmd, network, port, p.err)
			}
			ended = nil // it may have left a daemon behind
		case <-deadline:
			t.Fatalf("lab: host %s: %s does not listen on %s port %d after %v", p.host.name, p.cmd, network, port, patience)
		}
	}
}

// listening looks for the port in the host's socket tables (proc_pid_net(5)): few
// sockets are in a host, so the slow and simple way will do.
func (h *Host) listening(t testing.TB, network string, port uint16) bool {
	t.Helper()
	states := map[string]string{"tcp": "0A", "udp": "07"} // TCP_LISTEN, TCP_CLOSE: include/net/tcp_states.h
	state, ok := states[network]
	if !ok {
		t.Fatalf("lab: network %q: want tcp or udp", network)
	}
	suffix := fmt.Sprintf(":%04X", port)
	found := false
	h.must(t, "read the socket tables", func() error {
		for _, table := range []string{network, network + "6"} {
			text, err := os.ReadFile("/proc/thread-self/net/" + table)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(text)) {
				fields := strings.Fields(line) // slot, local address, remote address, state, ...
				if len(fields) > 3 && strings.HasSuffix(fields[1], suffix) && fields[3] == state {
					found = true
				}
			}
		}
		return nil
	})
	return found
}

// output is a buffer that is read while it is written.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// withAdvice adds the command that installs a program to the error that it is missing.
func withAdvice(cmd *exec.Cmd, err error) error {
	if !errors.Is(err, exec.ErrNotFound) && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return fmt.Errorf("%w; install it: apt-get install %s", err, debianPackage(filepath.Base(cmd.Path)))
}

// debianPackage returns the package that a program comes with; most are named alike.
func debianPackage(program string) string {
	switch program {
	case "nft":
		return "nftables"
	case "ip", "ss", "tc":
		return "iproute2"
	case "nc":
		return "netcat-openbsd"
	case "ping":
		return "iputils-ping"
	}
	return program
}
