package upstream

import (
	"time"

	"github.com/fivetuple/fivetuple"
)

// State is what is held of an address.
type State string

// The states. Connections go to Good and Trial first.
const (
	Good       State = "good"
	Ejected    State = "ejected"    // left out until a time, after failures
	Trial      State = "trial"      // was ejected; one connection may try it now, or does
	Bad        State = "bad"        // checks fail
	Unresolved State = "unresolved" // a name without an address
)

// Status is the state of one address of a target, or of a name that has none.
type Status struct {
	Target      fivetuple.Endpoint `json:"target"`
	Address     fivetuple.Address  `json:"address,omitzero"`
	State       State              `json:"state"`
	Reason      string             `json:"reason,omitempty"`       // of a state that is not good
	Until       time.Time          `json:"until,omitzero"`         // of Ejected
	Since       time.Time          `json:"since,omitzero"`         // of Bad
	Connections int                `json:"connections"`            // now, with those that are being made
	Opened      uint64             `json:"opened"`                 // in total
	Failed      uint64             `json:"failed"`                 // in total
	LastError   string             `json:"last_error,omitempty"`   // of a connection or a check, whatever came after
	LastFailure time.Time          `json:"last_failure,omitzero"`  // when that was
	Resolved    time.Time          `json:"resolved,omitzero"`      // when the name had an answer last; zero if there is none to resolve
	NextLookup  time.Time          `json:"next_lookup,omitzero"`   // when it is asked for again
	LookupError string             `json:"lookup_error,omitempty"` // of the last lookup: the addresses are those of before
}

// Status is the state of every address, target by target. An address that two targets
// stand for is listed with both.
func (p *Pool) Status() []Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []Status
	for _, t := range p.targets {
		named := Status{Target: t.endpoint, Resolved: t.resolved, NextLookup: t.next}
		if t.err != nil {
			named.LookupError = t.err.Error()
		}
		if len(t.addresses) == 0 {
			named.State, named.Reason = Unresolved, t.reason()
			all = append(all, named)
		}
		for _, a := range t.addresses {
			one := named
			a.describe(&one)
			all = append(all, one)
		}
	}
	return all
}

func (t *target) reason() string {
	if t.err != nil {
		return t.err.Error()
	}
	return errNotYet.Error()
}

// describe fills in what is known of the address.
func (a *Address) describe(s *Status) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s.Address = a.place()
	s.Connections, s.Opened, s.Failed = a.Conns(), a.opened.Load(), a.failed.Load()
	if a.lastErr != nil {
		s.LastError, s.LastFailure = a.lastErr.Error(), a.pool.at(a.last)
	}
	s.State = Good
	out := a.out.Load()
	switch {
	case a.bad.Load():
		s.State, s.Since, s.Reason = Bad, a.since, a.badErr.Error()
	case out == 0:
	case out == a.until && a.pool.now() < out:
		s.State, s.Until, s.Reason = Ejected, a.pool.at(out), s.LastError
	default:
		s.State, s.Reason = Trial, s.LastError
	}
}
