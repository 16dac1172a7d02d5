package sessions

import (
	"fmt"
	"time"
)

// Sessions returns the sessions of this moment, in no order.
func (s *Server) Sessions() []Session {
	var list []Session
	for _, l := range s.allLoops() {
		l.each(func(c *session) { list = append(list, l.describe(c)) })
	}
	return list
}

func (l *loop) describe(c *session) Session {
	local, remote := c.ends()
	limits := l.server.limits.Load()
	return Session{
		ID: c.id, Client: c.client(), Local: l.tuple(c).Local.AddrPort, Target: c.address.Target.String(), Address: remote, Source: local,
		PacketsIn: c.packetsIn, PacketsOut: c.packetsOut, BytesIn: c.bytesIn, BytesOut: c.bytesOut,
		Dropped: c.dropped, KernelDropped: memoryOf(int(c.fd)).drops, Replied: c.is(replied),
		Age: time.Duration(l.now - c.started), Quiet: time.Duration(l.now - c.active),
		Left: time.Duration(max(c.active+c.timeout(limits)-l.now, 0)),
	}
}

// Stats returns what is to be known of the server as a whole.
func (s *Server) Stats() Stats {
	loops := s.allLoops()
	st := Stats{Sessions: s.Len(), Loops: len(loops), GSO: "not in use yet", GRO: "not in use yet"}
	if limits := s.limits.Load(); limits != nil {
		st.MaxSessions = s.maxSessions(limits)
	}
	for i, l := range loops {
		l.lock()
		if i == 0 || st.GSO == "on" {
			st.GSO = l.gsoWhy
		}
		if i == 0 || st.GRO == "on" {
			st.GRO = l.groWhy
		}
		st.In.add(&l.inFlow)
		st.Out.add(&l.outFlow)
		st.Dropped += l.dropped
		st.Refused += l.refused
		st.Cut += l.cut
		st.Delayed += len(l.waiting.heap)
		for _, p := range l.ports {
			if p != nil {
				m := memoryOf(p.fd)
				st.Sockets = append(st.Sockets, Socket{Local: p.addr, ReceiveBuffer: m.receiveBuffer, SendBuffer: m.sendBuffer,
					Waiting: m.waiting, KernelDropped: m.drops})
			}
		}
		l.unlock()
	}
	return st
}

func (f *Flow) add(o *Flow) {
	f.Datagrams += o.Datagrams
	f.Trains += o.Trains
	for i, n := range o.Batches {
		f.Batches[i] += n
	}
}

// String is one line for people.
func (s Stats) String() string {
	var lost uint64
	for _, so := range s.Sockets {
		lost += so.KernelDropped
	}
	return fmt.Sprintf("%d of %d sessions, %d datagrams in, %d out, %d dropped, %d lost before they were received; GSO %s, GRO %s",
		s.Sessions, s.MaxSessions, s.In.Datagrams, s.Out.Datagrams, s.Dropped, lost, s.GSO, s.GRO)
}
