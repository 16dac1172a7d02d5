package splice

import (
	"net/netip"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/sockopt"
)

// Pair is what is to be known of one relayed connection.
type Pair struct {
	ID     uint64           `json:"id"`
	State  string           `json:"state"`          // "connecting", "relaying", "half-closed up", ...
	Client fivetuple.Tuple  `json:"client"`         // as this side sees it
	Proxy  netip.AddrPort   `json:"proxy,omitzero"` // who speaks for the client, if one does
	Target string           `json:"target"`         // as configured; "" before one is chosen
	Leg    *fivetuple.Tuple `json:"leg,omitempty"`  // the connection to the target; nil before there is one
	Age    float64          `json:"age_s"`          // seconds
	Idle   float64          `json:"idle_s"`         // seconds since a byte was moved
	Up     Flow             `json:"up"`             // from the client to the target
	Down   Flow             `json:"down"`           // from the target to the client
	// Slow is which side is waited for: "client" or "target", which take too
	// little; "both"; "rate", the route's limit; "" if what comes is passed on at once.
	Slow      string           `json:"slow,omitempty"`
	ClientTCP *sockopt.TCPInfo `json:"client_tcp_info,omitempty"`
	TargetTCP *sockopt.TCPInfo `json:"target_tcp_info,omitempty"`
}

// Flow is one direction of a Pair.
type Flow struct {
	Bytes    uint64 `json:"bytes"`     // read from the client, or written to it
	Engine   string `json:"engine"`    // "copy" or "splice"
	Why      string `json:"why"`       // that engine
	PipeSize int    `json:"pipe_size"` // bytes granted to the pipe that is held; 0 for none
	InPipe   int    `json:"in_pipe"`   // bytes that wait in it
	InBuffer int    `json:"in_buffer"` // bytes that wait in memory
	Waits    string `json:"waits"`     // for what: "sender", "receiver", "rate" or "" at the end
	Ended    bool   `json:"ended"`     // the sender has ended its side
}

// Pairs returns what is to be known of every connection of this moment, in no
// order. It asks the kernel for TCP_INFO of each socket.
func (s *Server) Pairs() []Pair {
	pairs := make([]Pair, 0, s.Len())
	for _, l := range s.allLoops() {
		l.each(func(p *pair) { pairs = append(pairs, l.describe(p)) })
	}
	return pairs
}

// describe is what is to be known of a pair.
func (l *loop) describe(p *pair) Pair {
	d := Pair{
		ID: p.id, State: p.describeState(), Client: p.clientTuple(),
		Age: time.Duration(l.now - p.started).Seconds(), Idle: time.Duration(l.now - p.active).Seconds(),
		Up: l.describeFlow(p, client), Down: l.describeFlow(p, target),
	}
	if p.extra != nil {
		d.Proxy = p.extra.proxy
	}
	if p.address != nil {
		if d.Target = p.address.Target.String(); p.address.Target == (fivetuple.Endpoint{}) { // no target any more
			d.Target = p.targetAddress().String()
		}
	}
	if p.state == relaying {
		leg := p.targetTuple()
		d.Leg = &leg
	}
	d.ClientTCP, d.TargetTCP = p.tcpInfo(client), p.tcpInfo(target)
	switch takes := [2]bool{d.Down.Waits != "receiver", d.Up.Waits != "receiver"}; {
	case !takes[client] && !takes[target]:
		d.Slow = "both"
	case !takes[client]:
		d.Slow = sideNames[client]
	case !takes[target]:
		d.Slow = sideNames[target]
	case d.Up.Waits == "rate" || d.Down.Waits == "rate":
		d.Slow = "rate"
	}
	return d
}

func (p *pair) describeState() string {
	if p.state != relaying {
		return stateNames[p.state]
	}
	switch up, down := &p.flows[client], &p.flows[target]; {
	case up.is(eof | broken):
		return "half-closed up"
	case down.is(eof | broken):
		return "half-closed down"
	}
	return stateNames[relaying]
}

func (l *loop) describeFlow(p *pair, from side) Flow {
	x := &p.flows[from]
	f := Flow{Bytes: x.moved, Engine: "copy", InPipe: int(x.held), Ended: x.is(eof)}
	if x.pipe != nil {
		f.PipeSize = x.pipe.Size
	}
	if x.buffer != nil {
		f.InBuffer = len(x.buffer.rest)
	}
	switch {
	case x.is(urgent):
		f.Why = "urgent data was seen, at which splice stops"
	case x.is(splices) && x.is(noPipe):
		f.Why = "there was no pipe: all are in use, or the user's share of them is"
	case x.is(splices):
		f.Engine, f.Why = "splice", "much comes at a time"
	default:
		f.Why = "little came, or little at a time"
	}
	switch {
	case x.is(shut | broken):
	case x.waiting():
		f.Waits = "receiver"
	case x.is(limited):
		f.Waits = "rate"
	case p.state == relaying:
		f.Waits = "sender"
	}
	return f
}

// tcpInfo asks the kernel about one side, nil if that is not TCP.
func (p *pair) tcpInfo(of side) *sockopt.TCPInfo {
	if p.fd[of] < 0 || !p.isTCP(of) {
		return nil
	}
	i, err := sockopt.GetTCPInfo(int(p.fd[of]))
	if err != nil {
		return nil
	}
	return &i
}
