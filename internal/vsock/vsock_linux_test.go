package vsock

import (
	"context"
	"errors"
	"io"
	"math"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/mdlayher/socket"
	"go.uber.org/goleak"
	"golang.org/x/net/nettest"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func listenAny(t *testing.T) net.Listener {
	t.Helper()
	ln, err := Listen(Any, Any)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

func TestListenerKnowsThePortTheKernelChose(t *testing.T) {
	addr := listenAny(t).Addr().(Addr)
	if addr.CID != Any || addr.Port == 0 || addr.Port == Any {
		t.Errorf("got %v, want *:PORT", addr)
	}
	if _, err := Listen(Any, addr.Port); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("the same port again: got %v, want %v", err, syscall.EADDRINUSE)
	}
}

func TestAddrIsWrittenAsInEndpoints(t *testing.T) {
	for addr, want := range map[Addr]string{
		{3, 22}:                       "3:22",
		{Any, 22}:                     "*:22",
		{math.MaxUint32 - 1, Any - 1}: "4294967294:4294967294",
		{Local, 0}:                    "1:0",
	} {
		if got := addr.String(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestAcceptEnds(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(net.Listener)
		want error
	}{
		{"when the listener is closed", func(ln net.Listener) { ln.Close() }, net.ErrClosed},
		{"when it was closed before", func(ln net.Listener) { ln.Close(); ln.Close() }, net.ErrClosed},
		{"at its deadline", func(ln net.Listener) {
			ln.(interface{ SetDeadline(time.Time) error }).SetDeadline(time.Now().Add(10 * time.Millisecond))
		}, os.ErrDeadlineExceeded},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ln := listenAny(t)
			accepted := make(chan error, 1)
			if tt.name == "when it was closed before" {
				tt.end(ln)
			}
			go func() { _, err := ln.Accept(); accepted <- err }()
			tt.end(ln)
			err := <-accepted
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			var op *net.OpError
			if !errors.As(err, &op) || op.Net != "vsock" {
				t.Errorf("got a %T, want a *net.OpError of vsock", err)
			}
		})
	}
}

func TestControlSeesTheSocketBeforeItIsBound(t *testing.T) {
	var size int
	c := Config{Control: func(network, address string, raw syscall.RawConn) (err error) {
		if network != "vsock" || address != "*:4294967295" {
			t.Errorf("got %s %s", network, address)
		}
		cerr := raw.Control(func(fd uintptr) {
			if sa, errName := unix.Getsockname(int(fd)); errName == nil && addrOf(sa).Port != Any {
				t.Errorf("bound to %v already", addrOf(sa))
			}
			size, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF)
		})
		return errors.Join(cerr, err)
	}}
	ln, err := c.Listen(Any, Any)
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	if size == 0 {
		t.Error("Control was not called")
	}
	refuse := errors.New("refused by Control")
	c.Control = func(string, string, syscall.RawConn) error { return refuse }
	if _, err := c.Listen(Any, Any); !errors.Is(err, refuse) {
		t.Errorf("listen: got %v, want %v", err, refuse)
	}
	if _, err := c.Dial(t.Context(), Local, 1); !errors.Is(err, refuse) {
		t.Errorf("dial: got %v, want %v", err, refuse)
	}
}

// Nothing here connects: without the module vsock_loopback even context 1 is not this
// machine, but what the hypervisor makes of it.

func TestDeadlineReplacesTheTwoSecondsOfTheKernel(t *testing.T) {
	for _, tt := range []struct{ deadline, min, max time.Duration }{
		{0, 2 * time.Second, 2 * time.Second},
		{100 * time.Millisecond, time.Second, 1200 * time.Millisecond},
		{time.Minute, 60 * time.Second, 62 * time.Second},
	} {
		ctx, cancel := t.Context(), func() {}
		if tt.deadline > 0 {
			ctx, cancel = context.WithTimeout(ctx, tt.deadline)
		}
		defer cancel()
		var tv *unix.Timeval
		seen := errors.New("seen enough")
		c := Config{Control: func(_, _ string, raw syscall.RawConn) (err error) {
			cerr := raw.Control(func(fd uintptr) {
				tv, err = unix.GetsockoptTimeval(int(fd), unix.AF_VSOCK, unix.SO_VM_SOCKETS_CONNECT_TIMEOUT)
			})
			return errors.Join(seen, cerr, err)
		}}
		if _, err := c.Dial(ctx, Local, 1); !errors.Is(err, seen) || tv == nil {
			t.Fatal(err)
		}
		if got := time.Duration(tv.Nano()); got < tt.min || got > tt.max {
			t.Errorf("deadline %v: the kernel gives up after %v, want %v to %v", tt.deadline, got, tt.min, tt.max)
		}
	}
}

func TestDialEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Dial(ctx, Local, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

// pair makes connections of a socket pair, as this kernel may have no way to connect
// a vsock.
func pair() (a, b net.Conn, stop func(), err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, nil, err
	}
	var ends [2]*conn
	for i, fd := range fds {
		s, err := socket.New(fd, "vsock")
		if err != nil {
			return nil, nil, nil, err
		}
		ends[i] = &conn{Conn: s, local: Addr{Local, uint32(i)}, remote: Addr{Local, uint32(1 - i)}}
	}
	return ends[0], ends[1], func() { ends[0].Close(); ends[1].Close() }, nil
}

func TestConnIsANetConn(t *testing.T) { nettest.TestConn(t, pair) }

func TestCloseWriteIsTheEndForThePeerOnly(t *testing.T) {
	a, b, stop, err := pair()
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	if err := a.(*conn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if n, err := b.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("read: got %d, %v, want 0, EOF", n, err)
	}
	if _, err := io.WriteString(b, "x"); err != nil {
		t.Error(err)
	}
	if n, err := a.Read(make([]byte, 1)); n != 1 || err != nil {
		t.Errorf("read: got %d, %v, want 1", n, err)
	}
}

func TestUseOfAClosedConnectionIsErrClosed(t *testing.T) {
	a, _, stop, err := pair()
	if err != nil {
		t.Fatal(err)
	}
	stop()
	_, errRead := a.Read(make([]byte, 1))
	_, errWrite := a.Write([]byte{1})
	for _, err := range []error{errRead, errWrite, a.(*conn).CloseWrite()} {
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("got %v, want %v", err, net.ErrClosed)
		}
	}
}
