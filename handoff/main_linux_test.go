package handoff

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// roleVar makes a process of this binary a giver or taker that does what it is
// told on its standard input.
const roleVar = "HANDOFF_TEST_ROLE"

func TestMain(m *testing.M) {
	if os.Getenv(roleVar) != "" {
		obey(&puppet{path: os.Getenv(roleVar)})
		return
	}
	goleak.VerifyTestMain(m)
}

const patience = 20 * time.Second

// puppet is a process under the command of a test.
type puppet struct {
	path  string
	ln    *Listener
	giver *Giver
	taker *Taker
	items []Item
}

// obey answers each line with one.
func obey(p *puppet) {
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		words := strings.Fields(in.Text())
		if err := p.do(words[0], words[1:]); err != nil {
			fmt.Println("error:", err)
		} else {
			fmt.Println("done")
		}
	}
}

func (p *puppet) do(what string, args []string) (err error) {
	ctx := context.Background()
	switch what {
	case "files": // the limit
		n, _ := strconv.ParseUint(args[0], 10, 64)
		return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: n})
	case "listen":
		p.ln, err = Listen(p.path)
	case "accept":
		p.giver, err = p.ln.Accept(ctx)
	case "give":
		n, _ := strconv.Atoi(args[0])
		var state []byte
		if len(args) > 1 {
			size, _ := strconv.Atoi(args[1])
			state = make([]byte, size)
		}
		for i := 0; i < n && err == nil; i++ {
			err = p.giver.Give(Item{Kind: "file", Name: strconv.Itoa(i), File: os.Stdin, State: state})
		}
	case "commit":
		err = p.giver.Commit(ctx)
	case "take":
		p.taker, err = Take(ctx, p.path)
	case "next":
		err = p.next()
	case "all":
		for err == nil {
			err = p.next()
		}
		if err == io.EOF {
			err = nil
		}
	case "token":
		_, err = takeToken(p.taker.token)
	case "acknowledge":
		err = p.taker.Acknowledge()
	case "inherit":
		p.ln, err = p.taker.Listener()
	case "echo":
		for _, it := range p.items {
			c, err := net.FileConn(it.File)
			if err != nil {
				return err
			}
			go io.Copy(c, c)
		}
	case "close":
		err = p.ln.Close()
	default:
		err = errors.New("what is " + what + "?")
	}
	return err
}

func (p *puppet) next() error {
	it, err := p.taker.Next()
	if err == nil {
		p.items = append(p.items, it)
	}
	return err
}

// process is a puppet as the test has it.
type process struct {
	*exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
	waited bool
}

func start(t testing.TB, path string) *process {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVar+"="+path, "GORACE=atexit_sleep_ms=10")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	ok(t, err)
	out, err := cmd.StdoutPipe()
	ok(t, err)
	ok(t, cmd.Start())
	p := &process{Cmd: cmd, in: in, out: bufio.NewReader(out)}
	t.Cleanup(p.kill)
	return p
}

// tell gives an order without waiting for the answer.
func (p *process) tell(order string) { fmt.Fprintln(p.in, order) }

// answer is "" for done.
func (p *process) answer() string {
	line, err := p.out.ReadString('\n')
	if err != nil {
		return err.Error()
	}
	return strings.TrimPrefix(strings.TrimSpace(line), "done")
}

// do gives orders that must not fail.
func (p *process) do(t testing.TB, orders ...string) {
	t.Helper()
	for _, order := range orders {
		p.tell(order)
		if got := p.answer(); got != "" {
			t.Fatalf("%s: %s", order, got)
		}
	}
}

func (p *process) kill() {
	if p.waited {
		return
	}
	p.waited = true
	p.Process.Kill()
	p.Wait()
}

// pause stops the process until the test ends or it is sent SIGCONT.
func (p *process) pause(t testing.TB) {
	t.Helper()
	ok(t, p.Process.Signal(syscall.SIGSTOP))
	var status unix.WaitStatus
	if _, err := unix.Wait4(p.Process.Pid, &status, unix.WUNTRACED, nil); err != nil || !status.Stopped() {
		t.Fatalf("stop: %v, %v", err, status)
	}
}

func (p *process) resume(t testing.TB) {
	t.Helper()
	ok(t, p.Process.Signal(syscall.SIGCONT))
}

func socketPath(t testing.TB) string { return filepath.Join(t.TempDir(), "h.sock") }

func listen(t testing.TB, c Config, path string) *Listener {
	t.Helper()
	l, err := c.Listen(path)
	ok(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

// pair is both ends of a handoff in this process.
func pair(t testing.TB, give, take Config) (*Giver, *Taker, *Listener) {
	t.Helper()
	path := socketPath(t)
	l := listen(t, give, path)
	taken := make(chan *Taker, 1)
	go func() {
		taker, err := take.Take(t.Context(), path)
		if err != nil {
			t.Error(err)
		}
		taken <- taker
	}()
	g := accept(t, l)
	taker := <-taken
	if taker == nil {
		t.FailNow()
	}
	t.Cleanup(func() { taker.Close() })
	return g, taker, l
}

func accept(t testing.TB, l *Listener) *Giver {
	t.Helper()
	g, err := l.Accept(t.Context())
	ok(t, err)
	t.Cleanup(func() { g.Close() })
	return g
}

// drain takes all items and closes their files.
func drain(taker *Taker) (n int, err error) {
	for {
		it, err := taker.Next()
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		it.File.Close()
		n++
	}
}

func give(t testing.TB, g *Giver, n int) {
	t.Helper()
	for i := range n {
		ok(t, g.Give(Item{Kind: "file", Name: strconv.Itoa(i), File: os.Stdin, State: []byte("state")}))
	}
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantError(t testing.TB, err, target error, words ...string) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Errorf("got error %v, want %v", err, target)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("got error %q, want %q in it", err, w)
		}
	}
}
