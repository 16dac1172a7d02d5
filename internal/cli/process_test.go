//go:build linux

package cli

import (
	"bytes"
	"context"
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
			if got, want := stderr.String(), "ended after 1 of 2 ports on 1 host in "; !strings.HasPrefix(got, want) || strings.Count(got, "\n") != 1 {
				t.Errorf("said %q, want %q...", got, want)
			}
		})
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
