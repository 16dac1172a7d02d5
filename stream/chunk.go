package stream

import (
	"crypto/tls"
	"net"
	"sync"
	"syscall"
)

// chunkSize is how much is read at a time: what loopback TCP delivers in one
// segment, so that larger buffers gain nothing.
const chunkSize = 64 << 10

var chunks = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// chunkReader reads into buffers of a shared pool, and takes one only when
// there is something to read: an idle connection holds none, and one with TLS a
// small one.
type chunkReader struct {
	conn net.Conn
	raw  syscall.RawConn              // nil where the descriptor cannot be waited for
	try  func(fd uintptr) (done bool) // bound once: a closure at each read would be an allocation
	buf  *[chunkSize]byte
	n    int
	err  error

	small []byte // of TLS, to wait with
	full  bool   // small was filled by the last read
}

const smallSize = 2 << 10

func (r *chunkReader) init(conn net.Conn) {
	*r = chunkReader{conn: conn}
	if _, ok := conn.(*tls.Conn); ok {
		r.small = make([]byte, smallSize)
		return
	}
	if !canTryRead {
		return
	}
	// Only these: a type that wraps one of them has a Read of its own.
	switch conn := conn.(type) {
	case *net.TCPConn:
		r.raw, _ = conn.SyscallConn()
		r.try = r.tryRead
	case *net.UnixConn:
		r.raw, _ = conn.SyscallConn()
		r.try = r.tryRead
		if conn.LocalAddr().Network() == "unixpacket" {
			r.try = r.tryReadRecord
		}
	}
}

// read waits for bytes and returns them in a buffer that the caller gives back
// to the pool by release.
func (r *chunkReader) read() ([]byte, error) {
	r.buf, r.n, r.err = nil, 0, nil
	if r.small != nil && !r.full {
		n, err := r.conn.Read(r.small)
		// What is left of a record comes at once. A large buffer always takes all
		// of it: a record is of 16 KiB at most.
		r.full = n == len(r.small)
		return r.small[:n], err
	}
	r.full = false
	if r.raw == nil {
		r.buf = chunks.Get().(*[chunkSize]byte)
		r.n, r.err = r.conn.Read(r.buf[:])
	} else if err := r.raw.Read(r.try); err != nil {
		r.err = &net.OpError{Op: "read", Net: r.conn.LocalAddr().Network(), Source: r.conn.LocalAddr(), Addr: r.conn.RemoteAddr(), Err: err}
	}
	if r.n == 0 {
		r.release()
		return nil, r.err
	}
	return r.buf[:r.n], r.err
}

func (r *chunkReader) release() {
	if r.buf != nil {
		chunks.Put(r.buf)
		r.buf = nil
	}
}
