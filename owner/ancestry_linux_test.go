package owner

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestAncestorsGoUpToTheFirstProcess(t *testing.T) {
	child := startReady(t, "hold", nil)
	got, err := Ancestors(child.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	want := []Process{must(ProcessOf(os.Getpid())), must(ProcessOf(os.Getppid()))}
	if len(got) < 2 || !slices.Equal(got[:2], want) {
		t.Fatalf("got %v, want %v first", got, want)
	}
	if last := got[len(got)-1]; last.PID != 1 {
		t.Errorf("got %v last, want process 1", last)
	}
	if first, err := Ancestors(1); err != nil || len(first) != 0 {
		t.Errorf("ancestors of process 1: got %v, %v, want none", first, err)
	}
	if _, err := Ancestors(1 << 30); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got error %v, want %v", err, fs.ErrNotExist)
	}
}

func TestCommandLineIsExactly(t *testing.T) {
	child := exec.Command("cat")
	child.Args = []string{"a name", "-", "", "0\n\xff"} // of which it reads its input first
	in := must(child.StdinPipe())
	ok(child.Start())
	defer child.Wait()
	defer in.Close()
	got, err := CommandLine(child.Process.Pid)
	for err == nil && len(got) == 0 { // it is set a little after the program has begun
		got, err = CommandLine(child.Process.Pid)
	}
	if err != nil || !slices.Equal(got, child.Args) {
		t.Errorf("got %q, %v, want %q", got, err, child.Args)
	}
	if _, err := CommandLine(1 << 30); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got error %v, want %v", err, fs.ErrNotExist)
	}
}

func TestCommandLineOfAZombieIsEmpty(t *testing.T) {
	child := exec.Command("true")
	ok(child.Start())
	defer child.Wait()
	for must(ProcessOf(child.Process.Pid)).Alive() {
		time.Sleep(time.Millisecond) // Wait would reap it
	}
	if got, err := CommandLine(child.Process.Pid); err != nil || len(got) != 0 {
		t.Errorf("got %q, %v, want nothing", got, err)
	}
}

func TestStartedIsWhenItStarted(t *testing.T) {
	before := time.Now().Add(-2 * time.Second / ticksPerSecond)
	child := startReady(t, "hold", nil)
	after := time.Now().Add(2 * time.Second / ticksPerSecond)
	got, err := must(ProcessOf(child.Process.Pid)).Started()
	if err != nil || got.Before(before) || got.After(after) {
		t.Errorf("got %v, %v, want from %v to %v", got, err, before, after)
	}

	// That the machine started, as /proc/stat says it to the second.
	var btime int64
	for line := range strings.Lines(string(must(os.ReadFile("/proc/stat")))) {
		fmt.Sscanf(line, "btime %d", &btime)
	}
	got, err = Process{}.Started()
	if err != nil || got.Sub(time.Unix(btime, 0)).Abs() > 2*time.Second {
		t.Errorf("got %v, %v, want %v", got, err, time.Unix(btime, 0))
	}
}
