package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// initName is the argv[0] of the lab's first process. As it is process 1 there,
// any program can see in /proc/1/cmdline whether it is in a lab, also one whose
// environment was cleared.
const initName = "fivetuple-lab"

// enter makes three processes of one test binary: the outer one, which `go test`
// sees; the first process of the lab, which sets it up and reaps orphans; and the
// one that runs the tests, in which alone enter returns.
func enter() {
	switch {
	case os.Args[0] == initName:
		exit(runInit())
	case !inside():
		exit(runOuter())
	}
}

func inside() bool {
	cmdline, err := os.ReadFile("/proc/1/cmdline")
	return err == nil && bytes.HasPrefix(cmdline, []byte(initName+"\x00"))
}

// exit skips the exit hooks of a binary built with -cover: the coverage is
// written by the process that runs the tests.
func exit(code int, err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		code = 1
	}
	syscall.Exit(code)
}

func runOuter() (code int, err error) {
	exe, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(exe)
	cmd.Args = append([]string{initName}, os.Args...)
	// On Debian an ordinary user's path lacks nft and most servers.
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = isolation()

	// The parent-death signal is sent when the parent's thread ends (PR_SET_PDEATHSIG(2const)).
	runtime.LockOSThread()
	signals := catchSignals()
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("make the test namespaces: %w; user namespaces may be off: see the sysctls "+
			"user.max_user_namespaces, kernel.unprivileged_userns_clone and "+
			"kernel.apparmor_restrict_unprivileged_userns; a container must be privileged", err)
	}
	go forward(signals, cmd.Process.Pid)
	if err := cmd.Wait(); cmd.ProcessState == nil {
		return 0, err
	}
	return exitCode(cmd.ProcessState.Sys().(syscall.WaitStatus)), nil
}

// isolation describes the namespaces of the lab. Where several ids are to be had
// they keep their numbers; an ordinary user may map only itself (user_namespaces(7)).
func isolation() *syscall.SysProcAttr {
	uids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
	gids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	many := os.Geteuid() == 0 && mapsAll("/proc/self/uid_map") && mapsAll("/proc/self/gid_map")
	if many {
		uids[0] = syscall.SysProcIDMap{Size: allIDs}
		gids = uids
	}
	return &syscall.SysProcAttr{
		Cloneflags:                 unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET,
		UidMappings:                uids,
		GidMappings:                gids,
		GidMappingsEnableSetgroups: many,
		// A terminal's Ctrl-C then reaches the outer process only, and through it the others once.
		Setpgid:   true,
		Pdeathsig: syscall.SIGKILL,
	}
}

const allIDs = 65536

// mapsAll reports whether the ids 0 to 65535 all exist in this user namespace.
func mapsAll(mapFile string) bool {
	text, err := os.ReadFile(mapFile)
	if err != nil {
		return false
	}
	var first, outside, size uint64
	n, _ := fmt.Sscan(string(text), &first, &outside, &size)
	return n == 3 && first == 0 && size >= allIDs
}

// runInit is the lab's first process. The tests do not run in it, so that the
// daemons they leave behind are reaped, and so that signals act on them as usual:
// the kernel shields a first process from them.
func runInit() (code int, err error) {
	if err := mountOwn(); err != nil {
		return 0, err
	}
	if err := setUp("lo"); err != nil {
		return 0, fmt.Errorf("set the lab's loopback up: %w", err)
	}
	exe, err := os.Executable()
	if err != nil {
		return 0, err
	}
	signals := catchSignals()
	tests, err := syscall.ForkExec(exe, os.Args[1:], &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: []uintptr{0, 1, 2},
	})
	if err != nil {
		return 0, fmt.Errorf("start the tests: %w", err)
	}
	go forward(signals, tests)
	for {
		var status syscall.WaitStatus
		dead, err := syscall.Wait4(-1, &status, 0, nil)
		if err != nil && err != syscall.EINTR {
			return 0, fmt.Errorf("wait for the tests: %w", err)
		}
		if dead == tests {
			return exitCode(status), nil
		}
	}
}

func mountOwn() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep the lab's mounts apart: %w; see the sysctl kernel.apparmor_restrict_unprivileged_userns", err)
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("proc", "/proc", "proc", flags, ""); err != nil {
		return fmt.Errorf("mount the lab's /proc: %w; a container must be privileged", err)
	}
	// A fresh /sys hides the machine's own devices. Nothing depends on it, and where
	// parts of /sys are covered the kernel does not allow it.
	if err := unix.Mount("sysfs", "/sys", "sysfs", flags, ""); err != nil && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("mount the lab's /sys: %w", err)
	}
	return nil
}

// catchSignals takes the signals that a person, a service manager or `go test`
// sends to end a test: SIGQUIT makes it print its goroutines.
func catchSignals() <-chan os.Signal {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP)
	return signals
}

// forward passes signals on until this process exits.
func forward(signals <-chan os.Signal, pid int) {
	for s := range signals {
		syscall.Kill(pid, s.(syscall.Signal))
	}
}

// exitCode is the shell's: 128 and the signal's number for a process that was killed.
func exitCode(status syscall.WaitStatus) int {
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}
