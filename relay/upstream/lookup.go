package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/quota"
)

const (
	minTTL = time.Second // of answers with less, such as 0: once a second is often
	maxTTL = time.Hour   // of answers with more
	// lookupTimeout is of one lookup: resolv.conf(5) asks two servers twice with 5 s each,
	// and more where there are search domains.
	lookupTimeout = 30 * time.Second
	// After a failure a name is asked for again at growing intervals.
	minRetry, maxRetry = time.Second, 30 * time.Second
	// strictTimes is how many failures in a row of one family alone leave the addresses
	// of both as they are. After that, and until both answer again, those are used that
	// can be had: some name servers never answer for IPv6.
	strictTimes = 3
)

// follow looks a name up now, and again whenever the answer has aged, until ctx ends.
func (p *Pool) follow(ctx context.Context, t *target) {
	retry := quota.Backoff{Min: minRetry, Max: maxRetry}
	for {
		pause, err := p.lookUp(ctx, t, &retry)
		t.wasAskedFor()
		if err != nil || !sleep(ctx, pause) {
			return
		}
	}
}

// lookUp asks once for the addresses of a name and has them used. It returns when to
// ask again, or an error if that is over.
func (p *Pool) lookUp(ctx context.Context, t *target, retry *quota.Backoff) (time.Duration, error) {
	p.mu.Lock()
	dns, refresh := p.config.DNS, p.config.Refresh
	strict := len(t.addresses) > 0 && !t.lenient
	p.mu.Unlock()

	a := ask(ctx, dns, t.endpoint, strict)

	p.mu.Lock()
	if ctx.Err() != nil { // the target is no more: it is ended with mu held
		p.mu.Unlock()
		return 0, ctx.Err()
	}
	pause := refresh
	if a.err != nil {
		pause = retry.Next()
	} else if retry.Reset(); a.hasTTL {
		pause = min(max(a.ttl, minTTL), maxTTL)
	}
	now := time.Now()
	t.next = now.Add(pause)
	text := p.take(t, a, now)
	s := p.current.Load()
	p.mu.Unlock()
	if text != "" {
		s.record(fivetuple.Tuple{}, fmt.Sprintf("target %s: %s", t.endpoint, text))
	}
	return pause, nil
}

// take changes a target to what a lookup brought. It returns what is to be told, which
// is only what is new. It is called with mu held.
func (p *Pool) take(t *target, a answer, now time.Time) (text string) {
	was := t.err
	t.err = a.err
	if a.err != nil {
		t.failures++
		t.lenient = t.lenient || t.failures >= strictTimes
		switch {
		case was != nil && isNotFound(was) == isNotFound(a.err):
			return "" // the text has ports and servers in it, which change each time
		case len(t.addresses) > 0:
			return fmt.Sprintf("%v; its last addresses stay in use", a.err)
		}
		return a.err.Error()
	}
	t.failures, t.resolved = 0, now
	t.lenient = t.lenient && !bothFamilies(a.addrs)
	if p.useAddresses(t, a.addrs) {
		p.publish()
	}
	if was != nil {
		return fmt.Sprintf("the name has addresses again: %s", listed(t.addresses))
	}
	return ""
}

// useAddresses says whether a target now has others than before. The order of those
// that stay, which name servers change with every answer, is kept where it can be.
func (p *Pool) useAddresses(t *target, addrs []netip.Addr) bool {
	var now []*Address
	for _, addr := range cut(addrs, p.share(), netip.Addr.Compare) {
		a := p.address(t.endpoint, netip.AddrPortFrom(addr, t.endpoint.Ports.First), "")
		now = append(now, a)
	}
	same := len(now) == len(t.addresses)
	for _, a := range now {
		same = same && slices.Contains(t.addresses, a)
	}
	if same {
		return false
	}
	t.addresses = now
	return true
}

// answer is what a lookup found.
type answer struct {
	addrs  []netip.Addr // each once, in the order of the resolver; at least one if err is nil
	hasTTL bool
	ttl    time.Duration
	err    error
}

// ask looks up the addresses of an endpoint, of its family alone if it has one. strict
// makes it fail when one family could not be asked for.
func ask(ctx context.Context, dns dialFunc, e fivetuple.Endpoint, strict bool) (a answer) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	heard := listener{dial: dns}
	r := net.Resolver{PreferGo: true, StrictErrors: strict, Dial: heard.connect}
	addrs, err := r.LookupNetIP(ctx, family(e.Network), e.Host)
	if err != nil {
		a.err = err
		return a
	}
	seen := make(map[netip.Addr]bool)
	for _, addr := range addrs {
		if addr = addr.Unmap(); !seen[addr] {
			seen[addr] = true
			a.addrs = append(a.addrs, addr)
		}
	}
	if len(a.addrs) == 0 {
		a.err = errNoAddress
		return a
	}
	a.ttl, a.hasTTL = heard.smallest()
	return a
}

var errNoAddress = errors.New("the name has no address")

func bothFamilies(addrs []netip.Addr) bool {
	return slices.ContainsFunc(addrs, netip.Addr.Is4) && slices.ContainsFunc(addrs, netip.Addr.Is6)
}

func family(n fivetuple.Network) string {
	switch n {
	case fivetuple.TCP4, fivetuple.UDP4:
		return "ip4"
	case fivetuple.TCP6, fivetuple.UDP6:
		return "ip6"
	}
	return "ip"
}

// isNotFound says whether a lookup failed because there is no such name or address,
// and not because nobody answered.
func isNotFound(err error) bool {
	var dns *net.DNSError
	return !errors.As(err, &dns) || dns.IsNotFound
}

// listed writes out a few addresses.
func listed(addresses []*Address) string {
	const enough = 4
	text := ""
	for i, a := range addresses {
		if i == enough {
			return fmt.Sprintf("%s and %d more", text, len(addresses)-enough)
		}
		if i > 0 {
			text += ", "
		}
		text += a.place().String()
	}
	return text
}

// sleep says whether ctx lasted for so long.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
