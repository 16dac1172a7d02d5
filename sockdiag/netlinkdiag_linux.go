package sockdiag

import (
	"encoding/binary"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
)

// Sizes and numbers in include/uapi/linux/netlink_diag.h, all in the byte
// order of the machine.
const (
	netlinkRequestSize = 20 // struct netlink_diag_req
	netlinkMessageSize = 28 // struct netlink_diag_msg

	allNetlinkFamilies = 0xff // NDIAG_PROTO_ALL
	showNetlinkMemory  = 0x01 // NDIAG_SHOW_MEMINFO

	netlinkDiagMemory = 0 // NETLINK_DIAG_MEMINFO, __u32 each
)

func (q Query) netlinkRequest(d *decoder) request {
	b := make([]byte, netlinkRequestSize)
	b[0], b[1] = unix.AF_NETLINK, allNetlinkFamilies
	binary.NativeEndian.PutUint32(b[8:], showNetlinkMemory)
	seen := map[uint64]bool{} // Linux since 4.6 lists the members of groups twice
	return request{
		what: "netlink", module: "netlink_diag", kind: unix.SOCK_DIAG_BY_FAMILY, body: b,
		decode: func(s *Socket, b []byte) (bool, error) {
			*s = Socket{}
			err := d.netlink(s, b)
			keep := !seen[s.Cookie] && q.States.include(s.State)
			seen[s.Cookie] = true
			return keep, err
		},
	}
}

// netlink fills s from a struct netlink_diag_msg and its attributes.
func (d *decoder) netlink(s *Socket, b []byte) error {
	if len(b) < netlinkMessageSize {
		return truncated("netlink_diag message", len(b), netlinkMessageSize)
	}
	s.Protocol, s.State = fivetuple.Netlink, fivetuple.StateClose
	if b[3] == 1 { // NETLINK_CONNECTED, net/netlink/af_netlink.h
		s.State = fivetuple.StateEstablished
	}
	s.Number = uint16(b[2])
	s.Name = netlinkName(s.Number, binary.NativeEndian.Uint32(b[4:]))
	s.Inode = binary.NativeEndian.Uint32(b[16:])
	s.Cookie = cookie(b[20:])
	for b = b[netlinkMessageSize:]; len(b) > 0; {
		kind, value, rest, err := nextAttribute(b)
		if err != nil {
			return err
		}
		if kind == netlinkDiagMemory {
			d.memory(s, value)
		}
		b = rest
	}
	return nil
}

// netlinkFamilies are named in netlink(7).
var netlinkFamilies = [...]string{
	unix.NETLINK_ROUTE: "route", unix.NETLINK_UNUSED: "unused", unix.NETLINK_USERSOCK: "usersock", unix.NETLINK_FIREWALL: "firewall",
	unix.NETLINK_SOCK_DIAG: "sock_diag", unix.NETLINK_NFLOG: "nflog", unix.NETLINK_XFRM: "xfrm", unix.NETLINK_SELINUX: "selinux",
	unix.NETLINK_ISCSI: "iscsi", unix.NETLINK_AUDIT: "audit", unix.NETLINK_FIB_LOOKUP: "fib_lookup", unix.NETLINK_CONNECTOR: "connector",
	unix.NETLINK_NETFILTER: "netfilter", unix.NETLINK_IP6_FW: "ip6_fw", unix.NETLINK_DNRTMSG: "dnrtmsg",
	unix.NETLINK_KOBJECT_UEVENT: "uevent", unix.NETLINK_GENERIC: "generic", unix.NETLINK_SCSITRANSPORT: "scsitransport",
	unix.NETLINK_ECRYPTFS: "ecryptfs", unix.NETLINK_RDMA: "rdma", unix.NETLINK_CRYPTO: "crypto", unix.NETLINK_SMC: "smc",
}

// netlinkName is the family and the port id, which is 0 for the kernel's own.
func netlinkName(family uint16, port uint32) string {
	name := strconv.Itoa(int(family))
	if int(family) < len(netlinkFamilies) && netlinkFamilies[family] != "" {
		name = netlinkFamilies[family]
	}
	if port == 0 {
		return name + ":kernel"
	}
	return name + ":" + strconv.FormatUint(uint64(port), 10)
}
