//go:build linux

package cli

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple/internal/lab"
)

// terminal is a pseudo terminal (pty(7)) with a program that believes in it.
type terminal struct {
	t             *testing.T
	master, slave *os.File
	before        *unix.Termios
	cmd           *exec.Cmd

	mu     sync.Mutex
	output bytes.Buffer
}

func openTerminal(t *testing.T, host *lab.Host, columns, rows uint16, cmd *exec.Cmd) *terminal {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatalf("open /dev/ptmx: %v: mount devpts there", err)
	}
	master := os.NewFile(uintptr(fd), "ptmx")
	t.Cleanup(func() { master.Close() })
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0))
	// TIOCGPTPEER finds the slave also where /dev/pts is of another mount.
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		t.Fatalf("open the slave of a pseudo terminal: %v", errno)
	}
	slave := os.NewFile(peer, "pts")
	t.Cleanup(func() { slave.Close() })
	must(unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns}))
	before, err := unix.IoctlGetTermios(int(peer), unix.TCGETS)
	must(err)

	p := &terminal{t: t, master: master, slave: slave, before: before, cmd: cmd}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.Env = append(os.Environ(), "TERM=xterm-256color", "LC_ALL=C.UTF-8")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	host.Do(t, func() { err = cmd.Start() })
	must(err)
	t.Cleanup(func() { cmd.Process.Kill() })
	go p.read()
	return p
}

func (p *terminal) read() {
	buf := make([]byte, 4096)
	for {
		n, err := p.master.Read(buf)
		p.mu.Lock()
		p.output.Write(buf[:n])
		p.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// sequences are what moves the cursor and sets colours.
var sequences = regexp.MustCompile("\x1b\\[[0-9;:?<>=$]*[a-zA-Z]")

// seen is all that was written to the terminal so far.
func (p *terminal) seen() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.String()
}

// await waits until something is written after what was there at from, and
// returns how much is there then.
func (p *terminal) await(from int, want string) int {
	p.t.Helper()
	var got string
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		got = p.seen()
		if strings.Contains(sequences.ReplaceAllString(got[from:], ""), want) {
			return len(got)
		}
		await := time.NewTimer(5 * time.Millisecond)
		<-await.C
	}
	p.t.Fatalf("%q never came on the screen; it got\n%s", want, sequences.ReplaceAllString(got[from:], " "))
	return 0
}

func (p *terminal) press(keys string) { p.master.WriteString(keys) }

// ends waits for the program's end, and looks whether the terminal is as it was.
func (p *terminal) ends(code int) {
	p.t.Helper()
	late := time.AfterFunc(20*time.Second, func() { p.cmd.Process.Kill() })
	p.cmd.Wait()
	late.Stop()
	if got := p.cmd.ProcessState; got.ExitCode() != code {
		p.t.Errorf("ended with %v, want exit code %d:\n%s", got, code, sequences.ReplaceAllString(p.seen(), " "))
	}
	after, err := unix.IoctlGetTermios(int(p.slave.Fd()), unix.TCGETS)
	if err != nil {
		p.t.Fatal(err)
	}
	if *after != *p.before {
		p.t.Errorf("the terminal is left with %+v, was %+v", *after, *p.before)
	}
	const show, leave = "\x1b[?25h", "\x1b[?1049l"
	for deadline := time.Now().Add(10 * time.Second); ; {
		got := p.seen()
		if strings.LastIndex(got, show) > strings.LastIndex(got, "\x1b[?25l") && strings.LastIndex(got, leave) > strings.LastIndex(got, "\x1b[?1049h") {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("the cursor or the first screen does not come back: %q", got)
		}
	}
}

// pair is a connection within the host.
func pair(t *testing.T, host *lab.Host) (client, server net.Conn) {
	t.Helper()
	l, err := host.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = host.Dial(t.Context(), "tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return client, server
}

func TestTopShowsAConnectionAndClosesIt(t *testing.T) {
	for _, size := range [][2]uint16{{80, 24}, {60, 12}} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			host := lab.NewHost(t, "watched")
			client, server := pair(t, host)
			other, otherServer := pair(t, host)
			end := client.LocalAddr().String()
			_, port, _ := net.SplitHostPort(end)

			p := openTerminal(t, host, size[0], size[1], exec.Command("ft", "top", "--interval", "200ms", "src", "port", port))
			at := p.await(0, end)
			p.await(0, "1 socket ")
			p.press("\x1b[Bk")
			at = p.await(at, "Close this socket?")
			p.await(0, end+" to "+server.LocalAddr().String())
			p.press("y")
			p.await(at, "Closed tcp")

			b := make([]byte, 1)
			server.SetReadDeadline(time.Now().Add(10 * time.Second))
			if _, err := server.Read(b); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the peer got %v, want a reset", err)
			}
			client.SetReadDeadline(time.Now().Add(10 * time.Second))
			if _, err := client.Read(b); !errors.Is(err, syscall.ECONNABORTED) {
				t.Errorf("the holder got %v, want ECONNABORTED", err)
			}
			if _, err := other.Write([]byte("x")); err != nil {
				t.Errorf("another connection: %v", err)
			}
			if _, err := otherServer.Read(b); err != nil {
				t.Errorf("another connection: %v", err)
			}
			p.press("q")
			p.ends(exitDone)
		})
	}
}

func TestTopGivesTheTerminalBackWhenItIsEnded(t *testing.T) {
	for _, how := range []os.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(how.String(), func(t *testing.T) {
			host := lab.NewHost(t, "watched")
			client, _ := pair(t, host)
			p := openTerminal(t, host, 80, 24, exec.Command("ft", "top"))
			p.await(0, client.LocalAddr().String())
			p.cmd.Process.Signal(how)
			p.ends(exitDone)
		})
	}
}

// With NO_COLOR there are no colours, and the selected row is still told apart.
func TestTopWithoutColours(t *testing.T) {
	t.Setenv("NO_COLOR", "1")
	host := lab.NewHost(t, "watched")
	client, _ := pair(t, host)
	p := openTerminal(t, host, 80, 24, exec.Command("ft", "top"))
	p.await(0, client.LocalAddr().String())
	p.press("\x1b[B\r")
	p.await(0, "round trip")
	p.press("\x03")
	p.ends(exitDone)
	if colours := regexp.MustCompile("\x1b\\[[0-9;]*(3[0-7]|9[0-7]|38;[0-9;]*)m").FindString(p.seen()); colours != "" {
		t.Errorf("it sent %q", colours)
	}
	if !strings.Contains(p.seen(), "\x1b[7m") {
		t.Error("no row is in reverse")
	}
}
