package sockdiag

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// bufferSize holds the largest piece of a dump. The kernel fills up to 32 KiB
// for one read (netlink_dump, net/netlink/af_netlink.c), newer ones may fill more.
const bufferSize = 256 << 10

// conn is a netlink socket to the kernel's socket diagnostics, used for one
// request after the other.
type conn struct {
	fd  int
	seq uint32
	buf []byte
}

func dial() (*conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		err = os.NewSyscallError("socket", err)
		if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EAFNOSUPPORT) {
			err = fmt.Errorf("%w: %w", err, errors.ErrUnsupported)
		}
		return nil, fmt.Errorf("open sock_diag netlink: %w", err)
	}
	return &conn{fd: fd, buf: make([]byte, bufferSize)}, nil
}

func (c *conn) close() { unix.Close(c.fd) }

// dump sends the request and calls each with the body of every answer until it
// returns false; more is false then, and the connection of no more use.
func (c *conn) dump(ctx context.Context, kind uint16, request []byte, each func(body []byte) (more bool, err error)) (more bool, err error) {
	return c.ask(ctx, kind, unix.NLM_F_DUMP, request, each)
}

// do sends a request that is answered once, and waits for the acknowledgement.
func (c *conn) do(ctx context.Context, kind uint16, request []byte, each func(body []byte) error) error {
	_, err := c.ask(ctx, kind, unix.NLM_F_ACK, request, func(body []byte) (bool, error) { return true, each(body) })
	return err
}

func (c *conn) ask(ctx context.Context, kind, flags uint16, request []byte, each func(body []byte) (more bool, err error)) (more bool, err error) {
	c.seq++
	if err := c.send(kind, flags, request); err != nil {
		return false, err
	}
	a := answers{kind: kind, seq: c.seq, each: each}
	for range shortDump {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		n, err := c.read(c.buf)
		if err != nil {
			return false, err
		}
		if more, err = a.take(c.buf[:n]); err != nil || !more || a.done {
			return more, err
		}
	}
	return c.askAhead(ctx, &a)
}

// shortDump is how many pieces are taken before it pays to read ahead.
const shortDump = 4

// askAhead goes on reading: one goroutine has the kernel make the next piece,
// which is most of the work, while the caller takes the last one.
func (c *conn) askAhead(ctx context.Context, a *answers) (more bool, err error) {
	type piece struct {
		buf []byte
		n   int
		err error
	}
	full, free, stop := make(chan piece, 2), make(chan []byte, 2), make(chan struct{})
	free <- c.buf
	free <- make([]byte, bufferSize)
	var reader sync.WaitGroup
	reader.Go(func() {
		for {
			select {
			case <-stop:
				return
			case buf := <-free:
				n, err := c.read(buf)
				full <- piece{buf, n, err}
				if err != nil { // also behind the end, until the caller has seen that
					return
				}
			}
		}
	})
	defer reader.Wait()
	defer close(stop)
	for {
		p := <-full
		if err := errors.Join(ctx.Err(), p.err); err != nil {
			return false, err
		}
		if more, err = a.take(p.buf[:p.n]); err != nil || !more || a.done {
			return more, err
		}
		free <- p.buf
	}
}

func (c *conn) send(kind, flags uint16, request []byte) error {
	m := make([]byte, unix.NLMSG_HDRLEN, unix.NLMSG_HDRLEN+len(request))
	m = append(m, request...)
	binary.NativeEndian.PutUint32(m[0:], uint32(len(m)))
	binary.NativeEndian.PutUint16(m[4:], kind)
	binary.NativeEndian.PutUint16(m[6:], unix.NLM_F_REQUEST|flags)
	binary.NativeEndian.PutUint32(m[8:], c.seq)
	for {
		err := unix.Sendto(c.fd, m, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if err != unix.EINTR {
			return os.NewSyscallError("sendto", err)
		}
	}
}

// read receives one piece of an answer. It does not wait: the kernel has
// answered when send returns, and makes the next piece of a dump while the last
// one is read.
func (c *conn) read(buf []byte) (int, error) {
	for {
		n, err := unix.Read(c.fd, buf)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return 0, io.ErrUnexpectedEOF
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		default:
			return n, nil
		}
	}
}

// answers takes the netlink messages that answer the request numbered seq.
type answers struct {
	kind        uint16 // of the request, and of the answers to it
	seq         uint32
	each        func(body []byte) (more bool, err error)
	done        bool // the kernel said that this is all, or acknowledged the request
	interrupted bool // some message carried NLM_F_DUMP_INTR
}

// take goes through the messages in b, as many as one read gave (netlink(7)).
func (a *answers) take(b []byte) (more bool, err error) {
	for len(b) > 0 && !a.done {
		var m message
		if m, b, err = nextMessage(b); err != nil {
			return false, err
		}
		if m.seq != a.seq {
			continue
		}
		a.interrupted = a.interrupted || m.flags&unix.NLM_F_DUMP_INTR != 0
		switch m.kind {
		case a.kind:
			if more, err = a.each(m.body); err != nil || !more {
				return false, err
			}
		case unix.NLMSG_ERROR:
			a.done = true
			if err := m.errno(true); err != nil {
				return false, err
			}
		case unix.NLMSG_DONE:
			a.done = true
			if err := m.errno(false); err != nil {
				return false, err
			}
			if a.interrupted {
				return false, ErrInterrupted
			}
		}
	}
	return true, nil
}

// message is a netlink message without the fields that are of no use here.
type message struct {
	kind, flags uint16
	seq         uint32
	body        []byte
}

// nextMessage takes the first message off b: struct nlmsghdr, the body, and
// padding to 4 bytes (netlink(3)).
func nextMessage(b []byte) (m message, rest []byte, err error) {
	if len(b) < unix.NLMSG_HDRLEN {
		return m, nil, truncated("netlink header", len(b), unix.NLMSG_HDRLEN)
	}
	size := uint64(binary.NativeEndian.Uint32(b))
	if size < unix.NLMSG_HDRLEN || size > uint64(len(b)) {
		return m, nil, fmt.Errorf("netlink message says it has %d bytes, %d are there: %w", size, len(b), io.ErrUnexpectedEOF)
	}
	m = message{
		kind:  binary.NativeEndian.Uint16(b[4:]),
		flags: binary.NativeEndian.Uint16(b[6:]),
		seq:   binary.NativeEndian.Uint32(b[8:]),
		body:  b[unix.NLMSG_HDRLEN:size],
	}
	return m, b[min(align(int(size)), len(b)):], nil
}

// errno decodes the negative error number that NLMSG_ERROR must and NLMSG_DONE
// may begin with. 0 is no error but, in NLMSG_ERROR, the acknowledgement.
func (m message) errno(must bool) error {
	if len(m.body) < 4 {
		if must {
			return truncated("netlink error", len(m.body), 4)
		}
		return nil
	}
	n := int32(binary.NativeEndian.Uint32(m.body))
	switch {
	case n < 0:
		return os.NewSyscallError("sock_diag", unix.Errno(-int64(n)))
	case n > 0:
		return fmt.Errorf("netlink error message with number %d", n)
	}
	return nil
}

// nextAttribute takes the first attribute off b: struct nlattr, the value, and
// padding to 4 bytes.
func nextAttribute(b []byte) (kind uint16, value, rest []byte, err error) {
	if len(b) < unix.SizeofNlAttr {
		return 0, nil, nil, truncated("netlink attribute", len(b), unix.SizeofNlAttr)
	}
	size := int(binary.NativeEndian.Uint16(b))
	kind = binary.NativeEndian.Uint16(b[2:])
	if size < unix.SizeofNlAttr || size > len(b) {
		return 0, nil, nil, fmt.Errorf("netlink attribute %d says it has %d bytes, %d are there: %w", kind, size, len(b), io.ErrUnexpectedEOF)
	}
	return kind, b[unix.SizeofNlAttr:size], b[min(align(size), len(b)):], nil
}

// appendAttribute is the inverse of [nextAttribute].
func appendAttribute(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofNlAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	return append(b, make([]byte, align(len(b))-len(b))...)
}

func align(n int) int { return (n + 3) &^ 3 }

func truncated(what string, got, want int) error {
	return fmt.Errorf("%s has %d bytes, want %d: %w", what, got, want, io.ErrUnexpectedEOF)
}
