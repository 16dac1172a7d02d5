package poll

import (
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Pipe is a pipe(2) by which [Splice] moves bytes from one socket to another
// without copying them.
type Pipe struct {
	R, W int
	Size int // what the kernel granted, in bytes; less counts when pieces are small
}

// NewPipe makes a pipe of size bytes, or of what the kernel grants: see Size. The
// user's share (pipe-user-pages-soft, pipe(7)) may leave two pages, even one.
func NewPipe(size int) (*Pipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	p := &Pipe{R: fds[0], W: fds[1]}
	unix.FcntlInt(uintptr(p.W), unix.F_SETPIPE_SZ, size) // EPERM leaves it as it is
	n, err := unix.FcntlInt(uintptr(p.W), unix.F_GETPIPE_SZ, 0)
	if err != nil {
		p.Close()
		return nil, os.NewSyscallError("fcntl", err)
	}
	p.Size = n
	return p, nil
}

// Close gives both descriptors back, and forgets what is in the pipe.
func (p *Pipe) Close() {
	unix.Close(p.R)
	unix.Close(p.W)
}

// Read reads what the pipe holds, without waiting.
func (p *Pipe) Read(b []byte) (int, syscall.Errno) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(p.R), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		if errno == 0 {
			return int(n), 0
		}
		if errno != unix.EINTR {
			return 0, errno
		}
	}
}

// Fill moves up to n bytes from a stream socket into the pipe, without waiting.
// EAGAIN says that the socket has nothing, or the pipe no room; 0 bytes that the
// peer has ended its side. The socket must be in non-blocking mode, and so for Drain.
func (p *Pipe) Fill(fd, n int) (int, syscall.Errno) { return splice(fd, p.W, n) }

// Drain moves up to n bytes from the pipe into a stream socket that has room,
// without waiting.
func (p *Pipe) Drain(fd, n int) (int, syscall.Errno) { return splice(p.R, fd, n) }

func splice(from, to, n int) (int, syscall.Errno) {
	for {
		got, _, errno := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if errno == 0 {
			return int(got), 0
		}
		if errno != unix.EINTR {
			return 0, errno
		}
	}
}

// FileLimit is how many descriptors this process may have (RLIMIT_NOFILE, getrlimit(2)).
func FileLimit() int {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) != nil {
		return 1024
	}
	return int(min(l.Cur, 1<<30))
}
