//go:build linux

package cli

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple/internal/lab"
)

// crowd opens so many listeners in a host.
func crowd(t *testing.T, host *lab.Host, n int) {
	t.Helper()
	for range n {
		l, err := host.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
	}
}

func TestWatchFitsTheScreenAndEndsWithoutAWord(t *testing.T) {
	host := lab.NewHost(t, "watched")
	crowd(t, host, 30)
	for _, args := range [][]string{{"ls", "-w", "-t"}, {"ls", "--watch=10ms", "-t"}, {"ls", "--watch=10ms", "--group", "port", "-t"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			p := openTerminal(t, host, 80, 24, exec.Command("ft", args...))
			p.await(0, "and ")
			p.await(0, "30 sockets")
			p.cmd.Process.Signal(os.Interrupt)
			late := time.AfterFunc(20*time.Second, func() { p.cmd.Process.Kill() })
			defer late.Stop()
			if p.cmd.Wait(); p.cmd.ProcessState.ExitCode() != exitDone {
				t.Errorf("ended with %v, want exit code %d", p.cmd.ProcessState, exitDone)
			}
			screens := strings.Split(p.seen(), "\x1b[H\x1b[2J")
			if n := strings.Count(screens[1], "\n"); n > 23 {
				t.Errorf("%d lines on 24:\n%s", n, screens[1])
			}
			if strings.Contains(p.seen(), "interrupted") {
				t.Errorf("said\n%s", p.seen())
			}
		})
	}
}

func TestListsEndWhereTheirReaderDoes(t *testing.T) {
	host := lab.NewHost(t, "piped")
	crowd(t, host, 3)
	for _, format := range []string{formatTable, formatJSON, formatNDJSON, formatCSV} {
		t.Run(format, func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			r.Close()
			ft := exec.CommandContext(t.Context(), "ft", "ls", "-o", format, "--columns", "local")
			var stderr bytes.Buffer
			ft.Stdout, ft.Stderr = w, &stderr
			host.Do(t, func() { err = ft.Run() })
			w.Close()
			if status := ft.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGPIPE || stderr.Len() > 0 {
				t.Errorf("ended with %v and said %q, want SIGPIPE", err, &stderr)
			}

			full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer full.Close()
			ft = exec.CommandContext(t.Context(), "ft", "ls", "-o", format, "--columns", "local")
			ft.Stdout, ft.Stderr = full, &stderr
			host.Do(t, func() { ft.Run() })
			if ft.ProcessState.ExitCode() != exitFailed || !strings.Contains(stderr.String(), "no space left on device") {
				t.Errorf("on a full disk: ended with %v and said %q", ft.ProcessState, &stderr)
			}
		})
	}
}

// A group by port shows what listens with its connections.
func TestGroupsCountConnectionsWithoutAll(t *testing.T) {
	host := lab.NewHost(t, "grouped")
	l, err := host.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range 3 {
		var c net.Conn
		host.Do(t, func() { c, err = (&net.Dialer{}).DialContext(context.Background(), "tcp", l.Addr().String()) })
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	var out []byte
	host.Do(t, func() { out, err = exec.Command("ft", "ls", "-t", "--group", "port", "-o", "csv").Output() })
	want := fmt.Sprintf("tcp %d,4,1,3,", l.Addr().(*net.TCPAddr).Port)
	if err != nil || !strings.Contains(string(out), want) {
		t.Errorf("%v, got\n%swant %s", err, out, want)
	}
}

// Without owners rows are printed as they come, but for a table that is short.
func TestAShortTableIsInOrderWithoutOwners(t *testing.T) {
	host := lab.NewHost(t, "ordered")
	crowd(t, host, 30)
	var stdout, stderr bytes.Buffer
	ft := exec.Command("ft", "ls", "-t", "--columns", "local")
	ft.Stdout, ft.Stderr = &stdout, &stderr
	var err error
	host.Do(t, func() { err = ft.Run() })
	lines := strings.Split(strings.TrimSpace(stdout.String()), "\n")
	if err != nil || len(lines) != 31 || lines[0] != "LOCAL" || !slices.IsSorted(lines[1:]) || stderr.String() != "30 sockets\n" {
		t.Errorf("%v, got\n%s%swant LOCAL, 30 rows in order, and their number", err, &stdout, &stderr)
	}
}
