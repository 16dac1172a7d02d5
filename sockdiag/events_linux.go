package sockdiag

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/sockopt"
)

// Groups of include/uapi/linux/sock_diag.h.
const (
	tcpDestroyed  = 1 // SKNLGRP_INET_TCP_DESTROY
	udpDestroyed  = 2 // SKNLGRP_INET_UDP_DESTROY
	tcp6Destroyed = 3 // SKNLGRP_INET6_TCP_DESTROY
	udp6Destroyed = 4 // SKNLGRP_INET6_UDP_DESTROY
)

// eventBuffer holds some 20,000 events that wait to be taken.
const eventBuffer = 16 << 20

func destroyed(ctx context.Context) (iter.Seq2[Socket, error], error) {
	f, err := subscribe()
	if err != nil {
		return nil, fmt.Errorf("watch sockets close: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { f.Close() })
	return func(yield func(Socket, error) bool) {
		defer func() {
			stop()
			f.Close()
		}()
		err := readEvents(f, yield)
		if err != nil && ctx.Err() == nil {
			yield(Socket{}, fmt.Errorf("watch sockets close: %w", err))
		}
	}, nil
}

// subscribe makes a netlink socket that joined the groups, for Go's poller.
func subscribe() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), "sock_diag netlink")
	// Without CAP_NET_ADMIN there is no more than net.core.rmem_max.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, eventBuffer) != nil {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, eventBuffer)
	}
	// Only what is bound gets messages of groups that the kernel sends as port 0.
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		f.Close()
		return nil, os.NewSyscallError("bind", err)
	}
	for _, group := range []int{tcpDestroyed, udpDestroyed, tcp6Destroyed, udp6Destroyed} {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group); err != nil {
			f.Close()
			if errors.Is(err, unix.EPERM) {
				err = fmt.Errorf("needs CAP_NET_ADMIN: %w", err)
			}
			return nil, os.NewSyscallError("setsockopt", err)
		}
	}
	return f, nil
}

// readEvents reads until f is closed or the loop is left.
func readEvents(f *os.File, yield func(Socket, error) bool) error {
	d := &decoder{details: WithInfo, zones: zoneNames{}}
	buf := make([]byte, bufferSize)
	for {
		n, err := f.Read(buf)
		if errors.Is(err, unix.ENOBUFS) {
			if !yield(Socket{}, ErrEventsLost) {
				return nil
			}
			continue
		}
		if err != nil {
			return err
		}
		for b := buf[:n]; len(b) > 0; {
			var m message
			if m, b, err = nextMessage(b); err != nil {
				return err
			}
			var s Socket
			if err = d.event(&s, m.body); err != nil {
				return err
			}
			if !yield(s, nil) {
				return nil
			}
		}
	}
}

// event decodes what inet_diag_handler_get_info sends.
func (d *decoder) event(s *Socket, body []byte) error {
	s.Protocol = fivetuple.TCP
	if err := d.inet(s, body); err != nil {
		return err
	}
	if s.Number == unix.IPPROTO_UDP {
		s.Protocol, s.Info = fivetuple.UDP, nil
	}
	s.Number = 0
	if s.Info != nil {
		s.Info = &[]sockopt.TCPInfo{*s.Info}[0]
	}
	return nil
}
