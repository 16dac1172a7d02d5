//go:build linux

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/lab"
	"github.com/fivetuple/fivetuple/sockdiag"
)

// Like every program that `head` cuts off, ft dies of SIGPIPE without a word.
func TestOutputClosedEarlyIsNoError(t *testing.T) {
	for _, format := range []string{formatTable, formatWide, formatJSON, formatNDJSON, formatCSV} {
		t.Run(format, func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			r.Close()
			var stderr bytes.Buffer
			ft := exec.CommandContext(t.Context(), "ft", "opts", "-o", format)
			ft.Stdout, ft.Stderr = w, &stderr
			err = ft.Run()
			w.Close()
			if status := ft.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGPIPE {
				t.Errorf("ended with %v, want by SIGPIPE", err)
			}
			if stderr.Len() > 0 {
				t.Errorf("said %q", &stderr)
			}
		})
	}
}

func TestInterruptedScanPrintsWhatWasFound(t *testing.T) {
	for _, tt := range []struct{ format, want string }{
		{formatTable, "127.0.0.1  8501  open "},
		{formatJSON, "{\n  \"schema\": 1,\n  \"ports\": [\n    {\"host\":\"127.0.0.1\",\"port\":8501,"},
		{formatNDJSON, `{"host":"127.0.0.1","port":8501,"protocol":"tcp","state":"open",`},
	} {
		t.Run(tt.format, func(t *testing.T) {
			host := lab.NewHost(t, "scanned")
			host.Drop(t, "tcp", 8502)
			l, err := host.Listen("tcp", "127.0.0.1:8501")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()

			var stdout, stderr bytes.Buffer
			ft := exec.Command("ft", "scan", "127.0.0.1", "-p", "8501,8502", "--parallel", "1", "--timeout", "1h", "-o", tt.format)
			ft.Stdout, ft.Stderr = &stdout, &stderr
			host.Do(t, func() { err = ft.Start() })
			if err != nil {
				t.Fatal(err)
			}
			defer ft.Process.Kill()
			waitSynSent(t, host, 8502) // so the first port was reported
			ft.Process.Signal(os.Interrupt)
			if ft.Wait(); ft.ProcessState.ExitCode() != exitFailed {
				t.Errorf("ended with %v, want exit code %d", ft.ProcessState, exitFailed)
			}
			if got := stdout.String(); strings.Count(got, tt.want) != 1 || strings.Contains(got, "8502") {
				t.Errorf("printed\n%s\nwant once\n%s", got, tt.want)
			}
			if tt.format == formatJSON && json.Valid(stdout.Bytes()) {
				t.Errorf("a document that looks complete:\n%s", &stdout)
			}
			if got, want := stderr.String(), "ended after 1 of 2 ports on 1 host in "; !strings.HasPrefix(got, want) || strings.Count(got, "\n") != 1 {
				t.Errorf("said %q, want %q...", got, want)
			}
		})
	}
}

// What was checked before the interruption does not look like the whole answer.
func TestInterruptedCheckSaysSo(t *testing.T) {
	for _, format := range []string{formatTable, formatJSON, formatNDJSON, formatCSV} {
		t.Run(format, func(t *testing.T) {
			t.Setenv("STATE_DIRECTORY", t.TempDir())
			ctx, cancel := context.WithCancel(t.Context())
			var stdout, stderr bytes.Buffer
			a := &app{out: &stdout, err: &stderr, format: format}
			cancel()
			if code := a.exit(a.checkPorts(ctx, []string{"1-65535"}, checkFlags{})); code != exitFailed {
				t.Errorf("exit code %d, want %d", code, exitFailed)
			}
			if json.Valid(stdout.Bytes()) {
				t.Errorf("printed a complete document:\n%s", &stdout)
			}
			if got, want := stderr.String(), "ft: interrupted\n"; got != want {
				t.Errorf("said %q, want %q", got, want)
			}
		})
	}
}

func TestTablePrintsWhatCameBeforeAnError(t *testing.T) {
	var stdout bytes.Buffer
	a := &app{out: &stdout, format: formatTable}
	cut := errors.New("cut short")
	n, err := printRows(a, "ports", eachUntil([]string{"one", "two"}, cut), []column[string]{{head: "x", text: func(s string) string { return s }}})
	if got, want := stdout.String(), "X\none\ntwo\n"; n != 2 || err != cut || got != want {
		t.Errorf("got %d rows, %v:\n%s\nwant\n%s", n, err, got, want)
	}
}

// All processes are searched once, not once for each port, which would take many
// times as long as is allowed here.
func TestCheckFindsTheHoldersOfManyPortsTogether(t *testing.T) {
	t.Setenv("STATE_DIRECTORY", t.TempDir())
	const first, last = 21000, 22999
	for port := first; port <= last; port++ {
		l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	var stdout bytes.Buffer
	a := &app{out: &stdout, err: t.Output(), format: formatCSV}
	start := time.Now()
	err := a.checkPorts(t.Context(), []string{fmt.Sprintf("%d-%d", first, last)}, checkFlags{})
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("took %v", took)
	}
	held := fmt.Sprintf("(pid %d,", os.Getpid())
	if got, want := strings.Count(stdout.String(), held), last-first+1; got != want || err != answerIsNo {
		t.Errorf("found the holder of %d ports, want of %d; error %v", got, want, err)
	}
}

// waitSynSent waits until somebody in the host waits for an answer of a TCP port.
func waitSynSent(t *testing.T, host *lab.Host, port uint16) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	q := sockdiag.Query{
		Protocols:  []fivetuple.Network{fivetuple.TCP},
		States:     sockdiag.StatesOf(fivetuple.StateSynSent),
		RemotePort: port,
	}
	var found []sockdiag.Socket
	var err error
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for len(found) == 0 {
		select {
		case <-ctx.Done():
			t.Fatalf("nobody asked port %d", port)
		case <-look.C:
		}
		if host.Do(t, func() { found, err = sockdiag.List(ctx, q) }); err != nil {
			t.Fatal(err)
		}
	}
}
