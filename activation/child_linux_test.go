package activation

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// pyCounts counts its signals, says "up" and, upon SIGTERM, what it had.
const pyCounts = `
import signal
had = {}
def count(n, _):
    had[n] = had.get(n, 0) + 1; print(signal.Signals(n).name, flush=True)
    if n == signal.SIGTERM: print(sorted(had.items())); sys.exit(5)
for n in 1, 2, 3, 6, 10, 12, 13, 14, 15, 28, 40: signal.signal(n, count)
print("up", flush=True)
while True: signal.pause()
`

func (r *testRun) waitOutput(t *testing.T, want string) {
	t.Helper()
	eventually(t, fmt.Sprintf("output %q", want), func() bool { return strings.HasSuffix(r.Output(), want) })
}

func TestParentForwardsSignals(t *testing.T) {
	r := startOne(t, python(t, strings.Replace(pyCounts, "signal.Signals(n).name", "n", 1)), asChild)
	r.waitOutput(t, "up\n")
	if r.Command(t) == r.Pid() {
		t.Fatal("the command is no child")
	}
	for _, s := range []int{1, 2, 3, 6, 10, 12, 13, 14, 28, 40, 15} {
		if err := r.Signal(syscall.Signal(s)); err != nil {
			t.Error(err)
		}
		if s != 15 {
			r.waitOutput(t, fmt.Sprintf("%d\n", s))
		}
	}
	if got, want := fmt.Sprint(r.finish(t)), "exit status 5"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	want := "[(1, 1), (2, 1), (3, 1), (6, 1), (10, 1), (12, 1), (13, 1), (14, 1), (15, 1), (28, 1), (40, 1)]\n"
	if !strings.HasSuffix(r.Output(), want) {
		t.Errorf("got %s, want %s", r.Output(), want)
	}
}

// terminal makes the run the leader of a session on a terminal, and so in the
// foreground; what is written to the terminal is typed.
func terminal(t *testing.T) (typed *os.File, option runOption) {
	t.Helper()
	typed, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { typed.Close() })
	ok(unix.IoctlSetPointerInt(int(typed.Fd()), unix.TIOCSPTLCK, 0))
	number := must(unix.IoctlGetInt(int(typed.Fd()), unix.TIOCGPTN))
	tty := must(os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0))
	t.Cleanup(func() { tty.Close() })
	return typed, func(_ *runSpec, c *exec.Cmd) {
		c.Stdin = tty
		c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	}
}

func TestKeysOfTheTerminalReachTheCommandOnce(t *testing.T) {
	inBothWays(t, func(t *testing.T, way runOption) {
		keyboard, onTerminal := terminal(t)
		r := startOne(t, python(t, pyCounts), way, onTerminal)
		r.waitOutput(t, "up\n")
		keyboard.WriteString("\x03") // Ctrl-C
		r.waitOutput(t, "SIGINT\n")
		keyboard.WriteString("\x1c") // Ctrl-\
		r.waitOutput(t, "SIGQUIT\n")
		ok(unix.IoctlSetWinsize(int(keyboard.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 7, Col: 7}))
		r.waitOutput(t, "SIGWINCH\n")
		r.Signal(syscall.SIGTERM) // is passed on after those, were they
		if got, want := fmt.Sprint(r.finish(t)), "exit status 5"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if want := "[(2, 1), (3, 1), (15, 1), (28, 1)]\n"; !strings.HasSuffix(r.Output(), want) {
			t.Errorf("got %s, want %s", r.Output(), want)
		}
	})
}

func TestSignalsBeforeTheCommandRunsAreNotLost(t *testing.T) {
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGALRM, syscall.SIGKILL} {
		for _, where := range []string{"beside a terminal", "on a terminal"} {
			t.Run(fmt.Sprint(s, " ", where), func(t *testing.T) {
				onTerminal := func(*runSpec, *exec.Cmd) {}
				if where == "on a terminal" {
					_, onTerminal = terminal(t)
				}
				r := startOne(t, []string{"sh", "-c", "ulimit -c 0; exec sleep 5"}, asChild, onTerminal, func(_ *runSpec, c *exec.Cmd) {
					c.Env = append(c.Env, fmt.Sprintf("%s=%d", signalVar, s))
				})
				if got, want := strings.TrimSuffix(fmt.Sprint(r.finish(t)), " (core dumped)"), "signal: "+s.String(); got != want {
					t.Errorf("got %s, want %s", got, want)
				}
			})
		}
	}
}

// A signal to the child alone, as when a key is typed before it is the command.
func TestChildKilledBeforeItIsTheCommand(t *testing.T) {
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP} {
		r := startOne(t, []string{"sleep", "5"}, asChild, func(_ *runSpec, c *exec.Cmd) {
			c.Env = append(c.Env, fmt.Sprintf("%s=%d", childSignalVar, s))
		})
		if got, want := fmt.Sprint(r.finish(t)), "signal: "+s.String(); got != want || r.Errors() != "" {
			t.Errorf("got %s, %q, want %s", got, r.Errors(), want)
		}
	}
}

func TestChildThatDoesNotComeUp(t *testing.T) {
	script := filepath.Join(t.TempDir(), "supervisor")
	r := startOne(t, []string{"sleep", "5"}, asChild, func(s *runSpec, _ *exec.Cmd) {
		s.Supervisor = script // in which the child alone has the socket at descriptor 4
		text := "#!/bin/sh\n[ -e /proc/$$/fd/4 ] && kill -INT $$\nexec " + must(os.Executable()) + "\n"
		ok(os.WriteFile(script, []byte(text), 0o755))
	})
	if got, want := fmt.Sprint(r.finish(t)), "signal: interrupt"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if _, err := os.Stat(r.started); err == nil {
		t.Error("Started was called")
	}
}

// After its parent's death the command goes on, and so do its binds, but to the
// port: it is taken, by the socket that the command has at descriptor 3.
func TestKilledParent(t *testing.T) {
	go_ := filepath.Join(t.TempDir(), "go")
	r := startOne(t, append(python(t, `
def bound(port):
    s = socket.socket()
    try: s.bind(("127.0.0.1", port)); return "bound"
    except OSError as e: return errno.errorcode[e.errno]
out = os.open(sys.argv[1] + ".out", os.O_CREAT|os.O_WRONLY, 0o644)
os.write(out, f"{bound(8123)} {bound(9000)}\n".encode())
print("up", flush=True)
while not os.path.exists(sys.argv[1]): time.sleep(0.01)
os.write(out, f"{bound(8123)} {bound(9000)}\n".encode())
while os.path.exists(sys.argv[1]): time.sleep(0.01)
`), go_), asChild)
	r.waitOutput(t, "up\n")
	pid := r.Command(t)
	r.Signal(syscall.SIGKILL)
	r.Wait()
	if err := os.WriteFile(go_, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	want := "bound bound\nEADDRINUSE bound\n"
	eventually(t, want, func() bool { got, _ := os.ReadFile(go_ + ".out"); return string(got) == want })
	if _, err := os.Stat(r.ended); err == nil || r.free(t) {
		t.Errorf("Ended was called, %v, or the port is free while the command (%d) lives", err, pid)
	}
	if !strings.Contains(r.Errors(), fmt.Sprintf("cannot see what process %d binds: let the parent of the command look: ", pid)) {
		t.Errorf("standard error: got %q, want why the port could not be bound", r.Errors())
	}
	if err := os.Remove(go_); err != nil {
		t.Fatal(err)
	}
	r.waitEnded(t)
	r.waitNoSupervisor(t)
}

// Yama's descendants: what the command leaves behind becomes a child of its parent,
// gets the port while the command runs, and is reaped.
func TestOrphansStayDescendants(t *testing.T) {
	r := startOne(t, python(t, `
if os.fork() == 0:
    middle = os.getpid()
    if os.fork(): os._exit(0)
    while os.getppid() == middle: time.sleep(0.01)
    print(os.getppid(), flush=True)
    s = socket.socket(); s.bind(("127.0.0.1", 8123))
    print(s.getsockopt(1, 30), os.getpid(), flush=True)
    os._exit(9)
os.wait()
time.sleep(1000)
`), asChild)
	eventually(t, "two lines", func() bool { return strings.Count(r.Output(), "\n") == 2 })
	var parent, listens, orphan int
	fmt.Sscan(r.Output(), &parent, &listens, &orphan)
	if parent != r.Pid() || listens != 1 {
		t.Errorf("got parent %d, listening %d, want %d, 1", parent, listens, r.Pid())
	}
	eventually(t, "the orphan is reaped", func() bool { return syscall.Kill(orphan, 0) == syscall.ESRCH })
	ok(syscall.Kill(r.Command(t), syscall.SIGTERM))
	if got, want := fmt.Sprint(r.finish(t)), "signal: terminated"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// As by Ctrl-Z and fg.
func TestGroupStopsAndContinues(t *testing.T) {
	r := startOne(t, python(t, pyCounts), asChild)
	r.waitOutput(t, "up\n")
	both := func(s syscall.Signal, stopped bool) {
		ok(syscall.Kill(-r.Pid(), s))
		for _, pid := range []int{r.Pid(), r.Command(t)} {
			eventually(t, fmt.Sprintf("process %d stopped: %t", pid, stopped), func() bool {
				status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
				return strings.Contains(string(status), "State:\tT") == stopped
			})
		}
	}
	both(syscall.SIGTSTP, true)
	both(syscall.SIGCONT, false)
	r.kill(t)
}

// The supervisor sees through the parent, as it would have to under Yama.
func TestBindsWaitWhileTheParentIsStopped(t *testing.T) {
	go_ := filepath.Join(t.TempDir(), "go")
	r := startOne(t, append(python(t, `
print("up", flush=True)
while not os.path.exists(sys.argv[1]): time.sleep(0.01)
s = socket.socket(); s.bind(("127.0.0.1", 8123)); print(s.getsockopt(1, 30))
`), go_), asChild)
	r.waitOutput(t, "up\n")
	r.Signal(syscall.SIGSTOP)
	if err := os.WriteFile(go_, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the bind waits", func() bool {
		call, _ := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", r.Command(t)))
		return strings.HasPrefix(string(call), fmt.Sprint(unix.SYS_BIND, " "))
	})
	r.Signal(syscall.SIGCONT)
	if err := r.finish(t); err != nil || r.Output() != "up\n1\n" {
		t.Errorf("got %v, %q, want the listening socket", err, r.Output())
	}
}
