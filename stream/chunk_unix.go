//go:build unix

package stream

import (
	"io"
	"os"
	"syscall"
)

const canTryRead = true

// tryRead reads what is there. It asks to wait for more by returning false.
func (r *chunkReader) tryRead(fd uintptr) bool {
	buf := chunks.Get().(*[chunkSize]byte)
	for {
		n, err := syscall.Read(int(fd), buf[:])
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			chunks.Put(buf)
			return false
		case err != nil:
			r.err = os.NewSyscallError("read", err)
		case n == 0:
			r.err = io.EOF
		}
		r.buf, r.n = buf, max(n, 0)
		return true
	}
}
