package owner

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

func wait(ctx context.Context, p Process) error {
	f, err := openPidfd(p.PID)
	if err != nil {
		return waitByLooking(ctx, p) // which also finds that there is no such process
	}
	defer f.Close()
	if !p.Alive() {
		return nil // and the descriptor may be of a later one
	}
	if err := waitReadable(ctx, f); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return waitByLooking(ctx, p)
	}
	return nil
}

// openPidfd returns a file that becomes readable when the process ends. Being
// non-blocking it is watched by the runtime.
func openPidfd(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, 0) // PIDFD_NONBLOCK needs Linux 5.10
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// waitReadable returns an error when ctx is done, or at once if the runtime cannot watch f.
func waitReadable(ctx context.Context, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	cancelled := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(cancelled)
		f.SetReadDeadline(time.Unix(1, 0)) // long past
	})
	defer func() {
		if !stop() {
			<-cancelled
		}
	}()
	var pollErr error
	err = raw.Read(func(fd uintptr) (done bool) {
		var n int
		n, pollErr = poll(fd)
		return n > 0 || pollErr != nil
	})
	return errors.Join(err, pollErr)
}

// poll says, without waiting, whether fd is readable: 1 or 0.
func poll(fd uintptr) (n int, err error) {
	for {
		n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		if err != unix.EINTR {
			return n, err
		}
	}
}

func waitByLooking(ctx context.Context, p Process) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for p.Alive() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}
