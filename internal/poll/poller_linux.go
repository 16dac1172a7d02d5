package poll

import (
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Poller waits for the sockets added to it. One goroutine calls Wait; the
// other methods may be called from any, until Close.
type Poller struct {
	epoll, event int
	woken        atomic.Bool // the eventfd is written and not yet seen
	mu           sync.Mutex  // held to write the eventfd
	closed       bool
	busy         bool // the last Wait found something
	events       [batch]Event
}

// Event is what happened to one socket.
type Event unix.EpollEvent

// Token is what the socket was added with.
func (e *Event) Token() uint64 { return uint64(uint32(e.Fd)) | uint64(uint32(e.Pad))<<32 }

// Ready is what the socket is ready for.
func (e *Event) Ready() Ready { return Ready(e.Events) }

// New makes a Poller, which takes two descriptors.
func New() (*Poller, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	ev, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(ep)
		return nil, os.NewSyscallError("eventfd", err)
	}
	p := &Poller{epoll: ep, event: ev}
	if err := p.Add(ev, wakeToken, In|Edge); err != nil { // edge-triggered: it need not be read
		p.Close()
		return nil, err
	}
	return p, nil
}

// Close gives the Poller's descriptors back; not those of the sockets. Wake may
// still be called, and does nothing.
func (p *Poller) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.closed = true
	unix.Close(p.epoll)
	unix.Close(p.event)
}

// Add begins to wait for a socket. The token comes back with its events; all
// bits set is taken.
func (p *Poller) Add(fd int, token uint64, r Ready) error {
	return p.control(unix.EPOLL_CTL_ADD, fd, token, r)
}

// Change waits for something else of a socket. What it is ready for already is
// told again.
func (p *Poller) Change(fd int, token uint64, r Ready) error {
	return p.control(unix.EPOLL_CTL_MOD, fd, token, r)
}

// Remove waits no longer for a socket. To close the last descriptor of a socket
// is enough.
func (p *Poller) Remove(fd int) error {
	return p.control(unix.EPOLL_CTL_DEL, fd, 0, 0)
}

func (p *Poller) control(op, fd int, token uint64, r Ready) error {
	e := unix.EpollEvent{Events: uint32(r), Fd: int32(token), Pad: int32(token >> 32)}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(p.epoll, op, fd, &e))
}

// Wake makes Wait return, now or when it is called next.
func (p *Poller) Wake() {
	if p.woken.Swap(true) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	one := [8]byte{1}
	unix.RawSyscall(unix.SYS_WRITE, uintptr(p.event), uintptr(unsafe.Pointer(&one)), uintptr(len(one)))
}

// Wait returns what has happened, waiting for it up to timeout, or for ever if
// that is negative. The slice is valid until the next Wait; it is empty after
// the time, a Wake or a signal.
func (p *Poller) Wait(timeout time.Duration) []Event {
	n := p.take()
	if n == 0 && timeout != 0 && p.busy {
		// Peers on this machine that wait for the processor have it first: what
		// they send saves going to sleep. Without any this costs a call.
		unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
		n = p.take()
	}
	if n == 0 && timeout != 0 {
		n = p.block(timeout)
	}
	p.busy = n > 0
	for i := range p.events[:n] {
		if p.events[i].Token() == wakeToken {
			p.woken.Store(false)
			n--
			p.events[i] = p.events[n]
			break
		}
	}
	return p.events[:n]
}

// take returns what has happened already.
func (p *Poller) take() int {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.epoll), uintptr(unsafe.Pointer(&p.events)), batch, 0, 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}

// block waits with the scheduler's knowledge.
func (p *Poller) block(timeout time.Duration) int {
	ms := -1
	if timeout > 0 { // rounded up, so as not to return just before the time
		ms = int(min((timeout+time.Millisecond-1)/time.Millisecond, 1<<30))
	}
	n, _, errno := syscall.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.epoll), uintptr(unsafe.Pointer(&p.events)), batch, uintptr(ms), 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}
