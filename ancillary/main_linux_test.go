package ancillary

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	roleVar  = "FT_TEST_CHILD"
	patience = 20 * time.Second
)

// roles are what the test binary does as another process, with the connection
// that it inherits as descriptor 3; it prints what came of it.
var roles = map[string]func(*net.UnixConn){
	"peer":        peerRole,
	"exhausted":   exhaustedRole,
	"many-on-way": manyOnWayRole,
}

func TestMain(m *testing.M) {
	role, ok := roles[os.Getenv(roleVar)]
	if !ok {
		os.Exit(m.Run())
	}
	c, err := net.FileConn(os.NewFile(3, "inherited"))
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	role(c.(*net.UnixConn))
}

// child runs the test binary in a role, with an end of a connection.
func child(t *testing.T, role string, c *net.UnixConn, attr *syscall.SysProcAttr) *exec.Cmd {
	t.Helper()
	f, err := c.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() }) // later than cmd has started
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVar+"="+role, "GORACE=atexit_sleep_ms=10")
	cmd.ExtraFiles = []*os.File{f}
	cmd.SysProcAttr = attr
	cmd.Stderr = os.Stderr
	return cmd
}

// inNewNamespaces makes the child root over PIDs and users of its own, without
// rights over the machine's.
func inNewNamespaces() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
}

// start returns the child's pid, and what it has printed when it has ended.
func start(t *testing.T, cmd *exec.Cmd) (pid int, printed func() string) {
	t.Helper()
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	printed = sync.OnceValue(func() string {
		if err := cmd.Wait(); err != nil {
			fmt.Fprint(&out, err)
		}
		return strings.TrimSpace(out.String())
	})
	t.Cleanup(func() { printed() })
	return cmd.Process.Pid, printed
}

// networks are those that carry files.
var networks = map[string]int{"unix": unix.SOCK_STREAM, "unixpacket": unix.SOCK_SEQPACKET, "unixgram": unix.SOCK_DGRAM}

// eachNetwork runs a test on two connected ends.
func eachNetwork(t *testing.T, test func(t *testing.T, a, b *net.UnixConn)) {
	for network := range networks {
		t.Run(network, func(t *testing.T) {
			a, b := pair(t, network)
			test(t, a, b)
		})
	}
}

func pair(t *testing.T, network string) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, networks[network]|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), network)
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = c.(*net.UnixConn)
		conns[i].SetDeadline(time.Now().Add(patience))
		t.Cleanup(func() { c.Close() })
	}
	return conns[0], conns[1]
}

// connected returns both ends of a connection by a path.
func connected(t *testing.T, network string) (client, server *net.UnixConn) {
	t.Helper()
	ln, err := net.Listen(network, filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial(network, ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return c.(*net.UnixConn), s.(*net.UnixConn)
}

// probe is the write end of a pipe, to be sent: the read end tells when nobody
// has it any more.
type probe struct{ r, w *os.File }

func newProbe(t *testing.T) probe {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return probe{r, w}
}

// isClosed closes the write end here and fails the test if another is left.
func (p probe) isClosed(t *testing.T) {
	t.Helper()
	p.w.Close()
	p.r.SetReadDeadline(time.Now().Add(patience))
	if n, err := p.r.Read(make([]byte, 1)); n != 0 || err == nil || os.IsTimeout(err) {
		t.Errorf("read of a pipe whose write end was sent: got %d bytes, %v, want its end: a descriptor has leaked", n, err)
	}
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
