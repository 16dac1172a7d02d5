package lease

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// roleVariable tells the test binary to play a process that uses a registry.
const roleVariable = "FT_LEASE_TEST_ROLE"

// play runs a process's part and returns its exit code.
func play(role string, args []string) int {
	parts := map[string]func(args []string) error{
		"stop while it has the lock": stopWithTheLock,
		"worker":                     work,
		"script":                     runScript,
		"stranger":                   openAndLease,
		"acquire and release":        acquireAndRelease,
	}
	part, ok := parts[role]
	if !ok {
		fmt.Fprintln(os.Stderr, "no such role:", role)
		return 2
	}
	if err := part(args); err != nil {
		fmt.Fprintf(os.Stderr, "%s %d: %v\n", role, os.Getpid(), err)
		return 1
	}
	return 0
}

// player returns a command that plays a role, and is killed if the tests are.
func player(t testing.TB, role string, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	cmd.Stderr = t.Output()
	return cmd
}

// start starts a command that is killed at the end of the test, if it still runs.
func start(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kill(cmd) })
}

// kill kills a process with SIGKILL and waits until it is gone.
func kill(cmd *exec.Cmd) {
	cmd.Process.Kill()
	cmd.Wait()
}

// newOwner starts a process that only lives.
func newOwner(t testing.TB) (Owner, *exec.Cmd) {
	t.Helper()
	cmd := exec.Command("cat")
	if _, err := cmd.StdinPipe(); err != nil { // so that it waits for input
		t.Fatal(err)
	}
	start(t, cmd)
	o, err := OwnerOf(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	return o, cmd
}

// stopWithTheLock stops itself in the middle of a grant.
func stopWithTheLock(args []string) error {
	s, err := Open(context.Background(), args[0], withOwnClaims(args[0], Options{}))
	if err != nil {
		return err
	}
	// Another thread may take the signal, and this one run for a moment yet.
	goOn := make(chan os.Signal, 1)
	signal.Notify(goOn, unix.SIGCONT)
	l, err := s.Acquire(context.Background(), Request{Name: "stopped", Bind: func(context.Context, netip.AddrPort) error {
		if err := unix.Kill(os.Getpid(), unix.SIGSTOP); err != nil {
			return err
		}
		<-goOn
		return nil
	}})
	if err != nil {
		return err
	}
	fmt.Println(l.Port) // it was let go on
	return s.Close()
}

// waitStopped waits until a process is stopped by a signal.
func waitStopped(t *testing.T, pid int) {
	t.Helper()
	if err := waitState(pid, unix.WSTOPPED); err != nil {
		t.Fatal(err)
	}
}

// waitState waits for a change of a child's state, which it leaves to be waited for again.
func waitState(pid, options int) error {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, options|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			return os.NewSyscallError("waitid", err)
		}
	}
}

// intArg is a number among the arguments of a role.
func intArg(args []string, i int) int {
	n, err := strconv.Atoi(args[i])
	if err != nil {
		panic(err)
	}
	return n
}
