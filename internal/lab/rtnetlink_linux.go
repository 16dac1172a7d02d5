package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// vethInfoPeer is VETH_INFO_PEER of include/uapi/linux/veth.h, which x/sys lacks.
const vethInfoPeer = 1

// create asks for something new, and for the kernel's verdict.
const create = netlink.Create | netlink.Excl | netlink.Acknowledge

// setUp sets a device of this thread's namespace up.
func setUp(device string) error {
	link, err := net.InterfaceByName(device)
	if err != nil {
		return err
	}
	_, err = request(unix.RTM_NEWLINK, netlink.Acknowledge, linkHeader(link.Index, unix.IFF_UP), nil)
	return err
}

// ready reports whether a device carries packets and all its addresses can be used.
func ready(device string) (bool, error) {
	running, err := running(device)
	if !running || err != nil {
		return false, err
	}
	// An IPv6 address is tentative until the kernel has joined the group by which
	// neighbours ask for it: it does so a moment after it has given the device the
	// address, and a question too early is repeated after a second.
	addresses, err := os.ReadFile("/proc/thread-self/net/if_inet6")
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(addresses)) {
		var address, name string
		var index, length, scope, flags int
		if _, err := fmt.Sscanf(line, "%s %x %x %x %x %s", &address, &index, &length, &scope, &flags, &name); err != nil {
			return false, fmt.Errorf("read the IPv6 addresses: %q: %w", line, err)
		}
		if name == device && flags&unix.IFA_F_TENTATIVE != 0 {
			return false, nil
		}
	}
	return true, nil
}

// running reports whether a device carries packets. It asks for this one device
// and not, as net does, for all: that makes a recent kernel look at once (rtnl_getlink
// in net/core/rtnetlink.c), where on its own it takes up to a second (net/core/link_watch.c).
func running(device string) (bool, error) {
	reply, err := getLink(device)
	if err != nil {
		return false, err
	}
	return binary.NativeEndian.Uint32(reply[8:])&unix.IFF_RUNNING != 0, nil
}

// getLink returns a struct ifinfomsg and the attributes of a device.
func getLink(device string) ([]byte, error) {
	link, err := net.InterfaceByName(device)
	if err != nil {
		return nil, err
	}
	replies, err := request(unix.RTM_GETLINK, 0, linkHeader(link.Index, 0), nil)
	if err != nil {
		return nil, err
	}
	if len(replies) != 1 || len(replies[0].Data) < unix.SizeofIfInfomsg {
		return nil, fmt.Errorf("the kernel's answer about %s makes no sense: %v", device, replies)
	}
	return replies[0].Data, nil
}

// setSize sets the MTU of a device in bytes and its queue in packets.
func setSize(device string, mtu, queue int) error {
	link, err := net.InterfaceByName(device)
	if err != nil {
		return err
	}
	_, err = request(unix.RTM_NEWLINK, netlink.Acknowledge, linkHeader(link.Index, 0), func(ae *netlink.AttributeEncoder) {
		ae.Uint32(unix.IFLA_MTU, uint32(mtu))
		ae.Uint32(unix.IFLA_TXQLEN, uint32(queue))
	})
	return err
}

// txDropped counts the packets that a device did not take.
func txDropped(device string) (int64, error) {
	reply, err := getLink(device)
	if err != nil {
		return 0, err
	}
	attributes, err := netlink.NewAttributeDecoder(reply[unix.SizeofIfInfomsg:])
	if err != nil {
		return 0, err
	}
	for attributes.Next() {
		// struct rtnl_link_stats64: received and sent packets, bytes, errors, dropped
		if counts := attributes.Bytes(); attributes.Type() == unix.IFLA_STATS64 && len(counts) >= 64 {
			return int64(binary.NativeEndian.Uint64(counts[56:])), nil
		}
	}
	return 0, errors.Join(attributes.Err(), fmt.Errorf("the kernel tells no counters of %s", device))
}

// addVeth makes a veth pair, both ends down: one in this thread's namespace, the
// other in that of the peer.
func addVeth(name, peerName string, peer *namespace) error {
	_, err := request(unix.RTM_NEWLINK, create, linkHeader(0, 0), func(ae *netlink.AttributeEncoder) {
		ae.String(unix.IFLA_IFNAME, name)
		nested(ae, unix.IFLA_LINKINFO, func(info *netlink.AttributeEncoder) {
			info.String(unix.IFLA_INFO_KIND, "veth")
			nested(info, unix.IFLA_INFO_DATA, func(data *netlink.AttributeEncoder) {
				data.Do(vethInfoPeer, func() ([]byte, error) {
					other := netlink.NewAttributeEncoder()
					other.String(unix.IFLA_IFNAME, peerName)
					other.Uint32(unix.IFLA_NET_NS_FD, uint32(peer.fd))
					attributes, err := other.Encode()
					return append(linkHeader(0, 0), attributes...), err
				})
			})
		})
	})
	return err
}

func addAddr(device string, prefix netip.Prefix) error {
	link, err := net.InterfaceByName(device)
	if err != nil {
		return err
	}
	// struct ifaddrmsg: family, prefix length, flags, scope, device index
	header := []byte{family(prefix.Addr()), byte(prefix.Bits()), 0, unix.RT_SCOPE_UNIVERSE}
	header = binary.NativeEndian.AppendUint32(header, uint32(link.Index))
	_, err = request(unix.RTM_NEWADDR, create, header, func(ae *netlink.AttributeEncoder) {
		ae.Bytes(unix.IFA_LOCAL, prefix.Addr().AsSlice())
		ae.Bytes(unix.IFA_ADDRESS, prefix.Addr().AsSlice())
	})
	return err
}

func addRoute(destination netip.Prefix, router netip.Addr) error {
	// struct rtmsg: family, destination and source length, tos, table, protocol, scope, type, flags
	header := []byte{family(router), byte(destination.Bits()), 0, 0,
		unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST, 0, 0, 0, 0}
	_, err := request(unix.RTM_NEWROUTE, create, header, func(ae *netlink.AttributeEncoder) {
		ae.Bytes(unix.RTA_DST, destination.Addr().AsSlice())
		ae.Bytes(unix.RTA_GATEWAY, router.AsSlice())
	})
	return err
}

// linkHeader is a struct ifinfomsg; index 0 is that of a new device.
func linkHeader(index int, setFlags uint32) []byte {
	header := make([]byte, 4, unix.SizeofIfInfomsg) // family, padding, type
	header = binary.NativeEndian.AppendUint32(header, uint32(index))
	header = binary.NativeEndian.AppendUint32(header, setFlags) // flags
	return binary.NativeEndian.AppendUint32(header, setFlags)   // which of them to change
}

func family(addr netip.Addr) byte {
	if addr.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func nested(ae *netlink.AttributeEncoder, kind uint16, fill func(*netlink.AttributeEncoder)) {
	ae.Nested(kind, func(inner *netlink.AttributeEncoder) error {
		fill(inner)
		return nil
	})
}

// request asks the kernel something about the network of this thread's namespace.
func request(kind netlink.HeaderType, flags netlink.HeaderFlags, header []byte, fill func(*netlink.AttributeEncoder)) ([]netlink.Message, error) {
	attributes := netlink.NewAttributeEncoder()
	if fill != nil {
		fill(attributes)
	}
	encoded, err := attributes.Encode()
	if err != nil {
		return nil, err
	}
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, fmt.Errorf("open a route netlink socket: %w", err)
	}
	defer conn.Close()
	// The kernel then adds a sentence to its error number; without it the number must do.
	_ = conn.SetOption(netlink.ExtendedAcknowledge, true)
	return conn.Execute(netlink.Message{
		Header: netlink.Header{Type: kind, Flags: netlink.Request | flags},
		Data:   append(header, encoded...),
	})
}
