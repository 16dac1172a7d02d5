//go:build unix

package join

import (
	"os"

	"golang.org/x/sys/unix"
)

// withoutSignal is f, or a duplicate of it. The Go runtime dies of a broken pipe on
// descriptors 1 and 2, unless the whole process ignores SIGPIPE, which programs that
// it starts would inherit; on others it is an error.
func withoutSignal(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	duplicate := f
	raw.Control(func(fd uintptr) { // writing a closed file says so
		if fd != 1 && fd != 2 {
			return
		}
		var n int
		if n, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3); err == nil {
			duplicate = os.NewFile(uintptr(n), f.Name())
		}
	})
	return duplicate, err
}

func waitReadable(f *os.File) error { return poll(f, unix.POLLIN) }

func waitWritable(f *os.File) error { return poll(f, unix.POLLOUT) }

func poll(f *os.File, events int16) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	controlErr := raw.Control(func(fd uintptr) {
		for {
			fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
			if _, err = unix.Poll(fds, -1); err != unix.EINTR {
				return
			}
		}
	})
	if controlErr != nil {
		return controlErr
	}
	return err
}
