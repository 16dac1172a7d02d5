package activation

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/lab"
)

func TestExitCodesAndSignalsAreTheCommands(t *testing.T) {
	inBothWays(t, func(t *testing.T, way runOption) {
		for _, tt := range []struct {
			argv []string
			want string
		}{
			{[]string{"true"}, "<nil>"},
			{[]string{"sh", "-c", "exit 7"}, "exit status 7"},
			{[]string{"sh", "-c", "kill -TERM $$"}, "signal: terminated"},
			{[]string{"sh", "-c", "kill -KILL $$"}, "signal: killed"},
			{[]string{"sh", "-c", "ulimit -c 0; kill -SEGV $$"}, "signal: segmentation fault"},
			{[]string{"sh", "-c", "ulimit -c 0; kill -QUIT $$"}, "signal: quit"},
		} {
			r := startOne(t, tt.argv, way)
			if got := fmt.Sprint(r.finish(t)); got != tt.want {
				t.Errorf("%v: got %s, want %s", tt.argv, got, tt.want)
			}
		}
		r := startOne(t, python(t, pyTakes+pyGreets), way)
		served(t, r.host, "tcp")
		if err := r.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		if got, want := fmt.Sprint(r.finish(t)), "signal: hangup"; got != want {
			t.Errorf("a signal: got %s, want %s", got, want)
		}
	})
}

// Whoever starts ft knows the command's process: its number, its children, signals
// and descriptors are as without ft.
func TestTheCommandFindsAnOrdinaryProcess(t *testing.T) {
	inBothWays(t, func(t *testing.T, way runOption) {
		h := lab.NewHost(t, "h")
		r := start(t, h, []*os.File{
			openIn(t, h, fivetuple.TCP, loopback), openIn(t, h, fivetuple.TCP, netipLoopback(port+1)), openIn(t, h, fivetuple.UDP, netipLoopback(port+1)),
		}, python(t, `
status = open("/proc/self/status").read()
for line in status.splitlines():
    if line.split(":")[0] in ("SigBlk", "NoNewPrivs"): print(*line.split())
    if line.startswith("SigIgn:"): print("SigIgn: %x" % (int(line.split()[1], 16) & 0x7fffffff)) # signal 32 is the C library's own
print("pid", os.getpid(), os.environ["LISTEN_PID"])
print(os.environ["LISTEN_FDS"], os.environ["LISTEN_FDNAMES"])
def kind(fd):
    try: return os.readlink("/proc/self/fd/" + fd).split(":")[0]
    except OSError: return "" # that of the listing
print("fds", sorted(int(fd) for fd in os.listdir("/proc/self/fd") if kind(fd) in ("socket", "anon_inode")))
for fd in 3, 4, 5:
    s = socket.socket(fileno=fd)
    print(s.type.name, s.getsockname()[:2], os.get_inheritable(fd), os.get_blocking(fd), s.getsockopt(1, 30))
try: os.wait()
except ChildProcessError: print("no children")
`), way, names("api", "db", "db"), func(s *runSpec, _ *exec.Cmd) {
			s.Command.Env = append([]string{"LISTEN_FDS=9", "LISTEN_PID=1", "LISTEN_FDNAMES=other"}, s.Command.Env...)
		})
		if err := r.finish(t); err != nil {
			t.Error(err)
		}
		noNewPrivs := 0
		if r.Command(t) != r.Pid() {
			noNewPrivs = 1 // that way was chosen for want of privileges
		}
		// Python ignores SIGPIPE and SIGXFSZ itself: bits 12 and 24.
		want := fmt.Sprintf(`SigBlk: 0000000000000000
SigIgn: 1001000
NoNewPrivs: %d
pid %d %d
3 api:db:db
fds [3, 4, 5]
SOCK_STREAM ('127.0.0.1', 8123) True True 1
SOCK_STREAM ('127.0.0.1', 8124) True True 1
SOCK_DGRAM ('::ffff:127.0.0.1', 8124) True True 0
no children
`, noNewPrivs, r.Command(t), r.Command(t))
		if got := r.Output(); got != want {
			t.Errorf("got\n%swant\n%s", got, want)
		}
	})
}

func TestAnOrdinaryUserIsServed(t *testing.T) {
	r := startOne(t, python(t, `
status = open("/proc/self/status").read()
assert "NoNewPrivs:\t1" in status and "CapEff:\t0000000000000000" in status, status
def serve():
    s = socket.socket(); s.bind(("127.0.0.1", 8123)); s.listen()`+strings.ReplaceAll(pyGreets, "\n", "\n    ")+`
if os.fork(): os.wait()
else: serve()`), noPrivileges, requireSupervision)
	if got := served(t, r.host, "tcp"); got != greeting {
		t.Errorf("served: got %q, want %q", got, greeting)
	}
	r.kill(t)
}

func TestKilledCommandFreesThePortAtOnce(t *testing.T) {
	inBothWays(t, func(t *testing.T, way runOption) {
		for _, protocol := range []fivetuple.Network{fivetuple.TCP, fivetuple.UDP} {
			h := lab.NewHost(t, "h")
			r := start(t, h, []*os.File{openIn(t, h, protocol, loopback)}, []string{"sh", "-c", "echo up; exec sleep 1000"}, way)
			eventually(t, "the command runs", func() bool { return r.Output() == "up\n" })
			if err := syscall.Kill(r.Command(t), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if got, want := fmt.Sprint(r.finish(t)), "signal: killed"; got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		}
	})
}

func TestKilledSupervisor(t *testing.T) {
	inBothWays(t, func(t *testing.T, way runOption) {
		go_ := filepath.Join(t.TempDir(), "go")
		r := startOne(t, append(python(t, `
print("up", flush=True)
while not os.path.exists(sys.argv[1]): time.sleep(0.01)
try:
    socket.socket().bind(("127.0.0.1", 0))
except OSError as e:
    print(errno.errorcode[e.errno])
`), go_), way)
		eventually(t, "the command runs", func() bool { return r.Output() == "up\n" })
		pids := r.supervisors(t)
		if len(pids) != 1 {
			t.Fatalf("supervisors: got %v, want one", pids)
		}
		for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE, syscall.SIGUSR1} {
			syscall.Kill(pids[0], s)
		}
		syscall.Kill(pids[0], syscall.SIGKILL)
		eventually(t, "the supervisor is gone", func() bool { return len(r.supervisors(t)) == 0 })
		if err := os.WriteFile(go_, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := r.Wait(); err != nil {
			t.Error(err)
		}
		if got, want := r.Output(), "up\nENOSYS\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

func TestSupervisorIgnoresTheSignalsOfTerminalsAndServiceManagers(t *testing.T) {
	inBothWays(t, func(t *testing.T, way runOption) {
		go_ := filepath.Join(t.TempDir(), "go")
		r := startOne(t, append(python(t, `
print("up", flush=True)
while not os.path.exists(sys.argv[1]): time.sleep(0.01)
s = socket.socket(); s.bind(("127.0.0.1", 8123)); s.listen()`+pyGreets), go_), way)
		eventually(t, "the command runs", func() bool { return r.Output() == "up\n" })
		for _, pid := range r.supervisors(t) {
			for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE, syscall.SIGUSR1} {
				if err := syscall.Kill(pid, s); err != nil {
					t.Error(err)
				}
			}
		}
		if err := os.WriteFile(go_, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if got := served(t, r.host, "tcp"); got != greeting {
			t.Errorf("served: got %q, want %q", got, greeting)
		}
		r.kill(t)
	})
}

// What the command has left behind may bind, too, long after it.
func TestDaemonOutlivesTheCommand(t *testing.T) {
	inBothWays(t, func(t *testing.T, way runOption) {
		r := startOne(t, python(t, `
os.close(3)
if os.fork(): os._exit(0)
os.setsid()
for fd in 0, 1, 2: os.close(fd)
while os.path.exists("/proc/" + os.environ["LISTEN_PID"] + "/exe") or os.getppid() != 1: time.sleep(0.01)
s = socket.socket(); s.bind(("127.0.0.1", 9001)); s.listen()
c, _ = s.accept()
`), way)
		if err := r.Wait(); err != nil {
			t.Fatal(err)
		}
		r.waitEnded(t)
		if !r.free(t) {
			t.Error("the port is taken after the command's end")
		}
		r.WaitListening(t, "tcp", 9001)
		left := r.supervisors(t)
		if len(left) != 1 {
			t.Fatalf("supervisors beside the daemon: got %v, want one", left)
		}
		eventually(t, "the supervisor has let go of standard error", func() bool {
			link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/2", left[0]))
			return err == nil && link == os.DevNull
		})
		conn, err := r.host.Dial(t.Context(), "tcp", "127.0.0.1:9001")
		if err != nil {
			t.Fatal(err)
		}
		conn.Close() // ends the daemon
		eventually(t, "the supervisor has ended", func() bool { return len(r.supervisors(t)) == 0 })
	})
}

// In a run within a run the second filter is refused (EBUSY).
func TestRunWithinARun(t *testing.T) {
	inner := func(t *testing.T, options ...runOption) *testRun {
		h := lab.NewHost(t, "h")
		outer := []string{must(os.Executable())}
		// The outer run executes this binary in the role "run" again, on descriptor 3.
		r := start(t, h, []*os.File{openIn(t, h, fivetuple.TCP, loopback)}, outer, append(options, nested)...)
		return r
	}
	t.Run("goes on with LISTEN_FDS", func(t *testing.T) {
		r := inner(t)
		if got := served(t, r.host, "tcp"); got != greeting {
			t.Errorf("served: got %q, want %q", got, greeting)
		}
		if got, want := r.Errors(), "warning: "+ErrUnsupervised.Error()+": filter bind: seccomp: device or resource busy: "; !strings.HasPrefix(got, want) {
			t.Errorf("output: got %q, want %q...", got, want)
		}
		r.kill(t)
	})
	t.Run("fails where supervision is required", func(t *testing.T) {
		r := inner(t, requireSupervision)
		if got, want := fmt.Sprint(r.finish(t)), "exit status 125"; got != want {
			t.Errorf("got %s, want %s; it wrote %s", got, want, r.Errors())
		}
	})
}

func TestNobodyMayLookIntoTheCommand(t *testing.T) {
	// Into a process whose program it may not read nobody looks without CAP_SYS_PTRACE.
	unreadable := func(s *runSpec, _ *exec.Cmd) {
		s.Supervisor = filepath.Join(t.TempDir(), "supervisor")
		ok(os.WriteFile(s.Supervisor, must(os.ReadFile("/proc/self/exe")), 0o111))
	}
	want := ErrUnsupervised.Error() + ": the supervisor may not look into the command (pidfd_getfd: operation not permitted); "
	argv := python(t, `
assert "NoNewPrivs:\t0" in open("/proc/self/status").read(), "a filter was installed for nothing"`+pyTakes+pyGreets)
	r := startOne(t, argv, asChild, unreadable)
	if got := served(t, r.host, "tcp"); got != greeting {
		t.Errorf("served: got %q, want %q", got, greeting)
	}
	if got := r.Errors(); !strings.HasPrefix(got, "warning: "+want) {
		t.Errorf("standard error: got %q, want a warning: %s...", got, want)
	}
	if got, want := r.Command(t), r.Pid(); got != want {
		t.Errorf("pid of the command: got %d, want %d, in place", got, want)
	}
	r.kill(t)
	waitNoSecret(t)
	r = startOne(t, []string{"true"}, asChild, unreadable, requireSupervision)
	if got := fmt.Sprint(r.Wait()); got != "exit status 125" || !strings.Contains(r.Errors(), want) {
		t.Errorf("supervision required: got %s, %s, want exit status 125, %s...", got, r.Errors(), want)
	}
	waitNoSecret(t)
}

// waitNoSecret waits for the end of supervisors whose environment cannot be read.
func waitNoSecret(t *testing.T) {
	t.Helper()
	eventually(t, "no process has the name of a supervisor", func() bool {
		for _, file := range must(filepath.Glob("/proc/[0-9]*/comm")) {
			// The second run is of /proc/self/exe.
			if text, _ := os.ReadFile(file); string(text) == "supervisor\n" || string(text) == "exe\n" {
				return false
			}
		}
		return true
	})
}

func TestErrorOfStartedIsThatOfExec(t *testing.T) {
	inBothWays(t, func(t *testing.T, way runOption) {
		r := startOne(t, []string{"echo", "the command runs"}, expectFailure, way, func(_ *runSpec, c *exec.Cmd) {
			c.Env = append(c.Env, startedVar+"=/no/such/dir/file")
		})
		if err := r.Wait(); err != nil {
			t.Error(err)
		}
		want := "run echo on its sockets: open /no/such/dir/file.new: no such file or directory\n" + greeting
		if got := r.Errors() + r.Output(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		r.waitEnded(t)
		r.waitNoSupervisor(t)
	})
}

func TestFailedExecLeavesTheProcessAsItWas(t *testing.T) {
	inBothWays(t, func(t *testing.T, way runOption) {
		noProgram := filepath.Join(t.TempDir(), "text")
		if err := os.WriteFile(noProgram, []byte("no program"), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, tt := range []struct{ path, want string }{
			{noProgram, "run " + noProgram + " on its sockets: exec: exec format error\n"},
			{"/no/such", "run /no/such on its sockets: exec: \"/no/such\": stat /no/such: no such file or directory\n"},
		} {
			r := startOne(t, []string{tt.path}, expectFailure, way)
			if err := r.Wait(); err != nil {
				t.Error(err)
			}
			if got, want := r.Errors(), tt.want+greeting; got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			eventually(t, "the supervisor has ended", func() bool { return len(r.supervisors(t)) == 0 })
		}
	})
}

func TestExecRefuses(t *testing.T) {
	h := lab.NewHost(t, "h")
	listens := openIn(t, h, fivetuple.TCP, loopback)
	fd := must(unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
	silent := os.NewFile(uintptr(fd), "silent")
	defer silent.Close()
	for _, tt := range []struct {
		name    string
		sockets []Socket
		want    string
	}{
		{"no sockets", nil, "0 sockets: want 1 to 250"},
		{"bad name", []Socket{{"a:b", listens}}, `socket name "a:b": want up to 255 printable ASCII characters but ':'`},
		{"no file", []Socket{{"a", nil}}, "socket a: no file"},
		{"not listening", []Socket{{"a", silent}}, "socket a: it must listen, or others may take its port"},
		{"no supervisor", []Socket{{"a", listens}}, "start its supervisor: no command line for it"},
	} {
		if err := Exec(Command{Path: "true"}, tt.sockets, Options{}); err == nil || err.Error() != "run true on its sockets: "+tt.want {
			t.Errorf("%s: got %v, want %s", tt.name, err, tt.want)
		}
	}
	if err := Exec(Command{Path: "true"}, []Socket{{"a", listens}}, Options{Supervisor: []string{"true"}}); err == nil ||
		!strings.HasSuffix(err.Error(), "its supervisor ended before it was ready") && !strings.Contains(err.Error(), "pipe") {
		t.Errorf("a supervisor that does not supervise: got %v", err)
	}
}

func TestSuperviseByHandFails(t *testing.T) {
	listener := must(net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}))
	tcp := must(listener.File())
	listener.Close()
	pair := must(unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
	stream := os.NewFile(uintptr(pair[1]), "stream")
	unix.Close(pair[0])
	for _, tt := range []struct {
		three *os.File
		want  string
	}{
		{nil, "not to be run by hand"},
		{tcp, "not to be run by hand"},
		{stream, "its parent has ended, or has not asked for it"}, // which is a shell, not this process
	} {
		cmd := exec.Command("sh", "-c", "/proc/"+strconv.Itoa(os.Getpid())+"/exe; exit $?")
		cmd.Env = append(os.Environ(), roleVar+"=supervise", noSleep)
		if tt.three != nil {
			cmd.ExtraFiles = []*os.File{tt.three}
			defer tt.three.Close()
		}
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), tt.want) {
			t.Errorf("got %s, %v, want %s", out, err, tt.want)
		}
	}
}
