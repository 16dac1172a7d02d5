package sessions

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/poll"
	"github.com/fivetuple/fivetuple/stats"
)

// Why a session ended, as events name it.
const (
	causeIdle        = "idle timeout"
	causeNoReply     = "no reply"
	causeRefused     = "refused"
	causeUnreachable = "unreachable"
	causeEvicted     = "evicted"
	causeCut         = "cut"    // by a fault on purpose
	causeFailed      = "failed" // here
	causeClosed      = "closed" // the socket that the client writes to
	causeDrained     = "drained"
	causeShutdown    = "shutdown"
)

// open makes a session for a client that has none, nil if there may or can be none.
func (l *loop) open(p *port, k *key) *session {
	s := l.server
	client := addrPort(k.client, k.from, k.zone)
	full, refused := s.admit(client)
	if refused != admitted {
		if s.mayTell() {
			l.note(stats.Event{Kind: stats.Error, Tuple: udp(p.localOf(k), client), Err: refused.text(s.limits.Load(), client)})
		}
		return nil
	}
	if full {
		l.makeRoom()
	}
	route := s.route.Load()
	way, err := l.connect(route, p, client)
	if isShort(err) && l.makeRoomFor(err) {
		way, err = l.connect(route, p, client)
	}
	if err != nil {
		s.leave(client)
		if s.mayTell() {
			l.note(stats.Event{Kind: stats.Error, Tuple: udp(p.localOf(k), client), Err: err.Error()})
		}
		return nil
	}
	c := l.add(s.nextID(), k, way)
	c.line = newLine(route, c.id)
	local, remote := c.ends()
	l.note(stats.Event{Kind: stats.Accept, Tuple: l.tuple(c), Conn: c.id})
	l.note(stats.Event{Kind: stats.Forward, Tuple: udp(local, remote), Conn: c.id})
	l.arm(c)
	if err := l.poller.Add(way.fd, c.token(), interest); err != nil {
		l.end(c, causeFailed, err)
		return nil
	}
	return c
}

// add gives a session a place.
func (l *loop) add(id uint64, k *key, way way) *session {
	c := l.table.take()
	c.id, c.key, c.fd, c.address = id, *k, int32(way.fd), way.address
	c.longestUp, c.longestDown = 1<<16-1, 1<<16-1
	c.started, c.active, c.reported = l.now, l.now, l.now
	l.byKey[*k] = c.slot
	l.peak = max(l.peak, l.table.used)
	return c
}

// end ends a session. Nothing of it may be in the outbox.
func (l *loop) end(c *session, cause string, err error) {
	if l.server.Sink != nil {
		e := l.event(c, stats.Disconnect)
		e.Cause, e.Duration = cause, time.Duration(l.now-c.started)
		if err != nil {
			e.Err = err.Error()
		}
		l.note(e)
	}
	l.poller.Remove(int(c.fd)) // others may have the socket still
	l.drop(c)
}

// drop forgets a session and closes its socket.
func (l *loop) drop(c *session) {
	poll.Close(int(c.fd))
	c.address.Closed()
	client := c.client()
	delete(l.byKey, c.key)
	l.wheel.Clear(int(c.slot))
	l.table.release(c)
	l.server.leave(client)
}

func (c *session) client() netip.AddrPort { return addrPort(c.key.client, c.key.from, c.key.zone) }

// localOf is the address that the client writes to.
func (p *port) localOf(k *key) netip.AddrPort {
	if k.local == [16]byte{} {
		return p.addr
	}
	return addrPort(k.local, p.addr.Port(), k.zone)
}

// tuple names the client's leg.
func (l *loop) tuple(c *session) fivetuple.Tuple {
	return udp(l.ports[c.key.port].localOf(&c.key), c.client())
}

func (l *loop) event(c *session, kind stats.Kind) stats.Event {
	return stats.Event{Kind: kind, Tuple: l.tuple(c), Conn: c.id,
		BytesIn: c.bytesIn, BytesOut: c.bytesOut, PacketsIn: c.packetsIn, PacketsOut: c.packetsOut}
}

// ends are the addresses of the session's own socket.
func (c *session) ends() (local, remote netip.AddrPort) {
	l, _ := poll.LocalOf(int(c.fd))
	r, _ := poll.RemoteOf(int(c.fd))
	return l.Addr, r.Addr
}

// touch says that a datagram of a session has come.
func (l *loop) touch(c *session) {
	c.active = l.now
	l.table.touch(c)
	if !c.is(unreported) {
		c.flags |= unreported
		if l.server.Sink != nil && c.reported+int64(dataEvery) < l.wheel.Due(int(c.slot)) {
			l.arm(c)
		}
	}
}

// timeout is how long a session may be silent.
func (c *session) timeout(limits *Limits) int64 {
	if c.is(replied) {
		return int64(orDefault(limits.Idle, DefaultIdle))
	}
	return int64(orDefault(limits.FirstReply, DefaultFirstReply))
}

// arm sets when the session is to be looked at. Datagrams put its end off without
// setting it anew: it is then looked at in vain.
func (l *loop) arm(c *session) {
	due := c.active + c.timeout(l.server.limits.Load())
	if c.line != nil && c.line.cutTime > 0 {
		due = min(due, c.started+int64(c.line.cutTime))
	}
	if c.is(unreported) && l.server.Sink != nil {
		due = min(due, max(c.reported+int64(dataEvery), l.now))
	}
	if due != l.wheel.Due(int(c.slot)) {
		l.wheel.Set(int(c.slot), due)
		if due < l.wakeAt {
			l.poller.Wake()
		}
	}
}

// onTime sees to a session whose time has come.
func (l *loop) onTime(slot int) {
	c := l.table.at(int32(slot))
	switch {
	case c.line != nil && c.line.cutTime > 0 && l.now-c.started >= int64(c.line.cutTime):
		l.end(c, causeCut, nil)
		return
	case l.now-c.active >= c.timeout(l.server.limits.Load()):
		cause := causeIdle
		if !c.is(replied) {
			cause = causeNoReply
		}
		l.end(c, cause, nil)
		return
	case c.is(unreported) && l.now-c.reported >= int64(dataEvery):
		c.flags &^= unreported
		c.reported = l.now
		l.note(l.event(c, stats.Data))
	}
	l.arm(c)
}

// leastUse is when the session used least recently was.
func (l *loop) leastUse() int64 {
	if c := l.table.least(); c != nil {
		return c.active
	}
	return poll.Never
}

// evict ends the session used least recently. It returns false if there is none.
func (l *loop) evict() bool {
	l.sendUp() // it may have something in the batch
	c := l.table.least()
	if c == nil {
		return false
	}
	l.end(c, causeEvicted, nil)
	return true
}

// makeRoom ends the session of the server that was used least recently: at once
// if it is here, else by its own loop soon.
func (l *loop) makeRoom() bool {
	s := l.server
	if s.maySayFull() {
		l.note(stats.Event{Kind: stats.Error, Err: fmt.Sprintf(
			"full with %d sessions: each new one ends the one used least recently", s.maxSessions(s.limits.Load()))})
	}
	victim, least := l, l.leastUse()
	for _, other := range s.allLoops() {
		if use := other.least.Load(); other != l && use < least {
			victim, least = other, use
		}
	}
	if victim == l {
		return l.evict()
	}
	s.count.Add(-1)                // it is as good as gone
	victim.least.Store(poll.Never) // until its next turn: it may have no other
	victim.evictions.Add(1)
	victim.poller.Wake()
	return true
}

// maySayFull is true at most once a minute.
func (s *Server) maySayFull() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.saidFull.IsZero() && time.Since(s.saidFull) < time.Minute {
		return false
	}
	s.saidFull = time.Now()
	return true
}

// isShort says whether an error means that this process has no more of something
// that each session takes.
func isShort(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, errNoPort)
}

// makeRoomFor ends a session since there is no descriptor or no port for another.
func (l *loop) makeRoomFor(err error) bool {
	if !l.evict() {
		return false
	}
	if l.server.maySayFull() {
		l.note(stats.Event{Kind: stats.Error, Err: fmt.Sprintf(
			"%v: with %d sessions each new one ends the one used least recently", err, l.server.count.Load())})
	}
	return true
}

// targetFailed sees to an error of a session's socket. It returns false if that
// ends the session.
func (l *loop) targetFailed(c *session, errno syscall.Errno) bool {
	told := takeErrors(int(c.fd))
	if told == 0 {
		told = errno
	}
	switch told {
	case unix.EMSGSIZE, unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
		return true // that datagram is lost
	case unix.EPERM, unix.EACCES, unix.EINVAL:
		if l.server.mayTell() {
			local, remote := c.ends()
			l.note(stats.Event{Kind: stats.Error, Tuple: udp(local, remote), Conn: c.id, Err: fmt.Sprintf("send to %s: %v", remote, errorOf(told))})
		}
		return true
	}
	_, remote := c.ends()
	err := fmt.Errorf("udp %s: %w", remote, errorOf(told))
	c.address.Failed(err)
	cause := causeUnreachable
	if told == unix.ECONNREFUSED {
		cause = causeRefused
	}
	l.end(c, cause, err)
	return false
}

// errorOf adds what an error number means here.
func errorOf(errno syscall.Errno) error {
	switch errno {
	case unix.ECONNREFUSED:
		return fmt.Errorf("%w: nobody has the port open", errno)
	case unix.EPERM:
		return fmt.Errorf("%w: a firewall rule of this host forbids it", errno)
	case unix.EACCES:
		return fmt.Errorf("%w: a broadcast address needs the option broadcast=on", errno)
	}
	return errno
}

// clientsFailed sees to an error of a socket that clients write to: there is
// nothing to end.
func (l *loop) clientsFailed(p *port, errno syscall.Errno) {
	takeErrors(p.fd)
	if l.server.mayTell() {
		l.note(stats.Event{Kind: stats.Error, Tuple: p.tuple, Err: fmt.Sprintf("receive on udp %s: %v", p.addr, errno)})
	}
}

// tellNotSent says that a reply did not leave.
func (l *loop) tellNotSent(c *session, errno syscall.Errno) {
	if errno != unix.EAGAIN && l.server.mayTell() {
		e := l.event(c, stats.Error)
		e.BytesIn, e.BytesOut, e.PacketsIn, e.PacketsOut = 0, 0, 0, 0
		e.Err = fmt.Sprintf("send to %s: %v", c.client(), errorOf(errno))
		l.note(e)
	}
}

// takeErrors empties the error queue of a socket (IP_RECVERR, ip(7)), which would
// fill up, and returns the error in it that says most: of those, that
// datagrams are too large for the path says least. It is 0 if there is none.
func takeErrors(fd int) (worst syscall.Errno) {
	var control [512]byte
	for range 64 {
		_, n, _, _, err := unix.Recvmsg(fd, nil, control[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if err != nil {
			return worst
		}
		messages, err := unix.ParseSocketControlMessage(control[:n])
		if err != nil {
			continue
		}
		for _, m := range messages {
			is4 := m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_RECVERR
			is6 := m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_RECVERR
			if !is4 && !is6 || len(m.Data) < 16 { // struct sock_extended_err
				continue
			}
			if worst == 0 || worst == unix.EMSGSIZE {
				worst = syscall.Errno(binary.NativeEndian.Uint32(m.Data))
			}
		}
	}
	return worst
}
