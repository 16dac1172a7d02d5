package splice

import (
	"math"
	"syscall"
	"time"

	"github.com/fivetuple/fivetuple/internal/poll"
)

const (
	readSize  = 64 << 10 // what loopback TCP delivers in one segment
	turnShare = 1 << 20  // bounds what a direction may have of a turn, in bytes

	largePiece = 16 << 10 // what came at a time, of which a few in a row make splice worth while
	smallPiece = 4 << 10  // and at which it is not
	pieces     = 3        // a few
)

// serve does what can be done for a pair now.
func (l *loop) serve(p *pair) {
	switch p.state {
	case introducing, greeting:
		l.listen(p)
	case connecting:
		l.goOnConnecting(p)
	case relaying:
		l.relay(p)
	}
}

// relay moves what can be moved in both directions, and ends a pair that has no
// more.
func (l *loop) relay(p *pair) {
	l.pump(p, client)
	if p.state != relaying {
		return
	}
	l.pump(p, target)
	if p.state != relaying {
		return
	}
	up, down := &p.flows[client], &p.flows[target]
	switch {
	case up.is(shut) && down.is(shut):
		l.close(p, l.causeOfEnd(p), nil)
	case up.is(broken) && down.is(shut|broken):
		l.breakOff(p, target, causeTargetClosed, nil)
	case down.is(broken) && up.is(shut|broken):
		l.breakOff(p, client, causeClosed, nil)
	}
}

func (l *loop) causeOfEnd(p *pair) cause {
	if p.is(targetFirst) {
		return causeTargetClosed
	}
	return causeClosed
}

// pump moves what can be moved from one side to the other.
func (l *loop) pump(p *pair, from side) {
	x := &p.flows[from]
	for share := turnShare; p.state == relaying; {
		switch {
		case x.is(broken):
			l.forget(x)
			return
		case x.waiting():
			if !x.is(room) || !l.deliver(p, from) {
				l.wantRoom(p, from)
				return // with the pipe, and what is in it
			}
			continue
		case x.is(eof):
			l.givePipe(x)
			l.passEnd(p, from)
			return
		case !x.is(readable) || x.is(limited):
			l.givePipe(x)
			return
		case share <= 0:
			l.givePipe(x)
			l.goOn(p)
			return
		}
		share -= l.take(p, from, share)
	}
}

// take reads what the sender has and passes it on. It returns how many bytes, at
// least one if the time may go on.
func (l *loop) take(p *pair, from side, share int) int {
	x := &p.flows[from]
	most := math.MaxInt
	if p.route.Rate > 0 {
		if most = l.allowance(p, x); most == 0 {
			x.flags |= limited
			l.arm(p)
			return 0
		}
	}
	var n int
	if x.is(splices) && !x.is(urgent) && l.takePipe(x) {
		n = l.fill(p, from, min(most, share))
	} else {
		n = l.copy(p, from, min(most, readSize))
	}
	if n > 0 && p.state == relaying && p.route.Rate > 0 {
		x.due += int64(float64(n) * float64(time.Second) / float64(p.route.Rate))
	}
	return n
}

// copy moves bytes by way of the loop's buffer.
func (l *loop) copy(p *pair, from side, most int) int {
	x := &p.flows[from]
	n, errno := poll.Read(int(p.fd[from]), l.buf[:most])
	if n == 0 {
		l.tookNothing(p, from, errno)
		return 0
	}
	if from == client {
		l.moved(p, x, n)
	}
	if n < most && p.isTCP(from) && !x.is(readOn|urgent) {
		x.flags &^= readable // it was all; more would be told
	}
	switch {
	case n < largePiece:
		x.heat = 0
	case x.heat < pieces:
		x.heat++
	default:
		x.heat = pieces
		x.flags |= splices
	}
	b := l.buf[:n]
	for len(b) > 0 {
		sent, errno := poll.Write(int(p.fd[from.other()]), b, false)
		if errno == syscall.EAGAIN {
			sent = 0
		} else if errno != 0 {
			l.failed(p, from.other(), errno)
			return n
		}
		if from == target && sent > 0 {
			l.moved(p, x, sent)
		}
		if b = b[sent:]; len(b) > 0 {
			x.flags &^= room
			l.keep(x, b)
			return n
		}
	}
	return n
}

// fill moves bytes from the sender into the pipe.
func (l *loop) fill(p *pair, from side, most int) int {
	x := &p.flows[from]
	n, errno := x.pipe.Fill(int(p.fd[from]), min(most, x.pipe.Size))
	if n == 0 && errno == 0 { // the end; or urgent data before it, at which splice stops with bytes behind
		l.givePipe(x)
		return l.copy(p, from, min(most, readSize))
	}
	if n == 0 {
		l.tookNothing(p, from, errno)
		return 0
	}
	x.held = int32(n)
	if from == client {
		l.moved(p, x, n)
	}
	switch {
	case n >= smallPiece:
		x.heat = pieces
	case x.heat > 0:
		x.heat--
	default:
		x.flags &^= splices
	}
	return n
}

// tookNothing sees to what a read returned that is not bytes.
func (l *loop) tookNothing(p *pair, from side, errno syscall.Errno) {
	x := &p.flows[from]
	switch {
	case errno == syscall.EAGAIN:
		x.flags &^= readable
		if p.isTCP(from) {
			x.flags &^= readOn
		}
	case errno != 0:
		x.flags |= eof // what came before has been read
		l.failed(p, from, errno)
	default:
		x.flags |= eof
		if from == target && !p.flows[client].is(eof) {
			p.flags |= targetFirst
		}
	}
}

// deliver writes what waits in one direction. It reports whether all was taken.
func (l *loop) deliver(p *pair, from side) bool {
	x := &p.flows[from]
	to := int(p.fd[from.other()])
	var n int
	var errno syscall.Errno
	if x.buffer != nil { // it came before what is in the pipe
		n, errno = poll.Write(to, x.buffer.rest, false)
	} else {
		n, errno = x.pipe.Drain(to, int(x.held))
	}
	switch {
	case errno == syscall.EAGAIN:
		x.flags &^= room
		return false
	case errno != 0:
		l.failed(p, from.other(), errno)
		return true // nothing waits any more
	}
	if from == target {
		l.moved(p, x, n)
	}
	if x.buffer == nil {
		x.held -= int32(n)
		return true
	}
	if x.buffer.rest = x.buffer.rest[n:]; len(x.buffer.rest) == 0 {
		putBuffer(x.buffer)
		x.buffer = nil
	}
	return true
}

// passEnd tells the receiver that the sender has ended its side.
func (l *loop) passEnd(p *pair, from side) {
	x, back := &p.flows[from], &p.flows[from.other()]
	switch {
	case p.err[from] != 0: // it was no end but an error
		l.breakOffFailed(p)
	case x.is(shut):
	case back.is(shut): // both are to be closed, which tells as well
		x.flags |= shut
	case poll.CloseWrite(int(p.fd[from.other()])) != nil:
		x.flags |= broken | shut
	default:
		x.flags |= shut
		p.active = l.now // the time to half-closed too long begins
		l.arm(p)
	}
}

// failed sees to a side that takes and gives no more. What it sent before the
// error is still to be read, and passed on, while the receiver takes some of it at
// least every flushTimeout. EPIPE is the answer to bytes sent to a
// side that had properly ended before: the end of what it sent is no error.
func (l *loop) failed(p *pair, of side, errno syscall.Errno) {
	from, to := &p.flows[of], &p.flows[of.other()]
	to.flags |= broken
	l.forget(to)
	if errno != syscall.EPIPE || from.is(eof) && !from.is(shut) {
		p.err[of] = uint16(errno)
	}
	switch {
	case from.is(broken): // neither takes any more
		l.reset(p, causeOf(of, errno), l.failure(p, of, errno))
	case p.err[of] != 0 && from.is(shut):
		l.breakOffFailed(p)
	default:
		from.flags |= readable
		p.active = l.now
		l.arm(p)
		l.goOn(p)
	}
}

// breakOffFailed ends a pair of which one side has failed.
func (l *loop) breakOffFailed(p *pair) {
	of := client
	if p.err[of] == 0 {
		of = target
	}
	errno := syscall.Errno(p.err[of])
	l.breakOff(p, of, causeOf(of, errno), l.failure(p, of, errno))
}

// moved counts bytes.
func (l *loop) moved(p *pair, x *flow, n int) {
	x.moved += uint64(n)
	p.active = l.now
	if !p.is(unreported) {
		p.flags |= unreported
		l.arm(p)
	}
}

// wantRoom makes the poller tell when the receiver has room, from now on. TCP
// does from the beginning; a Unix socket would tell whenever the peer reads.
func (l *loop) wantRoom(p *pair, from side) {
	if p.state != relaying {
		return
	}
	x, to := &p.flows[from], from.other()
	if !x.is(tellsRoom) {
		x.flags |= tellsRoom
		if !p.isTCP(to) {
			l.poller.Change(int(p.fd[to]), p.token(to), interest|poll.Out)
		}
	}
	l.arm(p)
}

// The rate lets bytes through evenly, of which so much may be saved, and waits
// until there is a piece of so much to be moved.
const (
	rateBurst = 100 * time.Millisecond
	ratePiece = 20 * time.Millisecond
)

// allowance is how many bytes the rate lets through now.
func (l *loop) allowance(p *pair, x *flow) int {
	rate := float64(p.route.Rate)
	burst := max(int64(rateBurst), int64(float64(time.Second)/rate)+1)
	x.due = max(x.due, l.now-burst)
	return max(int(min(float64(l.now-x.due)*rate/float64(time.Second), 1<<30)), 0)
}

// allowedAt is when it lets the next piece through.
func allowedAt(p *pair, x *flow) int64 {
	return x.due + max(int64(ratePiece), int64(float64(time.Second)/float64(p.route.Rate))+1)
}
