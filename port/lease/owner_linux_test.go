package lease

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"strings"
	"testing"
	"unicode"
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

func FuzzParseStat(f *testing.F) {
	rest := " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20"
	f.Add("cat", rest)
	f.Add(") S 1 (\n", rest)
	f.Add("", "")
	f.Fuzz(func(t *testing.T, comm, after string) {
		command, ticks, err := parseStat(fmt.Appendf(nil, "12 (%s)%s", comm, after))
		if after == rest && (err != nil || ticks != "4711" || command != printable(comm)) {
			t.Errorf("got %q, %q, %v", command, ticks, err)
		}
		if strings.ContainsFunc(command, func(c rune) bool { return !unicode.IsPrint(c) }) {
			t.Errorf("%q does not print", command)
		}
	})
}
