package owner

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"unsafe"

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
		var r reader
		pid := uint32(other.Process.Pid)
		groups, _ := newGroups([]uint32{7})
		_, found := tablesOf([]record{{pid: pid, thread: pid, inode: 7}}, &groups, 1<<60)
		_, changing := tablesOf([]record{{pid: pid, thread: pid}}, &groups, 1<<60)
		fmt.Println(denied(r.descriptors(dir, "fd", 0)), mayHoldSockets(dir), found, changing)
		os.Exit(0)
	case "no-proc": // whether a program that runs, and one that has ended, are alive
		ok(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
		runs, ended := exec.Command("cat"), exec.Command("cat")
		must(runs.StdinPipe())
		ok(runs.Start())
		must(ended.StdinPipe())
		ok(ended.Start())
		a, b := must(ProcessOf(runs.Process.Pid)), must(ProcessOf(ended.Process.Pid))
		ok(ended.Process.Kill())
		ended.Wait()
		ok(unix.Mount("none", "/proc", "tmpfs", 0, ""))
		fmt.Println(a.Alive(), b.Alive())
		os.Exit(0)
	case "cgroup": // in one of its own, which it removes when the test is over, however that ends
		signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
		made, remove := makeCgroup(cgroupMount())
		fmt.Println(made)
		io.Copy(io.Discard, os.Stdin)
		remove()
		os.Exit(0)
	case "end-first-thread": // and go on with the others
		go func() {
			for !bytes.Contains(must(os.ReadFile("/proc/self/stat")), []byte(") Z ")) {
				runtime.Gosched()
			}
			fmt.Println("ready")
			io.Copy(io.Discard, os.Stdin)
			os.Exit(0)
		}()
		unix.Syscall(unix.SYS_EXIT, 0, 0, 0) // of the first thread, see init
	case "caller": // of this process, and why there is none
		p, err := Caller()
		fmt.Println(p.PID, p.Start, p.Command, err)
		os.Exit(0)
	case "view": // of this process, and why there is none
		fmt.Println(View())
		os.Exit(0)
	case "wait-without-pidfd": // for the end of a program, where the system call is missing
		denyPidfdOpen()
		child := exec.Command("sleep", "0.5") // it looks more than twice
		ok(child.Start())
		p := must(ProcessOf(child.Process.Pid))
		soon, cancel := context.WithCancel(context.Background())
		cancel()
		fmt.Println(errors.Is(p.Wait(soon), context.Canceled))
		fmt.Println(p.Wait(context.Background()), p.Alive())
		ok(child.Wait())
		os.Exit(0)
	case "hold-many": // sockets, which it tells
		var inodes []uint32
		for range must(strconv.Atoi(os.Getenv("FT_TEST_COUNT"))) {
			var st unix.Stat_t
			ok(unix.Fstat(must(unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)), &st))
			inodes = append(inodes, uint32(st.Ino))
		}
		ok(json.NewEncoder(os.Stdout).Encode(inodes))
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	case "hold-in-thread": // and not in the others
		go func() {
			runtime.LockOSThread()
			ok(unix.Unshare(unix.CLONE_FILES))
			ok(unix.Dup3(3, 77, unix.O_CLOEXEC))
			ok(unix.Close(3))
			fmt.Println(unix.Gettid())
			unix.Pause()
		}()
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	case "change": // its descriptors all the time, but for 3
		for i := range 2 {
			go func() {
				for n := 0; ; n++ {
					a := must(unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0))
					b := must(unix.FcntlInt(uintptr(a), unix.F_DUPFD_CLOEXEC, 64<<(n%7)+i)) // the table grows
					ok(unix.Close(a))
					ok(unix.Close(b))
				}
			}()
		}
		go func() {
			for {
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					runtime.LockOSThread() // and end with the goroutine
					ok(unix.Unshare(unix.CLONE_FILES))
					ok(unix.Close(3))
				}()
				<-ended
			}
		}()
	case "find-in-namespace": // what it holds itself and what a child does, in a PID namespace of its own
		ok(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
		ok(unix.Mount("proc", "/proc", "proc", 0, ""))
		child := exec.Command("cat")
		child.ExtraFiles = []*os.File{os.NewFile(3, "held")}
		must(child.StdinPipe())
		ok(child.Start())
		for _, f := range []Finder{{}, {finder{refused: errors.ErrUnsupported}}} {
			found := must(f.Find(context.Background(), []uint32{inodeOfFD(3)}))
			fmt.Println(os.Getpid(), child.Process.Pid, found.Of(inodeOfFD(3)), found.Partial)
		}
		os.Exit(0) // and cat with it
	case "open": // descriptor 3 of another process
		p := must(ProcessOf(must(strconv.Atoi(os.Getenv("FT_TEST_PID")))))
		fd, err := Holder{Process: p, FD: 3}.Open()
		fmt.Println(fd, errors.Is(err, fs.ErrPermission), err)
		os.Exit(0)
	case "find": // the holders of the socket it was started with
		found := must(Find(context.Background(), inodeOfFD(3)))
		ok(json.NewEncoder(os.Stdout).Encode(map[string]any{"Holders": found.Of(inodeOfFD(3)), "Unreadable": found.Unreadable}))
		os.Exit(0)
	}
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin) // until the test is over
}

// The main goroutine of these roles stays in the first thread, as init functions do: one is
// to end it, the others are to leave it alone.
func init() {
	switch os.Getenv("FT_TEST_CHILD") {
	case "end-first-thread", "hold-in-thread", "change":
		runtime.LockOSThread()
	}
}

// denyPidfdOpen makes the system call fail as on Linux before 5.3 (seccomp(2)).
func denyPidfdOpen() {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // the number in struct seccomp_data
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: unix.SYS_PIDFD_OPEN},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	runtime.LockOSThread() // for no_new_privs
	ok(unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program))); errno != 0 {
		panic(errno)
	}
	if _, err := unix.PidfdOpen(os.Getpid(), 0); err != unix.ENOSYS {
		panic(fmt.Sprint("pidfd_open: got ", err, ", want ", unix.ENOSYS))
	}
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
func start(t testing.TB, role string, f *os.File, attr *syscall.SysProcAttr) (*exec.Cmd, *bufio.Reader) {
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
