package sockdiag

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
)

// rawRequests asks raw_diag, or where there is none reads /proc/net/raw, which
// has no cookies.
func (q Query) rawRequests(d *decoder) []request {
	all := q.inetPair(d, fivetuple.Raw, unix.IPPROTO_RAW, rawEnds)
	for i, file := range []string{"raw", "raw6"} {
		all[i].proc = func(s *Socket, each func(*Socket) bool) (bool, error) {
			return readProc(s, file, func(fields []string) (bool, error) {
				*s = Socket{Protocol: fivetuple.Raw}
				err := d.procInet(s, fields)
				return rawEnds(s) && q.States.include(s.State), err
			}, each)
		}
	}
	return all
}

// rawEnds corrects what the kernel says: the local port of a raw socket is its
// protocol, and there are no ports.
func rawEnds(s *Socket) bool {
	s.Number = s.Local.Port()
	s.Local = netip.AddrPortFrom(s.Local.Addr(), 0)
	return true
}

// icmpRequests read the ping sockets, for which the kernel has no diagnostics.
// Their local port is the identifier of the echo requests.
func (q Query) icmpRequests(d *decoder) []request {
	read := func(file string, protocol uint16) request {
		return request{what: "icmp", proc: func(s *Socket, each func(*Socket) bool) (bool, error) {
			return readProc(s, file, func(fields []string) (bool, error) {
				*s = Socket{Protocol: fivetuple.ICMP, Number: protocol}
				err := d.procInet(s, fields)
				return q.States.include(s.State), err
			}, each)
		}}
	}
	return []request{read("icmp", unix.IPPROTO_ICMP), read("icmp6", unix.IPPROTO_ICMPV6)}
}
