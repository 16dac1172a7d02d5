package sockopt

import (
	"fmt"
	"syscall"
)

// Granted is one option after it was set: what was asked and what the kernel made of it.
type Granted struct {
	Option Option
	Asked  string
	Got    string // read back; empty if the option cannot be read
	Note   string // what happened on the way, for a person to read; empty if nothing did

	// Less: the kernel granted less than asked, a warning is in order. Only buffer sizes have it.
	Less bool
}

// String returns one line such as "rcvbuf: asked 4MiB, got 416KiB (capped by ...)".
func (g Granted) String() string {
	s := g.Option.Name + ": asked " + g.Asked
	if g.Got != "" {
		s += ", got " + g.Got
	}
	if g.Note != "" {
		s += " (" + g.Note + ")"
	}
	return s
}

// Control applies the settings to a new socket: it is a net.ListenConfig.Control and a net.Dialer.Control. It runs
// before bind and connect. Package net itself sets nodelay and keepalive on every TCP connection after that: apply
// [Settings.PerConn] to the connection.
func (s Settings) Control(network, address string, c syscall.RawConn) error {
	return s.ControlFunc(nil)(network, address, c)
}

// ControlFunc is Control that also hands what was granted to report, unless report is nil.
func (s Settings) ControlFunc(report func([]Granted)) func(network, address string, c syscall.RawConn) error {
	return func(network, address string, c syscall.RawConn) error {
		granted, err := s.ApplyConn(c)
		if err != nil {
			return fmt.Errorf("%s %s: %w", network, address, err)
		}
		if report != nil {
			report(granted)
		}
		return nil
	}
}

// ApplyConn applies the settings in order to the socket behind c, as [Apply].
func (s Settings) ApplyConn(c syscall.RawConn) (granted []Granted, err error) {
	if len(s) == 0 {
		return nil, nil
	}
	var applyErr error
	if err := c.Control(func(fd uintptr) { granted, applyErr = Apply(int(fd), s...) }); err != nil {
		return nil, fmt.Errorf("set socket options: %w", err)
	}
	return granted, applyErr
}

// PerConn returns the settings to apply again to each TCP connection, dialed or accepted: those that package net
// overwrites on it with its own defaults (nodelay, keepalive), and those a connection does not take over from its
// listener (quickack, priority).
func (s Settings) PerConn() Settings {
	var again Settings
	for _, setting := range s {
		switch setting.Option().Name {
		case "nodelay", "quickack", "priority", "keepalive", "keepalive-idle", "keepalive-interval", "keepalive-count":
			again = append(again, setting)
		}
	}
	return again
}

// Combine returns a Control function that runs the given ones in order and stops at the first error. Those that are nil
// are left out.
func Combine(fs ...func(network, address string, c syscall.RawConn) error) func(network, address string, c syscall.RawConn) error {
	return func(network, address string, c syscall.RawConn) error {
		for _, f := range fs {
			if f == nil {
				continue
			}
			if err := f(network, address, c); err != nil {
				return err
			}
		}
		return nil
	}
}
