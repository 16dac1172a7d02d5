package lease

import (
	"context"
	"errors"
	"net/netip"

	"github.com/fivetuple/fivetuple"
)

// AcquireBoth grants one port number for TCP and UDP, as two leases; r.Protocol
// and r.Bind are not looked at. If bind is not nil it binds the caller's
// sockets, as [Request.Bind] does: called again for a protocol, it is to close
// what it bound before.
func AcquireBoth(ctx context.Context, ports Registry, r Request, bind func(context.Context, fivetuple.Network, netip.AddrPort) error) (tcp, udp Lease, err error) {
	// Ports that are free for TCP only are kept until there is one for both, so
	// that each is tried once.
	var passed []Lease
	defer func() {
		errRelease := releaseAll(ctx, ports, passed)
		if err == nil && errRelease != nil {
			errRelease = errors.Join(errRelease, releaseAll(ctx, ports, []Lease{tcp, udp}))
			tcp, udp = Lease{}, Lease{}
		}
		err = errors.Join(err, errRelease)
	}()
	acquire := func(protocol fivetuple.Network, port uint16) (Lease, error) {
		r := r
		r.Protocol, r.alone, r.Port, r.Bind = protocol, r.Port == 0, port, nil
		if bind != nil {
			r.Bind = func(ctx context.Context, at netip.AddrPort) error { return bind(ctx, protocol, at) }
		}
		return ports.Acquire(ctx, r)
	}
	for {
		if tcp, err = acquire(fivetuple.TCP, r.Port); err != nil {
			return Lease{}, Lease{}, err
		}
		if udp, err = acquire(fivetuple.UDP, tcp.Port); err == nil {
			return tcp, udp, nil
		}
		passed = append(passed, tcp)
		taken := errors.Is(err, ErrLeased) || errors.Is(err, ErrInUse) || errors.Is(err, ErrNotPermitted)
		if r.Port != 0 || !taken {
			return Lease{}, Lease{}, err
		}
	}
}

func releaseAll(ctx context.Context, ports Registry, leases []Lease) (err error) {
	for _, l := range leases {
		err = errors.Join(err, ports.Release(context.WithoutCancel(ctx), l))
	}
	return err
}
