package cli

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"

	"github.com/fivetuple/fivetuple/port/lease"
)

// Where only a parent may look into the command, it is a child of ft, and not what
// ft becomes. The leases are the child's all the same: it may outlive ft.
func TestLeasesPassToACommandThatIsAChild(t *testing.T) {
	t.Setenv("STATE_DIRECTORY", t.TempDir())
	t.Setenv("FT_CLAIMS_DIR", "none")
	a := &app{err: t.Output()}
	f := runFlags{portFlags: portFlags{proto: "both"}, names: []string{"a", "b"}}
	ports, err := f.ports(a)
	if err != nil {
		t.Fatal(err)
	}
	leases, err := a.acquireAll(t.Context(), f, ports, "/usr/bin/sleep")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range ports {
		defer p.sockets.close()
	}
	child := exec.Command("sleep", "1000")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Process.Kill()
	if err := a.passLeases(t.Context(), leases, child.Process.Pid, "/usr/bin/program-of-a-long-name"); err != nil {
		t.Fatal(err)
	}
	want, err := lease.OwnerOf(child.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	want.Command = "program-of-a-lo"
	listed, err := listLeases(t.Context())
	if err != nil || len(listed) != 4 {
		t.Fatalf("%d leases are listed, want 4: %v", len(listed), err)
	}
	for _, l := range listed {
		if l.Owner != want {
			t.Errorf("%s, want %s", l, want)
		}
	}
	child.Process.Kill()
	child.Wait()
	if left, err := listLeases(t.Context()); err != nil || len(left) != 0 {
		t.Errorf("after the command %v is left (%v)", left, err)
	}
}

// The signal was caught when the command did not run yet, so it is lost to it.
func TestCommandIsNotRunAfterASignal(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	a := &app{err: t.Output()}
	if err := a.passLeases(ctx, nil, os.Getpid(), "true"); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := a.passLeases(ctx, nil, os.Getpid(), "true"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}
