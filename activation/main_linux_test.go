package activation

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/lab"
)

const (
	roleVar        = "FT_TEST_CHILD"
	endedVar       = "FT_TEST_ENDED"        // the file that Ended writes
	startedVar     = "FT_TEST_STARTED"      // the file that Started writes the pid to
	signalVar      = "FT_TEST_SIGNAL"       // the number of a signal that Started sends this process
	childSignalVar = "FT_TEST_CHILD_SIGNAL" // and of one that it sends the command
	runVar         = "FT_TEST_RUN"          // a runSpec
	blindVar       = "FT_TEST_BLIND"        // set: the supervisor may not look into the process
)

// TestMain makes the test binary every process of a run too.
func TestMain(m *testing.M) {
	if role := os.Getenv(roleVar); role != "" {
		play(role)
		os.Exit(0)
	}
	lab.Enter()
	goleak.VerifyTestMain(m)
}

func play(role string) {
	switch role {
	case "run", "run-fails":
		playRun(role == "run-fails")
	case "supervise":
		ok(Supervise(SuperviseOptions{Ended: func() {
			if path := os.Getenv(endedVar); path != "" {
				ok(os.WriteFile(path, []byte("ended"), 0o644))
			}
		}}))
	case "hostile":
		playHostile(os.Args[1], os.Args[2])
	case "listen": // binds itself
		l := must(net.Listen("tcp", os.Args[1]))
		greet(l)
	case "listen-inherited":
		sockets := must(Inherited())
		greet(must(net.FileListener(sockets[0].File)))
	case "udp":
		reply(must(net.ListenPacket("udp", os.Args[1])))
	case "udp-inherited":
		sockets := must(Inherited())
		reply(must(net.FilePacketConn(sockets[0].File)))
	case "own-table":
		playOwnTable()
	case "inherited":
		playInherited()
	case "pass":
		playPass(os.Args[1:])
	default:
		panic(role)
	}
}

const greeting = "hello from the command\n"

func greet(l net.Listener) {
	for {
		conn, err := l.Accept()
		ok(err)
		io.WriteString(conn, greeting)
		conn.Close()
	}
}

func reply(conn net.PacketConn) {
	for {
		_, from, err := conn.ReadFrom(make([]byte, 100))
		ok(err)
		if _, err := conn.WriteTo([]byte(greeting), from); err != nil {
			panic(err)
		}
	}
}

// playOwnTable binds in a thread with descriptors of its own.
func playOwnTable() {
	runtime.LockOSThread() // here the first thread, perhaps; there another
	ok(onOwnThread(func() error {
		ok(unix.Unshare(unix.CLONE_FILES))
		fd := must(unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0))
		ok(unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: loopback.Addr().As4()}))
		fmt.Println(unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN))
		return nil
	}))
}

func must[T any](v T, err error) T {
	ok(err)
	return v
}

func ok(err error) {
	if err != nil {
		panic(err)
	}
}

// runSpec is what a process in the role "run" executes, on the sockets that it
// finds from descriptor 3 on.
type runSpec struct {
	Names   []string
	Command Command
	Require bool
	// Supervisor runs this binary in the role "supervise".
	Supervisor string
}

func playRun(fails bool) {
	var spec runSpec
	ok(json.Unmarshal([]byte(os.Getenv(runVar)), &spec))
	var sockets []Socket
	for i, name := range spec.Names {
		unix.CloseOnExec(3 + i)
		sockets = append(sockets, Socket{name, os.NewFile(uintptr(3+i), name)})
	}
	if os.Getenv(blindVar) != "" { // as Yama would: without CAP_SYS_PTRACE nobody looks into this process
		ok(unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0))
	}
	os.Setenv(roleVar, "supervise")
	if fails { // and clobber what lies above, the runtime's own descriptors among them
		sockets = slices.Repeat(sockets, 16)
	}
	err := Exec(spec.Command, sockets, Options{
		Supervisor: []string{spec.Supervisor},
		Started:    tellStarted,
		Require:    spec.Require,
		Warn:       func(text string) { fmt.Fprintln(os.Stderr, "warning:", text) },
	})
	fmt.Fprintln(os.Stderr, err)
	if !fails {
		os.Exit(125)
	}
	// The process is as it was: its network poller works, its binds are its own.
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	go greet(l)
	conn := must(net.Dial("tcp", l.Addr().String()))
	fmt.Fprint(os.Stderr, string(must(io.ReadAll(conn))))
}

func tellStarted(pid int) error {
	if number := os.Getenv(signalVar); number != "" {
		s := syscall.Signal(must(strconv.Atoi(number)))
		came := make(chan os.Signal, 1)
		signal.Notify(came, s) // SIGKILL ends this process below
		ok(syscall.Kill(os.Getpid(), s))
		<-came
		signal.Stop(came) // returns once the others have it, too
	}
	if number := os.Getenv(childSignalVar); number != "" {
		ok(syscall.Kill(pid, syscall.Signal(must(strconv.Atoi(number)))))
	}
	path := os.Getenv(startedVar)
	if path == "" {
		return nil
	}
	if err := os.WriteFile(path+".new", []byte(strconv.Itoa(pid)), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// playHostile tries to bind the port in every way until its standard input ends.
// Each success is a line.
func playHostile(protocol, port string) {
	kind, number := unix.SOCK_STREAM, must(strconv.Atoi(port))
	if protocol == "udp" {
		kind = unix.SOCK_DGRAM
	}
	var stop = make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(stop)
	}()
	for round := 1; ; round++ {
		for _, at := range []unix.Sockaddr{
			&unix.SockaddrInet4{Port: number, Addr: [4]byte{127, 0, 0, 1}}, &unix.SockaddrInet4{Port: number}, &unix.SockaddrInet6{Port: number},
		} {
			for options := range 4 {
				if hostileBind(kind, at, options) {
					fmt.Printf("got %v %d\n", at, options)
				}
			}
		}
		if round == 1 {
			fmt.Println("running")
		}
		select {
		case <-stop:
			fmt.Println("rounds", round)
			return
		default:
		}
	}
}

func hostileBind(kind int, at unix.Sockaddr, options int) bool {
	domain := unix.AF_INET
	if _, is6 := at.(*unix.SockaddrInet6); is6 {
		domain = unix.AF_INET6
	}
	fd := must(unix.Socket(domain, kind|unix.SOCK_CLOEXEC, 0))
	defer unix.Close(fd)
	ok(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, options&1))
	ok(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, options>>1))
	if unix.Bind(fd, at) != nil {
		return false
	}
	return kind == unix.SOCK_DGRAM || unix.Listen(fd, 1) == nil
}

// hostile is such a process.
type hostile struct {
	cmd   *exec.Cmd
	stdin io.Closer
	lines *bufio.Reader
}

func startHostile(t *testing.T, h *lab.Host, protocol string) *hostile {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", protocol, strconv.Itoa(port))
	cmd.Env = append(os.Environ(), roleVar+"=hostile", noSleep)
	cmd.Stderr = os.Stderr
	x := &hostile{cmd, must(cmd.StdinPipe()), bufio.NewReader(must(cmd.StdoutPipe()))}
	h.Do(t, func() { ok(cmd.Start()) })
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	if line, err := x.lines.ReadString('\n'); line != "running\n" {
		t.Fatalf("hostile process: got %q, %v, want running", line, err)
	}
	return x
}

// stop returns what the process got, and fails the test if it has done nothing.
func (x *hostile) stop(t *testing.T) string {
	t.Helper()
	x.stdin.Close()
	out, err := io.ReadAll(x.lines)
	got, rounds, found := strings.Cut(string(out), "rounds ")
	if n, _ := strconv.Atoi(strings.TrimSpace(rounds)); err != nil || !found || n < 2 {
		t.Fatalf("hostile process: got %q, %v, want two rounds and more", out, err)
	}
	return got
}

// noSleep spares a second at the end of processes that the race detector watches.
const noSleep = "GORACE=atexit_sleep_ms=10"

// port is free in the fresh network of each test, and no client's.
const port = 8123

var loopback = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)

// run is a command that is started on its sockets.
type testRun struct {
	*lab.Process
	host                   *lab.Host
	ended, started, errors string // files
	mark                   string
}

// Command is the command's pid, once Started was told it.
func (r *testRun) Command(t *testing.T) (pid int) {
	t.Helper()
	eventually(t, "Started was called", func() bool {
		text, err := os.ReadFile(r.started)
		pid, _ = strconv.Atoi(string(text))
		return err == nil
	})
	return pid
}

// Errors is what the command and its supervisor wrote to standard error.
func (r *testRun) Errors() string {
	text, err := os.ReadFile(r.errors)
	ok(err)
	return string(text)
}

type runOption func(*runSpec, *exec.Cmd)

func requireSupervision(s *runSpec, _ *exec.Cmd) { s.Require = true }

func names(names ...string) runOption {
	return func(s *runSpec, _ *exec.Cmd) { s.Names = names }
}

// expectFailure lets the caller of Exec live on to show that it is as it was.
func expectFailure(_ *runSpec, c *exec.Cmd) { c.Env = append(c.Env, roleVar+"=run-fails") }

func blind(_ *runSpec, c *exec.Cmd) { c.Env = append(c.Env, blindVar+"=1") }

// inBothWays runs a test with the command in the place of its process, and as its
// child, as where only an ancestor may look into it.
func inBothWays(t *testing.T, test func(t *testing.T, way runOption)) {
	t.Run("in place", func(t *testing.T) { test(t, func(*runSpec, *exec.Cmd) {}) })
	t.Run("as a child", func(t *testing.T) { test(t, asChild) })
}

func asChild(s *runSpec, c *exec.Cmd) {
	noPrivileges(s, c)
	blind(s, c)
}

// noPrivileges takes all capabilities from the command and its supervisor.
func noPrivileges(s *runSpec, c *exec.Cmd) {
	under("setpriv", "--bounding-set=-all", "--inh-caps=-all")(s, c)
}

// under runs the whole through another program.
func under(argv ...string) runOption {
	return func(_ *runSpec, c *exec.Cmd) {
		c.Args = append(argv, c.Path)
		c.Path = must(exec.LookPath(argv[0]))
	}
}

// start runs a command on sockets "api", which are closed here.
func start(t *testing.T, h *lab.Host, sockets []*os.File, argv []string, options ...runOption) *testRun {
	t.Helper()
	dir := t.TempDir()
	r := &testRun{host: h, ended: filepath.Join(dir, "ended"), started: filepath.Join(dir, "started"), errors: filepath.Join(dir, "stderr")}
	stderr := must(os.Create(r.errors))
	defer stderr.Close()
	r.mark = endedVar + "=" + r.ended
	spec := runSpec{Supervisor: "/proc/self/exe", Command: Command{Path: argv[0], Args: argv[1:], Env: append(os.Environ(), noSleep, "PORT="+strconv.Itoa(port))}}
	cmd := exec.Command(must(os.Executable()))
	cmd.Env = append(os.Environ(), noSleep, roleVar+"=run", r.mark, startedVar+"="+r.started)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // to kill the command with what it starts
	for range sockets {
		spec.Names = append(spec.Names, "api")
	}
	for _, option := range options {
		option(&spec, cmd)
	}
	cmd.Env = append(cmd.Env, runVar+"="+string(must(json.Marshal(spec))))
	cmd.Stderr = stderr
	cmd.ExtraFiles = sockets
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("standard error of %s:\n%s", argv[0], r.Errors())
		}
	})
	r.Process = h.Start(t, cmd)
	for _, f := range sockets {
		f.Close()
	}
	return r
}

// startOne runs a command on TCP 127.0.0.1:8123.
func startOne(t *testing.T, argv []string, options ...runOption) *testRun {
	t.Helper()
	h := lab.NewHost(t, "h")
	return start(t, h, []*os.File{openIn(t, h, fivetuple.TCP, loopback)}, argv, options...)
}

func openIn(t *testing.T, h *lab.Host, protocol fivetuple.Network, at netip.AddrPort) (f *os.File) {
	t.Helper()
	var err error
	h.Do(t, func() { f, err = Open(protocol, at) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// python is a command that runs a script.
func python(t *testing.T, script string) []string {
	t.Helper()
	path, err := exec.LookPath("python3")
	if err != nil {
		t.Fatalf("%v; install it: apt-get install python3", err)
	}
	return []string{path, "-c", "import os, sys, socket, struct, time, errno\n" + script}
}

// self is a command that runs this binary in a role.
func self(role string, args ...string) []string {
	return append([]string{"env", roleVar + "=" + role, must(os.Executable())}, args...)
}

// served is what the command answers on 127.0.0.1.
func served(t *testing.T, h *lab.Host, protocol string) string {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		conn, err := h.Dial(t.Context(), protocol, loopback.String())
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(deadline)
		if protocol == "udp" { // a datagram may come before the program is there, and be lost with the family
			conn.SetDeadline(time.Now().Add(100 * time.Millisecond))
		}
		_, err = io.WriteString(conn, "GET /page HTTP/1.0\r\n\r\n")
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 4096)
		n, err := conn.Read(b)
		if err == nil && protocol == "tcp" {
			rest, _ := io.ReadAll(conn)
			n += copy(b[n:], rest)
		}
		conn.Close()
		if errors.Is(err, os.ErrDeadlineExceeded) && protocol == "udp" && time.Now().Before(deadline) {
			continue
		}
		if err != nil {
			t.Errorf("read from the command: %v", err)
		}
		return string(b[:n])
	}
}

const patience = 20 * time.Second

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// supervisors are the processes of the run that are not the command's.
func (r *testRun) supervisors(t *testing.T) (pids []int) {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		environ, _ := os.ReadFile(path)
		text := "\x00" + string(environ)
		if strings.Contains(text, "\x00"+r.mark+"\x00") && strings.Contains(text, "\x00"+roleVar+"=supervise\x00") {
			pids = append(pids, must(strconv.Atoi(filepath.Base(filepath.Dir(path)))))
		}
	}
	return pids
}

// finish waits for the end of the command, which has left nobody behind, and of its supervisor.
func (r *testRun) finish(t *testing.T) error {
	t.Helper()
	err := r.Wait()
	r.waitEnded(t)
	if !r.free(t) {
		t.Error("the port is taken after the command's end")
	}
	r.waitNoSupervisor(t)
	return err
}

// kill ends the command and what it started, which may take a moment longer.
func (r *testRun) kill(t *testing.T) {
	t.Helper()
	if err := syscall.Kill(-r.Pid(), syscall.SIGKILL); err != nil {
		t.Errorf("kill the command: %v; it wrote\n%s", err, r.Output())
	}
	r.Wait()
	r.waitEnded(t)
	eventually(t, "the port is free", func() bool { return r.free(t) })
	r.waitNoSupervisor(t)
}

func (r *testRun) waitEnded(t *testing.T) {
	t.Helper()
	eventually(t, "Ended was called", func() bool {
		text, _ := os.ReadFile(r.ended)
		return string(text) == "ended"
	})
}

func (r *testRun) waitNoSupervisor(t *testing.T) {
	t.Helper()
	eventually(t, "the supervisor has ended", func() bool { return len(r.supervisors(t)) == 0 })
}

// free says whether the port can be bound.
func (r *testRun) free(t *testing.T) (free bool) {
	t.Helper()
	r.host.Do(t, func() {
		tcp, errTCP := Open(fivetuple.TCP, loopback)
		udp, errUDP := Open(fivetuple.UDP, loopback)
		free = errTCP == nil && errUDP == nil
		tcp.Close() // a nil file is closed already
		udp.Close()
	})
	return free
}

func netipLoopback(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(loopback.Addr(), port)
}

// nested makes the command of the run a run itself, of a server that takes LISTEN_FDS.
func nested(s *runSpec, c *exec.Cmd) {
	inner := runSpec{Names: []string{"api"}, Require: s.Require, Supervisor: s.Supervisor}
	argv := self("listen-inherited")
	inner.Command = Command{Path: argv[0], Args: argv[1:], Env: s.Command.Env}
	s.Require = false
	s.Command.Env = append(s.Command.Env, roleVar+"=run",
		runVar+"="+string(must(json.Marshal(inner))))
}
