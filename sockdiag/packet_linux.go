package sockdiag

import (
	"encoding/binary"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
)

// Sizes and numbers in include/uapi/linux/packet_diag.h, all in the byte order
// of the machine.
const (
	packetRequestSize = 20 // struct packet_diag_req
	packetMessageSize = 16 // struct packet_diag_msg

	showPacketInfo   = 0x01 // PACKET_SHOW_INFO, with the uid
	showPacketMemory = 0x10 // PACKET_SHOW_MEMINFO

	packetDiagInfo   = 0 // PACKET_DIAG_INFO, struct packet_diag_info: __u32 interface index first
	packetDiagUID    = 5 // PACKET_DIAG_UID, __u32
	packetDiagMemory = 6 // PACKET_DIAG_MEMINFO, __u32 each
)

// packetRequest asks packet_diag, or where there is none reads
// /proc/net/packet, which has no cookies.
func (q Query) packetRequest(d *decoder) request {
	b := make([]byte, packetRequestSize)
	b[0] = unix.AF_PACKET
	binary.NativeEndian.PutUint32(b[8:], showPacketInfo|showPacketMemory)
	return request{
		what: "packet", module: "af_packet_diag", kind: unix.SOCK_DIAG_BY_FAMILY, body: b,
		decode: func(s *Socket, b []byte) (bool, error) {
			*s = Socket{}
			err := d.packet(s, b)
			return q.States.include(s.State), err
		},
		proc: func(s *Socket, each func(*Socket) bool) (bool, error) {
			return readProc(s, "packet", func(fields []string) (bool, error) {
				*s = Socket{}
				err := d.procPacket(s, fields)
				return q.States.include(s.State), err
			}, each)
		},
	}
}

// packet fills s from a struct packet_diag_msg and its attributes. The queues
// are of memory, as those of UDP.
func (d *decoder) packet(s *Socket, b []byte) error {
	if len(b) < packetMessageSize {
		return truncated("packet_diag message", len(b), packetMessageSize)
	}
	s.Protocol, s.State = fivetuple.Packet, fivetuple.StateClose
	s.Number = binary.NativeEndian.Uint16(b[2:])
	s.Inode = binary.NativeEndian.Uint32(b[4:])
	s.Cookie = cookie(b[8:])
	for b = b[packetMessageSize:]; len(b) > 0; {
		kind, value, rest, err := nextAttribute(b)
		if err != nil {
			return err
		}
		if (kind == packetDiagInfo || kind == packetDiagUID) && len(value) < 4 {
			return truncated(fmt.Sprintf("packet_diag attribute %d", kind), len(value), 4)
		}
		switch kind {
		case packetDiagInfo:
			s.Interface = binary.NativeEndian.Uint32(value)
		case packetDiagUID:
			s.UID = binary.NativeEndian.Uint32(value)
		case packetDiagMemory:
			d.memory(s, value)
		}
		b = rest
	}
	s.Name = d.packetName(s)
	return nil
}

// memory fills the queues too, of a socket that has no others.
func (d *decoder) memory(s *Socket, value []byte) {
	m := decodeMemory(value)
	s.RecvQueue, s.SendQueue = m.RecvAlloc, m.SendAlloc
	if d.details&WithMemory != 0 {
		s.Memory = m
	}
}

// packetName is the EtherType and the interface: "arp:eth0", "*:*".
func (d *decoder) packetName(s *Socket) string {
	device := "*"
	if s.Interface != 0 {
		device = d.zones.name(s.Interface)
	}
	return etherType(s.Number) + ":" + device
}

// etherType names the protocols that packet sockets are opened for most.
func etherType(n uint16) string {
	switch n {
	case unix.ETH_P_ALL:
		return "*"
	case unix.ETH_P_IP:
		return "ip"
	case unix.ETH_P_ARP:
		return "arp"
	case unix.ETH_P_IPV6:
		return "ipv6"
	case unix.ETH_P_8021Q:
		return "802.1Q"
	case unix.ETH_P_PAE:
		return "802.1X"
	case unix.ETH_P_LLDP:
		return "lldp"
	}
	return "0x" + strconv.FormatUint(uint64(n), 16)
}
