package sockopt

import "math"

// udpOptions is level IPPROTO_UDP, of udp(7).
var udpOptions = []Option{
	{Name: "udp-cork", Constant: "UDP_CORK", Level: levelUDP, Number: 1, Sockets: UDP, Kind: Bool, Since: "2.5.44", Man: "udp(7)",
		Doc: "gather everything written into one datagram, sent when switched off"},
	{Name: "udp-encap", Constant: "UDP_ENCAP", Aliases: []string{"encap"}, Level: levelUDP, Number: 100, Sockets: UDP, Kind: Int, Values: udpEncaps, Since: "2.5.67", Man: "include/uapi/linux/udp.h",
		Doc: "the datagrams carry another protocol, which the kernel takes out; espinudp and l2tpinudp can be set, the others it sets itself"},
	{Name: "no-check6-tx", Constant: "UDP_NO_CHECK6_TX", Level: levelUDP, Number: 101, Sockets: UDP, Kind: Bool, Since: "3.16", Man: "include/uapi/linux/udp.h",
		Doc: "send UDP over IPv6 without a checksum (RFC 6935)"},
	{Name: "no-check6-rx", Constant: "UDP_NO_CHECK6_RX", Level: levelUDP, Number: 102, Sockets: UDP, Kind: Bool, Since: "3.16", Man: "include/uapi/linux/udp.h",
		Doc: "accept UDP over IPv6 without a checksum (RFC 6935)"},
	{Name: "segment", Constant: "UDP_SEGMENT", Aliases: []string{"gso"}, Level: levelUDP, Number: 103, Sockets: UDP, Kind: Bytes, Unit: "bytes", Max: math.MaxUint16, Since: "4.18", Man: "udp(7)",
		Doc: "cut each send into datagrams of this size late, in one pass through the stack (GSO); 0 for off"},
	{Name: "gro", Constant: "UDP_GRO", Level: levelUDP, Number: 104, Sockets: UDP, Kind: Bool, Since: "5.0", Man: "udp(7)",
		Doc: "receive several datagrams of one flow as one, with their size as a control message"},
}

var udpEncaps = []Named{{"none", 0}, {"espinudp-non-ike", 1}, {"espinudp", 2}, {"l2tpinudp", 3}, {"gtp0", 4}, {"gtp1u", 5}, {"rxrpc", 6}, {"espintcp", 7}}
