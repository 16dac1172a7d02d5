package lease

import (
	"errors"
	"math"
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestOwnerOfAProcess(t *testing.T) {
	me, err := OwnerOf(os.Getpid())
	if err != nil || me.PID != os.Getpid() || !strings.HasPrefix("lease.test", me.Command) || me.Start == "" || me.User == "" {
		t.Errorf("got %+v, %v", me, err)
	}
	if again, err := ownerOf(os.Getpid()); again != me {
		t.Errorf("got %+v, %v, then %+v", me, err, again)
	}
	cat := exec.Command("cat")
	stdin, err := cat.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cat.Start(); err != nil {
		t.Fatal(err)
	}
	child, err := OwnerOf(cat.Process.Pid)
	if err != nil || child.Command != "cat" || child.User != me.User || child.Start == me.Start {
		t.Errorf("got %+v, %v, want a child of %+v", child, err, me)
	}
	stdin.Close()
	cat.Wait()
	for _, pid := range []int{cat.Process.Pid, -1, math.MaxInt32} {
		if o, err := OwnerOf(pid); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("no process %d: got %+v, %v, want os.ErrNotExist", pid, o, err)
		}
	}
}
