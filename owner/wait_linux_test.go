package owner

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"
)

// runningCat starts a process that ends with the test at the latest.
func runningCat(t *testing.T) (*exec.Cmd, Process) {
	t.Helper()
	child := exec.Command("cat")
	stdin := must(child.StdinPipe())
	ok(child.Start())
	t.Cleanup(func() {
		stdin.Close()
		child.Wait()
	})
	return child, must(ProcessOf(child.Process.Pid))
}

// waiting starts n waits and returns when all of them wait for an event.
func waiting(t *testing.T, ctx context.Context, p Process, n int) (results chan error) {
	t.Helper()
	results = make(chan error, n)
	before := descriptors(t)
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	for range n {
		wg.Go(func() { results <- p.Wait(ctx) })
	}
	for deadline := time.Now().Add(10 * time.Second); descriptors(t) < before+n; {
		if time.Now().After(deadline) {
			t.Fatalf("got %d descriptors, %d before, want %d more for as many waits", descriptors(t), before, n)
		}
	}
	return results
}

// descriptors counts those of this process.
func descriptors(t *testing.T) int {
	t.Helper()
	return len(must(os.ReadDir("/proc/self/fd")))
}

func TestWaitUntilTheProcessEnds(t *testing.T) {
	child, p := runningCat(t)
	before, threads := descriptors(t), len(must(os.ReadDir("/proc/self/task")))
	const waits = 100
	results := waiting(t, t.Context(), p, waits)
	if now := len(must(os.ReadDir("/proc/self/task"))); now > threads+waits/2 {
		t.Errorf("got %d threads for %d waits, %d before", now, waits, threads)
	}
	select {
	case err := <-results:
		t.Fatalf("got %v while the process runs", err)
	default:
	}
	ok(child.Process.Kill())
	for range waits {
		if err := <-results; err != nil {
			t.Errorf("got %v, want nil", err)
		}
	}
	if err := p.Wait(t.Context()); err != nil { // a zombie still
		t.Errorf("zombie: got %v, want nil", err)
	}
	child.Wait()
	done, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Wait(done); err != nil {
		t.Errorf("reaped: got %v, want nil", err)
	}
	if after := descriptors(t); after > before {
		t.Errorf("got %d descriptors, %d before", after, before)
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	_, p := runningCat(t)
	ctx, cancel := context.WithCancel(t.Context())
	results := waiting(t, ctx, p, 2)
	cancel()
	for range cap(results) {
		if err := <-results; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want %v", err, context.Canceled)
		}
	}
	if err := p.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled before: got %v, want %v", err, context.Canceled)
	}
}

// Otherwise every wait looks at its process again and again.
func TestTheRuntimeWatchesAPidfd(t *testing.T) {
	f := must(openPidfd(os.Getpid()))
	defer f.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := waitReadable(ctx, f); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v, want %v", err, os.ErrDeadlineExceeded)
	}
}

func TestWaitIsNotForALaterProcess(t *testing.T) {
	p := must(ProcessOf(os.Getpid()))
	p.Start--
	for _, p := range []Process{p, {}, {PID: -1}} {
		if err := p.Wait(t.Context()); err != nil {
			t.Errorf("%v: got %v, want nil", p, err)
		}
	}
}

func TestWaitWithoutPidfd(t *testing.T) {
	_, out := start(t, "wait-without-pidfd", nil, nil)
	for _, want := range []string{"true\n", "<nil> false\n"} { // cancelled; then not
		if got, err := out.ReadString('\n'); got != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
}
