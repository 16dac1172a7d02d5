package datagram

import (
	"encoding/binary"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
)

// truncated is the flag of recvmsg(2) for a datagram longer than the buffer.
const truncated = unix.MSG_TRUNC

// controlIn leaves room for the control messages that other options ask for;
// controlOut holds one packet info. Both are multiples of the header's alignment.
const (
	controlIn  = 256
	controlOut = unix.SizeofCmsghdr + (unix.SizeofInet6Pktinfo+7)&^7
)

// tellDestination has the kernel say with every datagram where it was sent to.
// It is a Control function: net names the family in network.
func tellDestination(network, _ string, c syscall.RawConn) error {
	return onFD(c, func(fd int) error {
		// An IPv6 socket takes both: for IPv4 only IP_PKTINFO says which of this
		// host's addresses answers a broadcast.
		err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		if err == nil && strings.HasSuffix(network, "6") {
			err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		}
		return os.NewSyscallError("setsockopt", err)
	})
}

// allowBroadcast makes a Control function that lets a socket send to broadcast
// addresses, or takes that from it again: package net allows it to all.
func allowBroadcast(yes bool) controlFunc {
	value := 0
	if yes {
		value = 1
	}
	return func(_, _ string, c syscall.RawConn) error {
		return onFD(c, func(fd int) error {
			return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, value))
		})
	}
}

// isV6Only says whether an IPv6 socket takes no IPv4.
func isV6Only(c syscall.RawConn) (yes bool) {
	onFD(c, func(fd int) error {
		n, err := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
		yes = n != 0
		return err
	})
	return yes
}

// readControl finds in the control messages of a datagram where it was sent
// to, and with that how to answer.
func (c *Conn) readControl(p *Packet, control []byte) {
	port := c.local.AddrPort.Port()
	for len(control) >= unix.SizeofCmsghdr {
		h, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			return
		}
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			// struct in_pktinfo, ip(7): interface, the local address that answers, the destination
			p.Interface = int(binary.NativeEndian.Uint32(data))
			source, to := netip.AddrFrom4([4]byte(data[4:8])), netip.AddrFrom4([4]byte(data[8:12]))
			p.To = fivetuple.Address{AddrPort: netip.AddrPortFrom(to, port)}
			p.route = routeBack(source, p.Interface)
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			// struct in6_pktinfo, RFC 3542 section 6: the destination, interface
			to := netip.AddrFrom16([16]byte(data[:16]))
			if to.Is4In6() {
				break // IP_PKTINFO comes as well
			}
			p.Interface = int(binary.NativeEndian.Uint32(data[16:]))
			p.route = routeBack(to, p.Interface)
			if to.IsLinkLocalUnicast() || to.IsLinkLocalMulticast() {
				zone := p.From.AddrPort.Addr().Zone() // of the same link, and its text is there already
				if zone == "" {
					zone = strconv.Itoa(p.Interface)
				}
				to = to.WithZone(zone)
			}
			p.To = fivetuple.Address{AddrPort: netip.AddrPortFrom(to, port)}
		}
		control = rest
	}
}

// routeBack is how to answer what was sent to an address of this host.
func routeBack(to netip.Addr, ifindex int) route {
	switch {
	case to.IsUnspecified() || to.IsMulticast():
		return route{}
	case to.IsLinkLocalUnicast():
		return route{source: to, ifindex: ifindex}
	}
	return route{source: to}
}

// writeControl writes into b, which has room for controlOut bytes, the control
// message that makes a datagram take the route. There is none if that is left
// to the kernel. An IPv6 socket takes IP_PKTINFO too, for IPv4.
func writeControl(b []byte, r route) []byte {
	if !r.source.IsValid() {
		return nil
	}
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	data := b[unix.CmsgLen(0):controlOut]
	clear(data)
	if r.source.Is4() {
		h.Level, h.Type = unix.IPPROTO_IP, unix.IP_PKTINFO
		h.SetLen(unix.CmsgLen(unix.SizeofInet4Pktinfo))
		source := r.source.As4()
		binary.NativeEndian.PutUint32(data, uint32(r.ifindex))
		copy(data[4:], source[:])
		return b[:unix.CmsgSpace(unix.SizeofInet4Pktinfo)]
	}
	h.Level, h.Type = unix.IPPROTO_IPV6, unix.IPV6_PKTINFO
	h.SetLen(unix.CmsgLen(unix.SizeofInet6Pktinfo))
	source := r.source.As16()
	copy(data, source[:])
	binary.NativeEndian.PutUint32(data[16:], uint32(r.ifindex))
	return b[:unix.CmsgSpace(unix.SizeofInet6Pktinfo)]
}
