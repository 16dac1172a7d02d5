package upstream

import (
	"context"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/dial"
)

// maxChecks is how many checks of a pool connect at once.
const maxChecks = 16

// checkThese has these addresses checked and no others. It is called with mu held.
func (p *Pool) checkThese(addresses []*Address) {
	c := p.config.Check
	was := p.checks
	p.checks = make(map[*Address]context.CancelFunc)
	for _, a := range addresses {
		if stop, ok := was[a]; ok {
			p.checks[a] = stop
			delete(was, a)
		} else if c.Interval > 0 && p.ctx.Err() == nil {
			ctx, cancel := context.WithCancel(p.ctx)
			p.checks[a] = cancel
			d := p.config.Dialer
			p.workers.Go(func() {
				defer cancel()
				p.check(ctx, a, c, d)
			})
		}
	}
	for a, stop := range was {
		stop()
		a.forgive(false, true)
	}
}

// stopChecks ends all checks. What they found stays. It is called with mu held.
func (p *Pool) stopChecks() {
	for a, stop := range p.checks {
		stop()
		delete(p.checks, a)
	}
}

// check checks an address until ctx ends.
func (p *Pool) check(ctx context.Context, a *Address, c Check, d dial.Dialer) {
	pause := rand.N(c.Interval) // or all rules would check at the same moments
	for sleep(ctx, pause) {
		pause = c.Interval
		select {
		case p.checking <- struct{}{}:
		case <-ctx.Done():
			return
		}
		err := a.connect(ctx, c, d)
		<-p.checking
		p.mu.Lock()
		text := ""
		if ctx.Err() == nil { // what ends a check holds mu
			text = a.checked(err, c)
		}
		s := p.current.Load()
		p.mu.Unlock()
		if text != "" {
			s.record(a.tuple(), text)
		}
	}
}

// connect is one check: nil if the address takes a connection.
func (a *Address) connect(ctx context.Context, c Check, d dial.Dialer) error {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	e := a.Target
	if a.Path != "" { // these are of TCP
		d.Source, d.Interface = netip.AddrPort{}, ""
	}
	if a.Path == "" {
		ip := a.Addr.Addr()
		e = e.WithPort(a.Addr.Port())
		if e.Network == fivetuple.TLS && (d.TLS == nil || d.TLS.ServerName == "") {
			t := new(tls.Config)
			if d.TLS != nil {
				t = d.TLS.Clone()
			}
			t.ServerName = a.serverName()
			d.TLS = t
		}
		e.Host = ip.WithZone("").String()
		if ip.Zone() != "" {
			e.Zone = ip.Zone()
		}
	}
	conn, err := d.Dial(ctx, e)
	if err != nil {
		return err
	}
	return conn.Close()
}

// serverName is the name that a tls target has to prove.
func (a *Address) serverName() string {
	if a.Target.Host == "" || a.Target.Host == fivetuple.AnyHost {
		return "localhost"
	}
	return a.Target.Host
}

// checked counts the result of a check. It returns what is to be told.
func (a *Address) checked(err error, c Check) (text string) {
	if err != nil && isLocal(err) {
		return ""
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err == nil {
		a.run = max(a.run, 0) + 1
	} else {
		a.run = min(a.run, 0) - 1
		a.last, a.lastErr = a.pool.now(), err
	}
	switch bad := a.bad.Load(); {
	case bad && a.run >= c.Rise:
		a.bad.Store(false)
		since := time.Since(a.since).Round(time.Millisecond)
		a.since, a.badErr = time.Time{}, nil
		return fmt.Sprintf("%s is good again, after %v: checks connect to it", a, since)
	case !bad && -a.run >= c.Fall:
		a.bad.Store(true)
		a.since, a.badErr = time.Now(), err
		return fmt.Sprintf("%s is bad: checks found %s: %v", a, inARow(-a.run), err)
	}
	return ""
}
