package gate

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/ancillary"
	"github.com/fivetuple/fivetuple/internal/acl"
	"github.com/fivetuple/fivetuple/internal/poll"
	"github.com/fivetuple/fivetuple/stream"
)

// Why accept accepted nothing.
var (
	errNone   = errors.New("no connection waits")
	errPaused = errors.New("accepting is paused")
)

// accept accepts a connection if the limits allow another. One that they forbid
// comes with the error. say is what is to be recorded.
func (g *Gate) accept(l *Listener) (n Newcomer, say, err error) {
	limits := g.limits.Load()
	n = Newcomer{FD: -1, TCP: l.tcp, Local: l.tuple.Local}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.shut:
		return n, nil, errNone
	case g.paused.Load():
		return n, nil, errPaused
	case limits.MaxConns > 0 && len(g.where) >= limits.MaxConns:
		g.pauseFor(time.Duration(poll.Never))
		return n, g.full(limits.MaxConns), errPaused
	}
	saved := g.bucket
	if wait := g.bucket.Take(limits.AcceptRate, time.Now()); wait > 0 {
		g.pauseFor(wait)
		return n, nil, errPaused
	}
	if l.raw.Control(l.try) != nil { // closed
		return n, nil, errNone
	}
	if l.errno != 0 {
		g.bucket = saved
		say, err = g.acceptFailed(l.errno)
		return n, say, err
	}
	g.backoff.Reset()
	n.FD, n.ID, n.Peer, n.Lingers = l.fd, g.nextID(), l.peer, l.lingers
	if l.any {
		if p, err := poll.LocalOf(n.FD); err == nil {
			n.Local = fivetuple.Address{AddrPort: p.Addr}
		}
	}
	if err := g.admit(&n, limits); err != nil {
		return n, fmt.Errorf("refused: %w", err), err
	}
	return n, nil, nil
}

// acceptFailed says what is to be recorded and done about it. g.mu is held.
func (g *Gate) acceptFailed(errno syscall.Errno) (say, err error) {
	err = os.NewSyscallError("accept4", errno)
	switch {
	case errno == syscall.EAGAIN:
		return nil, errNone
	case !mayAcceptLater(errno):
		return fmt.Errorf("accept: %w", err), err
	}
	if g.backoff.First() {
		say = fmt.Errorf("accept paused: %w", err)
	}
	g.pauseFor(g.backoff.Next())
	return say, errPaused
}

// mayAcceptLater says whether accept(2) may succeed later: descriptors or memory
// are short, or the error belonged to the connection that was to be accepted.
func mayAcceptLater(errno syscall.Errno) bool {
	switch errno {
	case syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EPERM, syscall.EPROTO,
		syscall.ENETDOWN, syscall.EHOSTDOWN, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EOPNOTSUPP, syscall.ETIMEDOUT:
		return true
	}
	return false
}

// admit enters a connection among those served, or says why it may not be. g.mu is held.
func (g *Gate) admit(n *Newcomer, limits *stream.Limits) error {
	if !n.TCP && g.is.Peers != nil {
		if err := g.allowed(n.FD); err != nil {
			return err
		}
	}
	if n.Proxied = g.isProxy(n.Peer.Addr.Addr()); !n.Proxied {
		if err := g.judge(n.Peer.Addr, limits); err != nil {
			return err
		}
	}
	g.enter(n)
	return nil
}

// Admit judges and counts the client that a proxy has named, for a connection
// that was [Newcomer.Proxied].
func (g *Gate) Admit(client netip.AddrPort) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.judge(client, g.limits.Load()); err != nil {
		return err
	}
	g.count(client)
	return nil
}

// judge says why a client may not be served. g.mu is held.
func (g *Gate) judge(client netip.AddrPort, limits *stream.Limits) error {
	if !(acl.List{Allow: limits.Allow, Deny: limits.Deny}).Allows(client.Addr()) {
		return errors.New("source not allowed")
	}
	from := acl.Source(client)
	if limits.MaxPerSource > 0 && from.IsValid() && g.perSource[from] >= limits.MaxPerSource {
		return fmt.Errorf("more than %d connections from %s, the limit per source", limits.MaxPerSource, from)
	}
	return nil
}

func (g *Gate) count(client netip.AddrPort) {
	if from := acl.Source(client); from.IsValid() {
		g.perSource[from]++
	}
}

// isProxy says whether a source is one of the proxies.
func (g *Gate) isProxy(a netip.Addr) bool {
	if len(g.is.Proxies) == 0 || !a.IsValid() {
		return false
	}
	a = a.Unmap().WithZone("")
	return slices.ContainsFunc(g.is.Proxies, func(p netip.Prefix) bool { return p.Contains(a) })
}

// allowed says whether Peers lets the process in that connected a Unix socket.
func (g *Gate) allowed(fd int) error {
	who, err := poll.PeerCredentials(fd)
	if err != nil {
		return err
	}
	peer := ancillary.Credentials{PID: who.PID, UID: who.UID, GID: who.GID}
	if !g.is.Peers.Allows(peer) {
		return fmt.Errorf("peer not allowed: %s", peer)
	}
	return nil
}
