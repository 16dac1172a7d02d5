//go:build unix

package stream

import (
	"fmt"
	"io"
	"os"
	"syscall"
)

const canTryRead = true

// tryRead reads what is there. It asks to wait for more by returning false.
func (r *chunkReader) tryRead(fd uintptr) bool {
	return r.tryWith(func(b []byte) (int, error) { return syscall.Read(int(fd), b) })
}

// tryReadRecord is tryRead for sockets that keep records, of which none may be
// cut short. An empty record cannot be told from the end (unix(7)).
func (r *chunkReader) tryReadRecord(fd uintptr) bool {
	return r.tryWith(func(b []byte) (int, error) {
		n, _, flags, _, err := syscall.Recvmsg(int(fd), b, nil, 0)
		if err == nil && flags&syscall.MSG_TRUNC != 0 {
			return 0, errRecord
		}
		return n, err
	})
}

var errRecord = fmt.Errorf("a record of more than %d bytes: %w", chunkSize, syscall.EMSGSIZE)

func (r *chunkReader) tryWith(read func([]byte) (int, error)) bool {
	buf := chunks.Get().(*[chunkSize]byte)
	for {
		n, err := read(buf[:])
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
