package poll

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
)

// Socket holds a descriptor for which Go's runtime does not wait. It is a
// [syscall.Conn] and [syscall.RawConn]; only Control does something.
type Socket struct {
	mu sync.RWMutex
	fd int // -1 when closed
}

// Copy duplicates the descriptor of a socket.
func Copy(c syscall.Conn) (*Socket, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &Socket{fd: -1}
	var derr error
	err = raw.Control(func(fd uintptr) { s.fd, derr = Dup(int(fd)) })
	if err = errors.Join(err, derr); err != nil {
		return nil, err
	}
	return s, nil
}

// SyscallConn implements [syscall.Conn].
func (s *Socket) SyscallConn() (syscall.RawConn, error) { return s, nil }

// Control calls f with the descriptor, which is not closed meanwhile. The error is
// net.ErrClosed if it is already.
func (s *Socket) Control(f func(fd uintptr)) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.fd < 0 {
		return net.ErrClosed
	}
	f(uintptr(s.fd))
	return nil
}

// Read waits for nothing: it fails.
func (s *Socket) Read(func(fd uintptr) bool) error { return errors.ErrUnsupported }

// Write waits for nothing: it fails.
func (s *Socket) Write(func(fd uintptr) bool) error { return errors.ErrUnsupported }

// File is a copy, which the caller closes.
func (s *Socket) File() (f *os.File, err error) {
	cerr := s.Control(func(fd uintptr) {
		var n int
		if n, err = Dup(int(fd)); err == nil {
			f = os.NewFile(uintptr(n), "socket")
		}
	})
	return f, errors.Join(cerr, err)
}

// Close closes the descriptor.
func (s *Socket) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return net.ErrClosed
	}
	Close(s.fd)
	s.fd = -1
	return nil
}
