package sockdiag

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
)

// sockDestroy is SOCK_DESTROY of include/uapi/linux/sock_diag.h.
const sockDestroy = 21

func destroy(ctx context.Context, s Socket) error {
	err := destroyExactly(ctx, s)
	switch {
	case errors.Is(err, unix.EPERM):
		err = fmt.Errorf("needs CAP_NET_ADMIN: %w", err)
	case errors.Is(err, unix.EOPNOTSUPP):
		err = fmt.Errorf("the kernel closes no such socket: %w: %w", err, errors.ErrUnsupported)
	case errors.Is(err, unix.ENOENT):
		err = errGone
		if _, errGet := get(ctx, s, 0); errGet == nil {
			err = fmt.Errorf("the kernel does not find it by its ends: %w", errors.ErrUnsupported)
		}
	}
	if err != nil {
		return fmt.Errorf("close socket %s: %w", s.Tuple(), err)
	}
	return nil
}

func destroyExactly(ctx context.Context, s Socket) error {
	if s.Protocol != fivetuple.TCP && s.Protocol != fivetuple.UDP && s.Protocol != fivetuple.UDPLite {
		return unix.EOPNOTSUPP
	}
	if s.Cookie == 0 {
		return errors.New("it has no cookie, and might be another socket by now")
	}
	c, err := dial()
	if err != nil {
		return err
	}
	defer c.close()
	if err = c.destroy(ctx, s); s.Remote.IsValid() {
		return err
	}
	// Of the sockets that share an address by SO_REUSEPORT the kernel finds
	// the one that would get a packet from the remote end.
	for port := range uint16(reusePortTries) {
		if !errors.Is(err, unix.ENOENT) {
			break
		}
		s.Remote = netip.AddrPortFrom(netip.Addr{}, port+1) // of 0.0.0.0 or ::
		err = c.destroy(ctx, s)
	}
	return err
}

// reusePortTries is enough to miss one of 200 sockets once in 10⁸ times.
const reusePortTries = 4096

func (c *conn) destroy(ctx context.Context, s Socket) error {
	return c.do(ctx, sockDestroy, exactRequest(s, 0), func([]byte) error { return nil })
}
