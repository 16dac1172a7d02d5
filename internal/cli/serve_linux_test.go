package cli

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestServe runs testdata/serve: ft serve and ft demo as processes, with
// Debian's netcat as the client.
func TestServe(t *testing.T) {
	if _, err := exec.LookPath("nc"); err != nil {
		t.Fatal("apt-get install netcat-openbsd: ", err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/serve",
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               setUpDirectories,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":     exits,
			"await":     await,
			"awaitline": awaitLine,
			"signal":    signalChild,
		},
	})
}

// await is "await NETWORK ADDRESS": it waits until somebody accepts there.
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: await NETWORK ADDRESS")
	}
	address := args[1]
	if args[0] == "unix" {
		address = ts.MkAbs(address)
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		c, err := net.Dial(args[0], address)
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("nobody accepts on %s within ten seconds: %v", args[1], err)
		}
		time.Sleep(5 * time.Millisecond) // between two attempts; nothing tells when a process listens
	}
}

// awaitLine is "awaitline FILE TEXT": it waits until the file has the text.
func awaitLine(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: awaitline FILE TEXT")
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		b, err := os.ReadFile(ts.MkAbs(args[0]))
		if strings.Contains(string(b), args[1]) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%q is not in %s after ten seconds (%v):\n%s", args[1], args[0], err, b)
		}
		time.Sleep(5 * time.Millisecond) // between two looks at the file
	}
}

// signalChild is "signal NAME": it sends SIGHUP, SIGTERM or SIGKILL to the ft
// that runs in the background.
func signalChild(ts *testscript.TestScript, neg bool, args []string) {
	signals := map[string]os.Signal{"HUP": syscall.SIGHUP, "TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL}
	if neg || len(args) != 1 || signals[args[0]] == nil {
		ts.Fatalf("usage: signal HUP|TERM|KILL")
	}
	for _, cmd := range ts.BackgroundCmds() {
		ts.Check(cmd.Process.Signal(signals[args[0]]))
	}
}
