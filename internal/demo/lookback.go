package demo

import (
	"fmt"

	"github.com/fivetuple/fivetuple/history"
	"github.com/fivetuple/fivetuple/stats"
)

// lookBack prints what the application kept: statistics, history, and the state
// of the ports.
func (p *play) lookBack() error {
	for _, s := range p.app.Counters() {
		if s.Service == "" {
			continue
		}
		p.say("%-9s  connections: %d, %s in, %s out", s.Service, s.Connections, stats.FormatBytes(s.BytesIn), stats.FormatBytes(s.BytesOut))
	}
	const newest = 20
	entries, err := p.app.Recent(p.ctx, newest)
	if err != nil {
		return err
	}
	fmt.Fprintln(p.w)
	for _, e := range entries {
		if e.Kind == stats.Disconnect {
			p.say("%s", ended(e))
		}
	}
	status, err := p.app.Leases().Status(p.ctx)
	if err != nil {
		return err
	}
	fmt.Fprintln(p.w)
	for _, c := range status.Counts {
		if c.Class == "dynamic" {
			p.say("%s: %d of %d dynamic ports left, %d leased", c.Protocol, c.Left, c.Ports, c.Leased)
		}
	}
	return nil
}

// ended is a line of the history about a connection that ended.
func ended(e history.Entry) string {
	peer := e.Tuple.Remote.String()
	if peer == "" {
		peer = "unnamed"
	}
	return fmt.Sprintf("%s  %-9s %-15s %5s in %6s out  %s", e.Time.Local().Format("15:04:05.000"), e.Service, peer,
		stats.FormatBytes(e.BytesIn), stats.FormatBytes(e.BytesOut), e.Cause)
}
