package stream

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple/sockopt"
)

// giveAway returns the socket to be given to a command: in blocking mode, which
// it shares with ours, so that nobody here may read or write until takeBack.
func (c *Conn) giveAway() (*os.File, error) {
	c.queue.close()
	c.given.ever.Store(true)
	c.given.away.Store(true)
	f, err := c.raw.(interface{ File() (*os.File, error) }).File()
	if err == nil {
		err = c.setNonblock(false)
	}
	if err != nil {
		c.given.away.Store(false)
		if f != nil {
			f.Close()
		}
		return nil, err
	}
	return f, nil
}

// takeBack is called when no command has the socket any more.
func (c *Conn) takeBack() {
	c.look()
	c.setNonblock(true)
	c.given.away.Store(false)
}

func (c *Conn) setNonblock(on bool) error {
	return c.control(func(fd int) error { return unix.SetNonblock(fd, on) })
}

// control does something with the descriptor of the socket.
func (c *Conn) control(do func(fd int) error) error {
	raw, err := c.raw.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) { err = do(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}

// endWatch sees the end of a connection whose socket was given away, without
// being woken by what arrives: by an epoll(7) descriptor that waits for hang-ups
// alone, and which in turn Go's poller waits for.
type endWatch struct {
	c     *Conn
	epoll *os.File
	ended chan struct{} // closed when both directions have ended, or the connection was reset
	done  chan struct{}
	why   error // of a reset, once known
}

func watchEnd(c *Conn) (*endWatch, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	unix.SetNonblock(fd, true) // which makes os.NewFile hand it to the poller
	w := &endWatch{c: c, epoll: os.NewFile(uintptr(fd), "epoll"), ended: make(chan struct{}), done: make(chan struct{})}
	err = w.watch(unix.EPOLL_CTL_ADD, unix.EPOLLRDHUP)
	if err == nil {
		var raw syscall.RawConn
		if raw, err = w.epoll.SyscallConn(); err == nil {
			go w.run(raw)
			return w, nil
		}
	}
	w.epoll.Close()
	return nil, err
}

// watch waits for the events, and for EPOLLHUP and EPOLLERR in any case.
func (w *endWatch) watch(op int, events uint32) error {
	epoll, err := w.epoll.SyscallConn()
	if err != nil {
		return err
	}
	return w.c.control(func(fd int) (err error) {
		cerr := epoll.Control(func(epfd uintptr) {
			err = os.NewSyscallError("epoll_ctl", unix.EpollCtl(int(epfd), op, fd, &unix.EpollEvent{Events: events}))
		})
		return errors.Join(cerr, err)
	})
}

func (w *endWatch) run(epoll syscall.RawConn) {
	defer close(w.done)
	err := epoll.Read(func(fd uintptr) (ended bool) {
		for {
			var events [1]unix.EpollEvent
			n, err := unix.EpollWait(int(fd), events[:], 0)
			switch {
			case errors.Is(err, unix.EINTR):
			case n <= 0:
				return false
			case events[0].Events&(unix.EPOLLHUP|unix.EPOLLERR) == unix.EPOLLHUP && !w.c.isTCP():
				w.c.given.fin.Store(true)
				return true
			case events[0].Events&(unix.EPOLLHUP|unix.EPOLLERR) != 0:
				return true
			default:
				w.c.given.fin.Store(true)
				if w.watch(unix.EPOLL_CTL_MOD, 0) != nil {
					return true
				}
			}
		}
	})
	if err == nil {
		close(w.ended)
	}
}

// close ends the watch.
func (w *endWatch) close() {
	w.epoll.Close()
	<-w.done
}

// reset is the error of a connection that was reset or broke, else nil.
func (w *endWatch) reset() error {
	if w.why != nil {
		return w.why
	}
	w.c.control(func(fd int) error {
		if n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err == nil && n != 0 {
			w.why = syscall.Errno(n)
		}
		// The kernel tells it once, and the command may have been who asked.
		if i, err := sockopt.GetTCPInfo(fd); err == nil && w.why == nil && i.State == tcpClose && !finReceived(&i) {
			w.why = unix.ECONNRESET
		}
		return nil
	})
	return w.why
}

// peerClosed says whether the peer has ended its side in order.
func (w *endWatch) peerClosed() bool {
	w.c.control(func(fd int) error {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		if n, err := unix.Poll(p, 0); err == nil && n == 1 && p[0].Revents&unix.POLLRDHUP != 0 && w.reset() == nil {
			w.c.given.fin.Store(true)
		}
		return nil
	})
	return w.c.given.fin.Load()
}

// unread is how many bytes the command has not read yet.
func (w *endWatch) unread() (n int) {
	w.c.control(func(fd int) (err error) {
		n, err = unix.IoctlGetInt(fd, unix.TIOCINQ)
		return err
	})
	return n
}
