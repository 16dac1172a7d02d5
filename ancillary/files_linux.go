package ancillary

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

func sendFiles(c *net.UnixConn, b []byte, files []*os.File) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return withDescriptors(files, nil, func(fds []int) error {
		var rights []byte
		if len(fds) > 0 {
			rights = unix.UnixRights(fds...)
		}
		return send(raw, b, rights)
	})
}

// withDescriptors calls fn while none of the files can be closed.
func withDescriptors(files []*os.File, fds []int, fn func(fds []int) error) error {
	if len(files) == 0 {
		return fn(fds)
	}
	raw, err := files[0].SyscallConn()
	if err != nil {
		return fmt.Errorf("file %d: %w", len(fds)+1, err)
	}
	var fnErr error
	err = raw.Control(func(fd uintptr) { fnErr = withDescriptors(files[1:], append(fds, int(fd)), fn) })
	if err != nil { // there is no other reason
		return fmt.Errorf("file %d, %s: %w", len(fds)+1, files[0].Name(), os.ErrClosed)
	}
	return fnErr
}

// send waits for room as long as the deadline lets it. A stream may take the
// bytes in parts: the rights go with the first.
func send(raw syscall.RawConn, b, rights []byte) error {
	whole := len(b)
	var sendErr error
	err := raw.Write(func(fd uintptr) (done bool) {
		for len(b) > 0 {
			n, err := unix.SendmsgN(int(fd), b, rights, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
			switch err {
			case nil:
				b, rights = b[n:], nil
			case unix.EINTR:
			case unix.EAGAIN:
				return false
			default:
				sendErr = explain(err)
				return true
			}
		}
		return true
	})
	err = cmp.Or(err, sendErr)
	if err != nil && len(b) < whole {
		return fmt.Errorf("after %d of %d bytes: %w", whole-len(b), whole, err)
	}
	return err
}

func explain(err error) error {
	call := os.NewSyscallError("sendmsg", err)
	switch err {
	case unix.ETOOMANYREFS:
		return fmt.Errorf("%w (this user has more files on their way than a process may open, ulimit -n: let the peers receive them first)", call)
	case unix.EPERM:
		return fmt.Errorf("%w (the receiver takes no files, SO_PASSRIGHTS, or a security module forbids it)", call)
	}
	return call
}

func receiveFiles(c *net.UnixConn, b []byte) (n int, files []*os.File, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, nil, err
	}
	// Room for all files, and for what else the socket may be set to receive.
	control := make([]byte, unix.CmsgSpace(MaxFiles*4)+512)
	var flags, kind int
	var callErr error
	err = raw.Read(func(fd uintptr) (done bool) {
		var controlLen int
		n, controlLen, flags, callErr = receive(int(fd), b, control)
		if callErr == unix.EAGAIN {
			return false
		}
		control = control[:controlLen]
		if callErr == nil && n == 0 {
			kind, callErr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE)
		}
		return true
	})
	if err := cmp.Or(err, os.NewSyscallError("recvmsg", callErr)); err != nil {
		return 0, nil, err
	}
	files, err = open(control)
	switch {
	case err != nil:
	case flags&unix.MSG_CTRUNC != 0:
		err = ErrFilesLost
	case flags&unix.MSG_TRUNC != 0:
		err = fmt.Errorf("%w: the record is longer than %d bytes", io.ErrShortBuffer, len(b))
	case n == 0 && len(files) == 0 && kind != unix.SOCK_DGRAM:
		err = io.EOF
	}
	if err != nil {
		closeAll(files)
		files = nil
	}
	return n, files, err
}

func receive(fd int, b, control []byte) (n, controlLen, flags int, err error) {
	for {
		n, controlLen, flags, _, err = unix.Recvmsg(fd, b, control, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
		if err != unix.EINTR {
			return n, controlLen, flags, err
		}
	}
}

// open makes files of the descriptors in control messages. A pidfd that the
// socket was set to receive (SO_PASSPIDFD) is not one of the peer's files.
func open(control []byte) ([]*os.File, error) {
	rights, pidfds, err := descriptors(control)
	for _, fd := range pidfds {
		unix.Close(fd)
	}
	var files []*os.File
	for _, fd := range rights {
		files = append(files, os.NewFile(uintptr(fd), "received file"))
	}
	return files, err
}

// descriptors returns those in control messages, cmsg(3), also the ones before
// what it does not understand.
func descriptors(control []byte) (rights, pidfds []int, err error) {
	for len(control) > 0 {
		if len(control) < unix.SizeofCmsghdr {
			return rights, pidfds, fmt.Errorf("control message of %d bytes: %w", len(control), io.ErrUnexpectedEOF)
		}
		header, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			return rights, pidfds, fmt.Errorf("control message of %d bytes: %w", len(control), err)
		}
		control = rest
		if header.Level != unix.SOL_SOCKET {
			continue
		}
		switch header.Type {
		case unix.SCM_RIGHTS:
			rights = append(rights, numbers(data)...)
		case unix.SCM_PIDFD:
			pidfds = append(pidfds, numbers(data)...)
		}
	}
	return rights, pidfds, nil
}

func numbers(data []byte) (fds []int) {
	for ; len(data) >= 4; data = data[4:] {
		fds = append(fds, int(int32(binary.NativeEndian.Uint32(data))))
	}
	return fds
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
