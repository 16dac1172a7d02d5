package dnat

import (
	"encoding/binary"
	"net/netip"
)

// What iptables-nft writes is made of the matches and targets of x_tables, as the
// structs of include/uapi/linux/netfilter. Their numbers are in the order of the machine.

// xtMatch evaluates a match; one that is not known is a condition.
func (r *rule) xtMatch(name string, revision uint32, info []byte) {
	port := r.port.Number
	within := func(b []byte) bool {
		return port >= binary.NativeEndian.Uint16(b) && port <= binary.NativeEndian.Uint16(b[2:])
	}
	switch {
	case name == "comment":
	case (name == "tcp" || name == "udp") && len(info) >= 9:
		// struct xt_tcp, xt_udp: source ports, destination ports, and for TCP option and flags
		inverted := info[8]
		if name == "tcp" {
			if len(info) < 12 {
				r.path.when("further conditions")
				return
			}
			inverted = info[11]
			if info[8] != 0 || info[9] != 0 {
				r.path.when("further conditions")
			}
		}
		const sourceInverted, destinationInverted = 1, 2 // XT_TCP_INV_*
		if binary.NativeEndian.Uint16(info) != 0 || binary.NativeEndian.Uint16(info[2:]) != 65535 || inverted&sourceInverted != 0 {
			r.path.when("further conditions")
		}
		is := map[string]uint8{"tcp": TCP, "udp": UDP}[name] == r.port.Protocol
		r.fails = !is || within(info[4:]) == (inverted&destinationInverted != 0)
	case name == "multiport" && revision == 1 && len(info) >= 48:
		// struct xt_multiport_v1: which ports, how many, 15 ports, 15 flags "to the next one", inverted
		const destination = 1
		if info[0] != destination {
			r.path.when("further conditions")
			return
		}
		in := false
		for i := 0; i < min(int(info[1]), 15); i++ {
			first := binary.NativeEndian.Uint16(info[2+2*i:])
			last := first
			if info[32+i] != 0 && i+1 < 15 {
				i++
				last = binary.NativeEndian.Uint16(info[2+2*i:])
			}
			in = in || port >= first && port <= last
		}
		r.fails = in == (info[47] != 0)
	case name == "addrtype" && len(info) >= 8 && binary.NativeEndian.Uint16(info) == 0:
		// struct xt_addrtype_info_v1: kinds of source, kinds of destination, flags
		const local, destinationInverted = 1 << 2, 2 // RTN_LOCAL
		is := binary.NativeEndian.Uint16(info[2:])&local != 0
		r.fails = is == (binary.NativeEndian.Uint32(info[4:])&destinationInverted != 0)
	default:
		r.path.when("further conditions")
	}
}

// Flags of struct nf_nat_range (NF_NAT_RANGE_*).
const (
	rangeAddresses = 1
	rangePorts     = 2
)

// xtTarget evaluates a target.
func (r *rule) xtTarget(name string, revision uint32, info []byte) {
	switch name {
	case "DNAT", "REDIRECT":
	case "ACCEPT":
		r.verdicts = append(r.verdicts, verdict{code: verdictAccept})
		return
	default: // LOG, MARK, ...
		return
	}
	r.sends = true
	v6 := r.chain.family == familyIP6
	if name == "DNAT" && revision == 0 || name == "REDIRECT" && !v6 {
		// struct nf_nat_ipv4_multi_range_compat: how many, flags, first and last address, first and last port
		if len(info) < 20 {
			r.unread = true
			return
		}
		r.target(binary.NativeEndian.Uint32(info[4:]), addressOf(info[8:], false), info[16:])
		return
	}
	// struct nf_nat_range, nf_nat_range2: flags, first and last address of 16 bytes, first and last port
	if len(info) < 40 {
		r.unread = true
		return
	}
	r.target(binary.NativeEndian.Uint32(info), addressOf(info[4:], v6), info[36:])
}

func (r *rule) target(flags uint32, to netip.Addr, ports []byte) {
	if flags&rangeAddresses != 0 {
		r.to = to
	}
	if flags&rangePorts != 0 {
		r.first, r.last = binary.BigEndian.Uint16(ports), binary.BigEndian.Uint16(ports[2:])
	}
}
