package handoff

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple/internal/unixfile"
)

const network = "unixpacket"

func bind(path string) (*net.UnixListener, *unixfile.File, error) {
	ctx := context.Background()
	return unixfile.Bind(ctx, network, path, unixfile.Config{}, func(control unixfile.Control) (*net.UnixListener, error) {
		ln, err := (&net.ListenConfig{Control: control}).Listen(ctx, network, path)
		if err != nil {
			return nil, err
		}
		u := ln.(*net.UnixListener)
		u.SetUnlinkOnClose(false)
		return u, nil
	})
}

func connect(ctx context.Context, path string) (*net.UnixConn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, path)
	if err != nil {
		return nil, withoutPath(err)
	}
	return conn.(*net.UnixConn), nil
}

// withoutPath leaves out what the caller says.
func withoutPath(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// trySend sends a record if there is room for it at once, whatever the deadline.
func trySend(conn *net.UnixConn, record []byte) {
	conn.SetDeadline(time.Time{})
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Write(func(fd uintptr) (done bool) {
		_, _ = unix.SendmsgN(int(fd), record, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		return true
	})
}

// listenAgain makes a listener of one that another process had. Processes that
// connect see the credentials of the one that called listen(2) last.
func listenAgain(f *os.File) (*net.UnixListener, error) {
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	u, ok := ln.(*net.UnixListener)
	if !ok {
		ln.Close()
		return nil, errors.New("the control socket that came is none")
	}
	raw, err := u.SyscallConn()
	if err == nil {
		var listenErr error
		err = raw.Control(func(fd uintptr) { listenErr = unix.Listen(int(fd), unix.SOMAXCONN) })
		err = errors.Join(err, os.NewSyscallError("listen", listenErr))
	}
	if err != nil {
		u.Close()
		return nil, err
	}
	u.SetUnlinkOnClose(false)
	return u, nil
}

// newToken makes an eventfd that holds 1.
func newToken() (*os.File, error) {
	fd, err := unix.Eventfd(1, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	return os.NewFile(uintptr(fd), "token"), nil
}

// takeToken says whether this process is the first to read the token. Whatever the
// descriptor is that a peer has sent, it does not wait.
func takeToken(f *os.File) (mine bool, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return false, err
	}
	var value [8]byte
	var n int
	cerr := raw.Control(func(fd uintptr) {
		if err = unix.SetNonblock(int(fd), true); err != nil {
			return
		}
		for {
			if n, err = unix.Read(int(fd), value[:]); err != unix.EINTR {
				return
			}
		}
	})
	switch {
	case cerr != nil:
		return false, cerr
	case err == unix.EAGAIN:
		return false, nil
	case err != nil:
		return false, os.NewSyscallError("read the token", err)
	}
	return n == 8 && binary.NativeEndian.Uint64(value[:]) == 1, nil
}
