package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A namespace is a network namespace, held by a descriptor and by no name.
type namespace struct {
	fd int
}

const threadNetns = "/proc/thread-self/ns/net"

func newNamespace() (*namespace, error) {
	if !inside() {
		return nil, errors.New("the test is not in the lab: call lab.Main(m) from TestMain")
	}
	ns := &namespace{fd: -1}
	err := onReturningThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare the network namespace: %w", err)
		}
		ns.fd, err = unix.Open(threadNetns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	return ns, nil
}

// do runs fn on a thread that is in the namespace.
func (ns *namespace) do(fn func()) error {
	return onReturningThread(func() error {
		if err := unix.Setns(ns.fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the network namespace: %w", err)
		}
		fn()
		return nil
	})
}

// try runs fn on a thread that is in the namespace, and returns its error.
func (ns *namespace) try(fn func() error) (err error) {
	errDo := ns.do(func() { err = fn() })
	return errors.Join(err, errDo)
}

// onReturningThread runs fn, which changes its thread's network namespace, and
// takes the thread back to the namespace it came from, whichever way fn ends.
func onReturningThread(fn func() error) (err error) {
	runtime.LockOSThread()
	home, err := unix.Open(threadNetns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open %s: %w", threadNetns, err)
	}
	defer func() {
		// A thread that cannot return stays locked, and dies with its goroutine.
		if errHome := unix.Setns(home, unix.CLONE_NEWNET); errHome != nil {
			err = errors.Join(err, fmt.Errorf("leave the network namespace: %w", errHome))
		} else {
			runtime.UnlockOSThread()
		}
		unix.Close(home)
	}()
	return fn()
}

func (ns *namespace) close() error {
	return errors.Join(ns.killAll(), unix.Close(ns.fd))
}

// killAll kills the processes in the namespace, also those that have left their
// parent, and waits until none is left there.
func (ns *namespace) killAll() error {
	const patience = 10 * time.Second
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		pids, err := ns.pids()
		if err != nil || len(pids) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v still run %v after they were killed", pids, patience)
		}
		for _, pid := range pids {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		<-tick.C
	}
}

// pids lists the processes in the namespace but this one, a thread of which may
// be there. One that ends while it looks, or is a zombie, is in no namespace.
func (ns *namespace) pids() ([]int, error) {
	var own unix.Stat_t
	if err := unix.Fstat(ns.fd, &own); err != nil {
		return nil, fmt.Errorf("identify the network namespace: %w", err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		var its unix.Stat_t
		err = unix.Stat(filepath.Join("/proc", entry.Name(), "ns/net"), &its)
		switch {
		case err == nil:
			if its.Ino == own.Ino && its.Dev == own.Dev {
				pids = append(pids, pid)
			}
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH):
			return nil, fmt.Errorf("look up the namespace of process %d: %w", pid, err)
		}
	}
	return pids, nil
}
