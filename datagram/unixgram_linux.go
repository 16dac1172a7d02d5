package datagram

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
)

// unixSocket is a Unix datagram socket. It makes its own system calls where a
// peer is named: package net cuts an abstract name at its first NUL, and
// programs that pass the whole of sun_path have names with many; and it
// allocates every name anew.
type unixSocket struct {
	*net.UnixConn
	raw syscall.RawConn
	in  unixReceiver
	out unixSender
}

func newUnixSocket(uc *net.UnixConn) (*unixSocket, error) {
	raw, err := uc.SyscallConn()
	if err != nil {
		return nil, err
	}
	u := &unixSocket{UnixConn: uc, raw: raw}
	u.in.call, u.out.call = u.in.receive, u.out.send
	return u, nil
}

// receive fills p with the next datagram, and says whether it was cut.
// Descriptors that come with it are closed by the kernel.
func (u *unixSocket) receive(p *Packet) (cut bool, err error) {
	r := &u.in
	r.mu.Lock()
	defer r.mu.Unlock()
	r.packet = p
	err = u.raw.Read(r.call)
	r.packet, r.iov.Base = nil, nil
	switch {
	case err != nil:
		return false, err
	case r.errno != 0:
		return false, os.NewSyscallError("recvmsg", r.errno)
	}
	p.Data = p.Data[:r.n]
	p.From = fivetuple.Address{Name: r.name.read(r.message.Namelen)}
	return r.message.Flags&unix.MSG_TRUNC != 0, nil
}

// unixReceiver is the system call that receives.
type unixReceiver struct {
	mu      sync.Mutex
	call    func(fd uintptr) bool // receive
	packet  *Packet
	message unix.Msghdr
	iov     unix.Iovec
	name    unixName
	n       int
	errno   syscall.Errno
}

// receive receives into the packet, whose buffer it may make longer. It says
// whether there was anything to receive.
func (r *unixReceiver) receive(fd uintptr) bool {
	p := r.packet
	if p.grows {
		if size, err := unix.IoctlGetInt(int(fd), unix.SIOCINQ); err == nil && size > cap(p.Data) { // of the first datagram: unix_inq_len in net/unix/af_unix.c
			p.Data = make([]byte, size)
		}
	}
	p.Data = p.Data[:cap(p.Data)]
	r.iov.Base = &p.Data[0]
	r.iov.SetLen(len(p.Data))
	for {
		r.message = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&r.name.raw)), Namelen: unix.SizeofSockaddrUnix, Iov: &r.iov}
		r.message.SetIovlen(1)
		n, _, errno := unix.Syscall(unix.SYS_RECVMSG, fd, uintptr(unsafe.Pointer(&r.message)), unix.MSG_DONTWAIT)
		if errno != unix.EINTR {
			r.n, r.errno = int(n), errno
			return errno != unix.EAGAIN
		}
	}
}

// trySendTo sends b to a name, or with "" to the one it is connected to, if its
// queue has room.
func (u *unixSocket) trySendTo(b []byte, to string) error {
	s := &u.out
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.name.write(to) {
		return unix.ENAMETOOLONG
	}
	s.b = b
	err := u.raw.Write(s.call)
	s.b = nil
	switch {
	case err != nil:
		return err
	case s.errno != 0:
		return os.NewSyscallError("sendto", s.errno)
	}
	return nil
}

// unixSender is the system call that sends.
type unixSender struct {
	mu    sync.Mutex
	call  func(fd uintptr) bool // send
	b     []byte
	name  unixName
	errno syscall.Errno
}

func (s *unixSender) send(fd uintptr) bool {
	for {
		_, _, s.errno = unix.Syscall6(unix.SYS_SENDTO, fd, uintptr(unsafe.Pointer(unsafe.SliceData(s.b))), uintptr(len(s.b)),
			unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, uintptr(unsafe.Pointer(&s.name.raw)), uintptr(s.name.size))
		if s.errno != unix.EINTR {
			return true
		}
	}
}

// unixName is a name as the kernel has it (unix(7), "Address format"), and as
// text: an abstract one begins with "@" for its NUL.
type unixName struct {
	raw  unix.RawSockaddrUnix
	size uint32
	text string
}

const unixPathOffset = uint32(unsafe.Offsetof(unix.RawSockaddrUnix{}.Path))

// path is the first n bytes of the name.
func (u *unixName) path(n uint32) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(&u.raw.Path)), n)
}

// read returns the name that the kernel has written, "" for an unnamed socket.
func (u *unixName) read(size uint32) string {
	size = min(size, unix.SizeofSockaddrUnix)
	if size <= unixPathOffset {
		return ""
	}
	name := u.path(size - unixPathOffset)
	switch last := len(name) - 1; {
	case name[0] == 0:
		name[0] = '@'
	case name[last] == 0:
		name = name[:last] // a path counts its NUL
	}
	if string(name) != u.text {
		u.text = string(name)
	}
	return u.text
}

// write makes the name the kernel's. It says whether it fits.
func (u *unixName) write(text string) bool {
	switch text {
	case u.text:
		return true
	case "":
		u.size, u.text = 0, ""
		return true
	}
	room := unix.SizeofSockaddrUnix - unixPathOffset
	name := u.path(room)
	size := uint32(copy(name, text))
	if abstract := text[0] == '@'; abstract {
		name[0] = 0
	} else if size < room {
		name[size] = 0
		size++
	}
	if len(text) > int(room) {
		u.size, u.text = 0, ""
		return false
	}
	u.raw.Family = unix.AF_UNIX
	u.size, u.text = unixPathOffset+size, text
	return true
}

// isFull says whether an error of sending is that the receiver's queue is full
// (net.unix.max_dgram_qlen datagrams), or that as much is under way as the send
// buffer of this socket holds.
func isFull(err error) bool {
	return errors.Is(err, unix.EAGAIN)
}

// connect connects the socket to a name again.
func (u *unixSocket) connect(to string) error {
	return onFD(u.raw, func(fd int) error {
		return os.NewSyscallError("connect", unix.Connect(fd, &unix.SockaddrUnix{Name: to}))
	})
}

// sendLimit says how long a datagram may be: unix_dgram_sendmsg in
// net/unix/af_unix.c.
func (u *unixSocket) sendLimit() string {
	const overhead = 32
	size := 0
	if err := onFD(u.raw, func(fd int) (err error) {
		size, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
		return err
	}); err != nil {
		return "that is more than the send buffer takes"
	}
	return fmt.Sprintf("the send buffer takes at most %d", size-overhead)
}

// ownName is what a socket that is dialed is bound to: Linux gives it an
// abstract name that nobody else has (unix(7), "Autobind feature").
func ownName() (name string, control controlFunc, err error) {
	return "", func(_, _ string, c syscall.RawConn) error {
		return onFD(c, func(fd int) error { return os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrUnix{})) })
	}, nil
}
