package service

import (
	"errors"
	"fmt"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/relay"
)

// ErrEngine is wrapped by the error of [Service.SetForward] for a rule that the
// engine that runs cannot serve: a new service can.
var ErrEngine = errors.New("the rule needs another engine")

func (c *Config) forwards() bool { return c.Handler == nil && c.Kind == kindForward }

// rule is the rule of "forward" with the place where it listens.
func (c *Config) rule() relay.Config {
	rule := *c.Forward
	if rule.Listen == (fivetuple.Endpoint{}) && len(c.Endpoints) == 1 {
		rule.Listen = c.Endpoints[0]
	}
	return rule
}

// expanded names every port of a range, where a rule has one.
func (c Config) expanded() Config {
	if !c.forwards() {
		return c
	}
	rule := c.rule()
	c.Forward = &rule
	var all []fivetuple.Endpoint
	for _, e := range c.Endpoints {
		if e.Ports.Len() == 1 {
			all = append(all, e)
			continue
		}
		for n := range e.Ports.Len() {
			all = append(all, e.WithPort(e.Ports.First+uint16(n)))
		}
	}
	c.Endpoints = all
	return c
}

func (c *Config) checkForward(e fivetuple.Endpoint) error {
	rule := c.rule()
	if l := rule.Listen; l.Ports.Contains(e.Ports.First) && l.WithPort(e.Ports.First) == e {
		e = l // one port of the range
	}
	if e.Ports.Len() > 1 && rule.Listen != e {
		return errors.New("a range of ports goes alone: it needs a rule of its own")
	}
	return rule.CheckFor(e, c.TLS != nil)
}

// newRelay begins to do what the rule says.
func (s *Service) newRelay() (err error) {
	if !s.config.forwards() {
		return nil
	}
	s.relay, err = relay.New(*s.config.Forward, relay.Options{Service: s.config.Name, Sink: s.sink})
	return err
}

func (s *Service) closeRelay() {
	if s.relay != nil {
		s.relay.Close()
	}
}

// SetForward changes the rule, for connections and sessions from now on. After an
// error, which wraps [ErrEngine] if a new service could serve it, the rule is as it was.
func (s *Service) SetForward(rule relay.Config) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.relay == nil {
		return fmt.Errorf("the service %s has no rule to change", s.config.Name)
	}
	is := s.config.Forward
	if rule.Listen == (fivetuple.Endpoint{}) {
		rule.Listen = is.Listen
	}
	for _, p := range s.parts {
		for _, o := range p.sockets() {
			c := s.config
			c.Forward = &rule
			if err := c.checkForward(o.endpoint); err != nil {
				return err
			}
			if n := o.endpoint.Network; !n.IsDatagram() && rule.Splices(n) != is.Splices(n) {
				return ErrEngine
			}
		}
	}
	if err := s.relay.Set(rule); err != nil {
		return err
	}
	s.config.Forward = &rule
	for _, p := range s.parts {
		if r, ok := p.(interface{ setRoute(*relay.Relay) }); ok {
			r.setRoute(s.relay)
		}
		p.setLimits(&s.config)
	}
	return nil
}
