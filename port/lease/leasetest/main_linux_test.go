package leasetest

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fivetuple/fivetuple/internal/lab"
	"github.com/fivetuple/fivetuple/port/lease"
)

// The test binary is one that a test starts, with what this variable names in
// the place of all tests.
const playVariable = "LEASETEST_PLAY"

func TestMain(m *testing.M) {
	if os.Getenv(playVariable) != "" {
		fmt.Println("failed:", m.Run())
		os.Stdout.Close()
		io.Copy(io.Discard, os.Stdin) // so that what the test has left is not taken away by the end of the process
		os.Exit(0)
	}
	lab.Enter()
	os.Setenv("FT_CLAIMS_DIR", "none")
	os.Exit(m.Run())
}

// TestPlay is the only test of a binary that another test starts.
func TestPlay(t *testing.T) {
	if play := plays[os.Getenv(playVariable)]; play != nil {
		play(t)
	}
}

var plays = map[string]func(t *testing.T){
	"hold": func(t *testing.T) {
		for range 20 {
			fmt.Println(Port(t))
			fmt.Println(Listen(t).Addr().(*net.TCPAddr).Port)
			t.Run("sub", func(t *testing.T) {
				fmt.Println(Port(t))
			})
		}
		fmt.Println("ready")
		io.ReadFull(os.Stdin, make([]byte, 1))
	},
	"fail": func(t *testing.T) {
		Port(t)
		Listen(t)
		t.FailNow()
	},
	"exhausted": func(t *testing.T) {
		taken := Port(t)
		Port(t, func(r *lease.Request) { r.Port = taken })
	},
	"panic": func(t *testing.T) {
		Port(t)
		Listen(t)
		panic("as a test does")
	},
	"killed": func(t *testing.T) {
		Port(t)
		Listen(t)
		fmt.Println("ready")
		select {}
	},
}

// player is a test binary that is started by a test.
type player struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Reader
}

func start(t *testing.T, play string) *player {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestPlay$")
	cmd.Env = append(os.Environ(), playVariable+"="+play)
	stdin, errIn := cmd.StdinPipe()
	stdout, errOut := cmd.StdoutPipe()
	if errIn != nil || errOut != nil {
		t.Fatal(errIn, errOut)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &player{cmd, stdin, bufio.NewReader(stdout)}
	t.Cleanup(p.kill)
	return p
}

// read returns the lines up to the one that begins with end.
func (p *player) read(t *testing.T, end string) []string {
	t.Helper()
	var lines []string
	for {
		line, err := p.stdout.ReadString('\n')
		if err != nil {
			t.Fatalf("%v after %q", err, lines)
		}
		lines = append(lines, strings.TrimSpace(line))
		if strings.HasPrefix(line, end) {
			return lines
		}
	}
}

func (p *player) kill() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

// newRegistry makes an empty one this user's, for the test.
func newRegistry(t *testing.T) *lease.Shared {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("STATE_DIRECTORY", dir)
	ports, err := lease.Open(t.Context(), filepath.Join(dir, "ports.db"), lease.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ports.Close() })
	return ports
}

func leases(t *testing.T, ports lease.Registry) []lease.Lease {
	t.Helper()
	l, err := ports.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return l
}
