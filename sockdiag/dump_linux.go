package sockdiag

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
)

// dump calls each with the sockets that match, until it returns false. The
// Socket is overwritten for the next call.
func dump(ctx context.Context, q Query, each func(*Socket) bool) error {
	requests, err := q.requests()
	if err != nil {
		return err
	}
	c, err := dial()
	if err != nil {
		return err
	}
	defer c.close()
	var s Socket
	for _, r := range requests {
		more, err := c.dump(ctx, r.body, func(body []byte) (bool, error) {
			keep, err := r.decode(&s, body)
			if err != nil || !keep {
				return true, err
			}
			return each(&s), nil
		})
		if err != nil {
			return fmt.Errorf("list %s sockets: %w", r.what, r.explain(err))
		}
		if !more {
			return nil
		}
	}
	return nil
}

// request is one dump: the kernel lists one family and protocol at a time.
type request struct {
	what   string // "tcp", for errors
	module string // the kernel module that answers
	body   []byte
	decode func(*Socket, []byte) (keep bool, err error)
}

func (q Query) requests() ([]request, error) {
	w, err := q.wants()
	if err != nil {
		return nil, err
	}
	var all []request
	zones := zoneNames{}
	for _, ip := range []struct {
		wanted   bool
		network  fivetuple.Network
		protocol uint8
	}{{w.tcp, fivetuple.TCP, unix.IPPROTO_TCP}, {w.udp, fivetuple.UDP, unix.IPPROTO_UDP}} {
		if !ip.wanted {
			continue
		}
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			all = append(all, request{
				what:   ip.network.String(),
				module: ip.network.String() + "_diag",
				body:   inetRequest(q, family, ip.protocol),
				decode: func(s *Socket, b []byte) (bool, error) {
					*s = Socket{Protocol: ip.network}
					return true, decodeInet(s, b, zones)
				},
			})
		}
	}
	anyUnix := w.unix || w.unixgram || w.seqpacket
	if anyUnix && q.LocalPort == 0 && q.RemotePort == 0 {
		all = append(all, request{
			what:   "unix",
			module: "unix_diag",
			body:   unixRequest(q),
			decode: func(s *Socket, b []byte) (bool, error) {
				*s = Socket{}
				err := decodeUnix(s, b)
				keep := s.Protocol == fivetuple.Unix && w.unix ||
					s.Protocol == fivetuple.Unixgram && w.unixgram ||
					s.Protocol == fivetuple.Seqpacket && w.seqpacket
				return keep, err
			},
		})
	}
	return all, nil
}

// explain says what ENOENT means: nobody answers for the family and protocol.
func (r request) explain(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("the kernel module %s is not there (try modprobe %s): %w: %w", r.module, r.module, err, errors.ErrUnsupported)
	}
	return err
}
