package cli

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple/secure"
)

// conformanceTests are the tests of the rows of docs/conformance.md, by the name in
// the last column. Each is run over all that the row names, and returns how it
// ended, as the row says: the exit code of ft, or the cause that a server gives for
// the end of a connection.
func conformanceTests() map[string]func(t *testing.T, over string) string {
	all := map[string]func(*testing.T, string) string{}
	for _, some := range []map[string]func(*testing.T, string) string{connectRows, datagramRows, fileRows, listenRows, serveRows} {
		maps.Copy(all, some)
	}
	return all
}

func TestConformance(t *testing.T) {
	const page = "../../docs/conformance.md"
	rows := conformanceRows(t, page)
	tests := conformanceTests()
	for name := range tests {
		if !slices.ContainsFunc(rows, func(r conformanceRow) bool { return r.name == name }) {
			t.Errorf("%s has no row for the test %s", page, name)
		}
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	busy := make(chan struct{}, 8) // they wait more than they work, so t.Parallel would take long
	for _, row := range rows {
		test := tests[row.name]
		if test == nil {
			t.Errorf("%s: the row %q has no test of its own", page, row.name)
			continue
		}
		delete(tests, row.name)
		for _, over := range row.over {
			busy <- struct{}{}
			wg.Go(func() {
				t.Run(row.name+"/"+over, func(t *testing.T) {
					if got := test(t, over); got != row.ends {
						t.Errorf("ended with %q, the page says %q", got, row.ends)
					}
				})
				<-busy
			})
		}
	}
}

// conformanceRow is a row of a table: what happens, what ft does, over what, how it
// ends, and the test.
type conformanceRow struct {
	over       []string
	ends, name string
}

func conformanceRows(t *testing.T, page string) (rows []conformanceRow) {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | ")
		name, isRow := strings.CutPrefix(strings.TrimSpace(cells[len(cells)-1]), "`")
		if !strings.HasPrefix(line, "|") || !isRow {
			continue
		}
		if len(cells) != 5 {
			t.Fatalf("%s: %d cells, want 5: %s", page, len(cells), line)
		}
		rows = append(rows, conformanceRow{strings.Fields(cells[2]), strings.TrimSpace(cells[3]), strings.TrimSuffix(name, "`")})
	}
	return rows
}

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

// process is an ft that runs as a process of its own.
type process struct {
	*exec.Cmd
	in       *os.File // the other end of its standard input, if that is a pipe of ours
	out, err *grown
	ended    chan struct{}
}

// startProcess starts ft with a pipe as its standard input, if set gives it no other.
func startProcess(t *testing.T, set func(*exec.Cmd), args ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command("ft", args...), out: newGrown(), err: newGrown(), ended: make(chan struct{})}
	p.Stdout, p.Stderr = p.out, p.err
	if set != nil {
		set(p.Cmd)
	}
	if p.Stdin == nil {
		r, w := pipe(t)
		defer r.Close()
		w.SetWriteDeadline(time.Now().Add(patience))
		p.Stdin, p.in = r, w
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.Process.Kill()
		<-p.ended
	})
	return p
}

func startConnect(t *testing.T, args ...string) *process {
	t.Helper()
	return startProcess(t, nil, append([]string{"connect"}, args...)...)
}

// startEmpty starts ft connect with standard input at its end.
func startEmpty(t *testing.T, args ...string) *process {
	t.Helper()
	return startProcess(t, stdinOf(t, os.DevNull), append([]string{"connect"}, args...)...)
}

func stdinOf(t *testing.T, path string) func(*exec.Cmd) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return func(c *exec.Cmd) { c.Stdin = f }
}

// say writes to its standard input.
func (p *process) say(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(p.in, text); err != nil {
		t.Fatalf("standard input: %v; standard error:\n%s", err, p.err)
	}
}

// end ends its standard input.
func (p *process) end() { p.in.Close() }

func (p *process) signal(s os.Signal) { p.Process.Signal(s) }

// code waits for its end and returns the exit code.
func (p *process) code(t *testing.T) string {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		t.Fatalf("ft %s did not end; standard error:\n%.1000s", strings.Join(p.Args[1:], " "), p.err)
	}
	switch p.ProcessState.ExitCode() {
	case exitDone:
		return "0"
	case exitNo:
		return "1"
	case exitUsage:
		return "2"
	case exitFailed:
		return "3"
	}
	return p.ProcessState.String()
}

// ends waits for its end, checks what it has printed and said, and returns the exit
// code. Where nothing is to be said nothing may be.
func (p *process) ends(t *testing.T, printed, said string) string {
	t.Helper()
	code := p.code(t)
	if got := p.out.String(); got != printed {
		t.Errorf("standard output is %.100q, want %.100q", got, printed)
	}
	if got := p.err.String(); !strings.Contains(got, said) || said == "" && got != "" {
		t.Errorf("standard error is %.500q, want %q", got, said)
	}
	return code
}

// grown is what a process has written so far.
type grown struct {
	mu      sync.Mutex
	bytes   bytes.Buffer
	changed chan struct{}
}

func newGrown() *grown { return &grown{changed: make(chan struct{})} }

func (g *grown) Write(b []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.changed)
	g.changed = make(chan struct{})
	return g.bytes.Write(b)
}

func (g *grown) String() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.bytes.String()
}

func (g *grown) await(t *testing.T, text string) {
	t.Helper()
	for timeout := time.After(patience); ; {
		g.mu.Lock()
		changed := g.changed
		g.mu.Unlock()
		if strings.Contains(g.String(), text) {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("%q did not come, but %.1000q", text, g)
		}
	}
}

// host is a place where a test listens for ft.
type host struct {
	net.Listener
	over string
	args []string // the endpoint, and flags that are needed to reach it
}

func newHost(t *testing.T, over string) *host {
	t.Helper()
	network, address := "tcp", "127.0.0.1:0"
	switch over {
	case "unix":
		network, address = "unix", socketPath(t)
	case "seqpacket":
		network, address = "unixpacket", socketPath(t)
	}
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	ln, err := config.Listen(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return &host{ln, over, targetOf(over, ln.Addr().String())}
}

// targetOf is how ft connect reaches an address.
func targetOf(over, address string) []string {
	switch over {
	case "tls":
		return []string{"tls://" + address, "--insecure"}
	case "tcp":
		return []string{address}
	}
	return []string{over + "://" + address}
}

func socketPath(t *testing.T) string {
	t.Helper()
	d, err := os.MkdirTemp("", "ft") // that of the test is too long
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(d) })
	return filepath.Join(d, "s")
}

// accept takes the next connection, with its TLS handshake.
func (h *host) accept(t *testing.T) *peer {
	t.Helper()
	h.Listener.(interface{ SetDeadline(time.Time) error }).SetDeadline(time.Now().Add(patience))
	c, err := h.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return h.peerOf(t, c)
}

// nobodyCame fails if somebody has connected.
func (h *host) nobodyCame(t *testing.T) {
	t.Helper()
	h.Listener.(interface{ SetDeadline(time.Time) error }).SetDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := h.Accept(); err == nil {
		t.Error("a connection was made, want none")
	}
}

func (h *host) peerOf(t *testing.T, c net.Conn) *peer {
	t.Helper()
	p := newPeer(t, c)
	if h.over == "tls" {
		secured := tls.Server(c, serverTLS(t))
		if err := secured.HandshakeContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		p.Conn = secured
	}
	return p
}

var certificate = sync.OnceValues(func() (*tls.Config, error) {
	return secure.Server{SelfSigned: true, Hosts: []string{"127.0.0.1"}}.Config()
})

func serverTLS(t *testing.T) *tls.Config {
	t.Helper()
	c, err := certificate()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// peer is the test's end of a connection with ft.
type peer struct {
	net.Conn
	raw net.Conn // below TLS
}

func newPeer(t *testing.T, c net.Conn) *peer {
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return &peer{c, c}
}

// callFT connects to an ft that listens.
func callFT(t *testing.T, over, address string) *peer {
	t.Helper()
	p, err := tryFT(t, over, address)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func tryFT(t *testing.T, over, address string) (*peer, error) {
	t.Helper()
	network := map[string]string{"unix": "unix", "seqpacket": "unixpacket"}[over]
	if network == "" {
		network = "tcp"
	}
	c, err := net.DialTimeout(network, address, patience)
	if err != nil {
		return nil, err
	}
	p := newPeer(t, c)
	if over == "tls" {
		secured := tls.Client(c, &tls.Config{InsecureSkipVerify: true})
		p.Conn, err = secured, secured.HandshakeContext(t.Context())
	}
	return p, err
}

func (p *peer) say(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(p.Conn, text); err != nil {
		t.Fatal(err)
	}
}

// hear reads a text that is to come now.
func (p *peer) hear(t *testing.T, text string) {
	t.Helper()
	b := make([]byte, len(text))
	if n, err := io.ReadFull(p.Conn, b); err != nil || string(b) != text {
		t.Fatalf("the peer got %.100q (%v), want %.100q", b[:n], err, text)
	}
}

// hearEnd reads a text that is to come, and end of file after it.
func (p *peer) hearEnd(t *testing.T, text string) {
	t.Helper()
	if b, err := io.ReadAll(p.Conn); err != nil || string(b) != text {
		t.Errorf("the peer got %.100q and %v, want %.100q and end of file", b, err, text)
	}
}

// hearReset reads until the connection is reset.
func (p *peer) hearReset(t *testing.T) {
	t.Helper()
	if n, err := io.Copy(io.Discard, p.Conn); !isReset(err) {
		t.Errorf("the peer got %d bytes and %v, want a reset", n, err)
	}
}

// sayUntilReset writes until the connection is reset.
func (p *peer) sayUntilReset(t *testing.T) {
	t.Helper()
	for b := make([]byte, 4096); ; {
		if _, err := p.Write(b); err != nil {
			if !isReset(err) {
				t.Errorf("the peer's writing ended by %v, want a reset", err)
			}
			return
		}
	}
}

func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// finish ends its side only.
func (p *peer) finish(t *testing.T) {
	t.Helper()
	if err := p.Conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
}

// reset sends RST, and TLS says no goodbye.
func (p *peer) reset() {
	p.raw.(*net.TCPConn).SetLinger(0)
	p.raw.Close()
}

// awaitUnread waits until something is there to be read.
func (p *peer) awaitUnread(t *testing.T) {
	t.Helper()
	raw, err := p.raw.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Read(func(fd uintptr) bool {
		_, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK)
		return err != unix.EAGAIN
	})
	if err != nil {
		t.Fatal(err)
	}
}

// silentFor fails if anything is heard meanwhile. It is for what must not come.
func (p *peer) silentFor(t *testing.T, d time.Duration) {
	t.Helper()
	p.raw.SetReadDeadline(time.Now().Add(d))
	if n, err := p.raw.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the peer got %d bytes and %v, want nothing", n, err)
	}
	p.raw.SetReadDeadline(time.Now().Add(patience))
}

// openTTY opens a pseudo terminal (pty(7)): what is written to master is typed.
func openTTY(t *testing.T) (master, slave *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatalf("open /dev/ptmx: %v: mount devpts there", err)
	}
	master = os.NewFile(uintptr(fd), "ptmx")
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	// TIOCGPTPEER finds the slave also where /dev/pts is of another mount.
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		t.Fatalf("open the slave of a pseudo terminal: %v", errno)
	}
	slave = os.NewFile(peer, "pts")
	t.Cleanup(func() { slave.Close() })
	return master, slave
}

// onTerminal makes a terminal a process's standard input and the one whose Ctrl-C
// interrupts it.
func onTerminal(slave *os.File) func(*exec.Cmd) {
	return func(c *exec.Cmd) {
		c.Stdin = slave
		c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	}
}
