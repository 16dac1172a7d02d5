package demo

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/sockdiag"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/table"
)

// query says which sockets a step is about.
type query struct {
	sockdiag.Query
	is func(sockdiag.Socket) bool
}

// onPort asks for the server's sockets of a port: what is left of closed
// connections for some time (TIME_WAIT) is nobody's any more.
func (p *play) onPort(protocol fivetuple.Network, at netip.AddrPort) query {
	return query{
		sockdiag.Query{Protocols: []fivetuple.Network{protocol}, LocalPort: at.Port()},
		func(s sockdiag.Socket) bool { return s.Local == at && s.State != fivetuple.StateTimeWait },
	}
}

// onPath asks for the Unix sockets of the server.
func (p *play) onPath() query {
	return query{
		sockdiag.Query{Protocols: []fivetuple.Network{fivetuple.Unix}},
		func(s sockdiag.Socket) bool { return s.Name == p.unix.Path },
	}
}

// count is how many sockets there should be in each state.
type count map[fivetuple.State]int

// kernel prints the kernel's view and checks that it is what is claimed. The
// kernel may need a moment to get there: a reset is on its way, say.
func (p *play) kernel(q query, claim string, want count) ([]table.Row, error) {
	var rows []table.Row
	for deadline := time.Now().Add(patience); ; {
		held, err := table.List(p.ctx, q.Query)
		if err != nil {
			return nil, err
		}
		rows = slices.DeleteFunc(held.Rows, func(r table.Row) bool { return !q.is(r.Socket) })
		got := count{}
		for _, r := range rows {
			got[r.State]++
		}
		if maps.Equal(got, want) {
			break
		}
		if time.Now().After(deadline) {
			p.rows(rows)
			return rows, fmt.Errorf("%w: %s: want %v, it has %v", ErrDisagrees, claim, want, got)
		}
		if !sleep(p.ctx, 10*time.Millisecond) {
			return nil, p.ctx.Err()
		}
	}
	p.rows(rows)
	p.claim(claim)
	return rows, nil
}

// kernelCounted prints how many bytes the kernel counted on a client's socket,
// and checks them.
func (p *play) kernelCounted(c *client, who string, sent, received int) error {
	i, err := c.TCPInfo()
	if err != nil {
		return err
	}
	p.kernelSays("tcp  %-11s %s: sent %d B, received %d B, RTT %s", fivetuple.State(i.State), who,
		i.BytesSent, i.BytesReceived, stats.FormatDuration(i.RTT))
	if i.BytesSent != uint64(sent) || i.BytesReceived != uint64(received) {
		return fmt.Errorf("%w: %s: want %d bytes sent and %d received", ErrDisagrees, who, sent, received)
	}
	return nil
}

// listening returns the TCP ports of a range that are listened on where the
// demo's server is, ascending.
func (p *play) listening(r fivetuple.PortRange) ([]uint16, error) {
	sockets, err := sockdiag.List(p.ctx, sockdiag.Query{
		Protocols: []fivetuple.Network{fivetuple.TCP}, States: sockdiag.StatesOf(fivetuple.StateListen),
	})
	if err != nil {
		return nil, err
	}
	var ports []uint16
	for _, s := range sockets {
		n := s.Local.Port()
		if n >= r.First && n <= r.Last && s.Holds(fivetuple.TCP, netip.AddrPortFrom(p.tcp.Addr(), n)) {
			ports = append(ports, n)
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports), nil
}

func (p *play) rows(rows []table.Row) {
	slices.SortFunc(rows, func(a, b table.Row) int { return strings.Compare(sortKey(a), sortKey(b)) })
	for _, r := range rows {
		p.kernelRow(r)
	}
}

// sortKey puts the listener first, then connections by their remote end.
func sortKey(r table.Row) string {
	if r.State == fivetuple.StateListen {
		return ""
	}
	return r.Remote.String()
}
