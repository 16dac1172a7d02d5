package owner

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOpenIsTheSameSocket(t *testing.T) {
	l := listener(t)
	child := startReady(t, "hold", l)
	p := must(ProcessOf(child.Process.Pid))
	before := openFDs(t)
	fd, err := Holder{p, 3, 0}.Open()
	if err != nil {
		t.Fatal(err)
	}
	if got := inodeOfFD(fd); got != inodeOf(l) {
		t.Errorf("got inode %d, want %d", got, inodeOf(l))
	}
	if flags := must(unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)); flags&unix.FD_CLOEXEC == 0 {
		t.Error("programs that are started would have it too")
	}
	ok(unix.Close(fd))

	later := p
	later.Start++
	ended := exec.Command("true")
	ok(ended.Start())
	gone := must(ProcessOf(ended.Process.Pid))
	ended.Wait()
	for _, c := range []struct {
		name, says string
		of         Holder
	}{
		{"a closed descriptor", "it is closed", Holder{p, 99, 0}},
		{"another process of that PID", "it has ended", Holder{later, 3, 0}},
		{"a process that has ended", "it has ended", Holder{gone, 3, 0}},
		{"a thread that is not there", "it has ended", Holder{p, 3, 1 << 30}},
		{"a thread of another process", "it has ended", Holder{p, 3, os.Getpid()}},
	} {
		fd, err := c.of.Open()
		if fd != -1 || !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %d, %v, want %q and %v", c.name, fd, err, c.says, fs.ErrNotExist)
		}
	}
	if after := openFDs(t); after != before {
		t.Errorf("got %d descriptors open, want %d as before", after, before)
	}
}

// To a process in a PID namespace of its own that sees the /proc of another, its own PID 1 is not
// the one it sees there.
func TestOpenKnowsItsPIDNamespace(t *testing.T) {
	t.Setenv("FT_TEST_PID", "1")
	_, out := start(t, "open", listener(t), apart(syscall.CLONE_NEWPID))
	if line := must(out.ReadString('\n')); !strings.HasPrefix(line, "-1 ") || !strings.Contains(line, "another PID namespace") {
		t.Errorf("got %q, want an error", line)
	}
}

// A process in a user namespace of its own may not look into those outside, whoever
// runs the test.
func TestOpenSaysWhatIsMissing(t *testing.T) {
	l := listener(t)
	target := startReady(t, "hold", l)
	t.Setenv("FT_TEST_PID", strconv.Itoa(target.Process.Pid))
	cases := map[string]*syscall.SysProcAttr{"outside its user namespace": apart(0)}
	if os.Geteuid() == 0 {
		cases["run as root"] = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	for want, attr := range cases {
		_, out := start(t, "open", nil, attr)
		line := must(out.ReadString('\n'))
		if !strings.HasPrefix(line, "-1 true open descriptor 3 of ") || !strings.Contains(line, "CAP_SYS_PTRACE") || !strings.Contains(line, want) {
			t.Errorf("got %q, want -1, a permission error, CAP_SYS_PTRACE, and %q", line, want)
		}
	}
}
