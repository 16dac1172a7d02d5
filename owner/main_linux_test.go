package owner

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// TestMain makes the test binary the children too that hold or look for sockets.
func TestMain(m *testing.M) {
	switch os.Getenv("FT_TEST_CHILD") {
	case "":
		goleak.VerifyTestMain(m)
	case "hold": // what it was started with, as descriptor 3
	case "receive": // a descriptor over the Unix socket that is descriptor 3
		oob := make([]byte, unix.CmsgSpace(4))
		_, n, _, _, err := unix.Recvmsg(3, make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
		ok(err)
		fds := must(unix.ParseUnixRights(&must(unix.ParseSocketControlMessage(oob[:n]))[0]))
		ok(unix.Dup3(fds[0], 77, 0))
		ok(unix.Close(fds[0]))
	case "rename": // itself
		ok(os.WriteFile("/proc/self/comm", []byte("\x1b[31mred"), 0))
	case "hidepid": // looks, without any capability, into a process that /proc hides
		ok(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
		ok(unix.Mount("proc", "/proc", "proc", 0, "hidepid=4")) // unlike 1, also from group 0
		other := exec.Command("cat")
		must(other.StdinPipe())
		ok(other.Start()) // has the capabilities that this thread gives up, and ends with its first process, this one
		dir := must(openProcess(other.Process.Pid))
		runtime.LockOSThread()
		ok(unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &new([2]unix.CapUserData)[0]))
		var s searcher
		fmt.Println(denied(s.descriptors(dir)), mayHoldSockets(dir))
		os.Exit(0)
	case "find": // the holders of the socket it was started with
		var st unix.Stat_t
		ok(unix.Fstat(3, &st))
		found := must(Find(context.Background(), uint32(st.Ino)))
		ok(json.NewEncoder(os.Stdout).Encode(found))
		os.Exit(0)
	}
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin) // until the test is over
}

// must and ok stand for calls that here never fail for a good reason.
func must[T any](v T, err error) T {
	ok(err)
	return v
}

func ok(err error) {
	if err != nil {
		panic(err)
	}
}

// start runs the test binary as a child with f as descriptor 3. It ends with the test.
func start(t *testing.T, role string, f *os.File, attr *syscall.SysProcAttr) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "FT_TEST_CHILD="+role,
		"GORACE=atexit_sleep_ms=10") // instead of a second
	cmd.ExtraFiles = []*os.File{f}
	cmd.SysProcAttr = attr
	cmd.Stderr = os.Stderr
	stdin, stdout := must(cmd.StdinPipe()), must(cmd.StdoutPipe())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		cmd.Wait()
	})
	return cmd, bufio.NewReader(stdout)
}

// startReady waits until the child holds what it should.
func startReady(t *testing.T, role string, f *os.File) *exec.Cmd {
	t.Helper()
	cmd, out := start(t, role, f, nil)
	awaitReady(t, cmd, out)
	return cmd
}

func awaitReady(t *testing.T, cmd *exec.Cmd, out *bufio.Reader) {
	t.Helper()
	if line, err := out.ReadString('\n'); line != "ready\n" {
		t.Fatalf("child %s: got %q, %v, want ready", strconv.Itoa(cmd.Process.Pid), line, err)
	}
}
