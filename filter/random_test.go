package filter

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// RandomFilter writes a random filter of a few terms, about ports and
// addresses that the table is likely to have.
func RandomFilter(r *rand.Rand, ports []uint16, addrs []string) string {
	return randomNode(r, ports, addrs, 3)
}

func randomNode(r *rand.Rand, ports []uint16, addrs []string, depth int) string {
	if depth == 0 || r.IntN(3) == 0 {
		return randomTerm(r, ports, addrs)
	}
	switch r.IntN(4) {
	case 0:
		return "not (" + randomNode(r, ports, addrs, depth-1) + ")"
	default:
		kids := make([]string, 2+r.IntN(2))
		for i := range kids {
			kids[i] = "(" + randomNode(r, ports, addrs, depth-1) + ")"
		}
		return strings.Join(kids, pick(r, " and ", " or ", " "))
	}
}

func randomTerm(r *rand.Rand, ports []uint16, addrs []string) string {
	port := func() int {
		switch r.IntN(6) {
		case 0:
			return int(pick(r, uint16(0), 1, 65535, 1024))
		case 1:
			return min(65535, int(ports[r.IntN(len(ports))])+1)
		}
		return int(ports[r.IntN(len(ports))])
	}
	ports2 := func() string {
		if r.IntN(3) > 0 {
			return fmt.Sprint(port())
		}
		a, b := port(), port()
		return fmt.Sprintf("%d-%d,%d", min(a, b), max(a, b), port())
	}
	addr := func() string {
		a := addrs[r.IntN(len(addrs))]
		bits := 32
		if strings.Contains(a, ":") {
			bits = 128
		}
		if strings.HasPrefix(a, "fe80") && r.IntN(2) == 0 {
			return a + pick(r, "%lo", "%eth9")
		}
		if r.IntN(2) == 0 {
			a += fmt.Sprintf("/%d", pick(r, 0, 1, 8, bits-1, bits, r.IntN(bits+1)))
		}
		return a
	}
	relation := func() string { return pick(r, "=", "!=", "<", "<=", ">", ">=") }
	switch r.IntN(18) {
	case 0:
		return pick(r, "tcp", "udp", "ip", "ip6", "unix", "raw", "mptcp", "sctp", "packet")
	case 1, 2:
		return fmt.Sprintf("%s %s %d", pick(r, "sport", "dport", "port", "src and dst port"), relation(), port())
	case 3, 4:
		return fmt.Sprintf("%s %s %s", pick(r, "sport", "dport", "port", "src and dst port"), pick(r, "=", "!="), ports2())
	case 5, 6, 7:
		return fmt.Sprintf("%s %s %s", pick(r, "src", "dst", "host", "src and dst host"), pick(r, "=", "!="), addr())
	case 8, 9:
		return pick(r, "state ", "exclude ", "state != ") + pick(r, "listen", "established", "time-wait,close", "syn-recv", "connected", "bucket", "close-wait", "all", "syn-sent,established")
	case 10, 11:
		return fmt.Sprintf("%s:%d", pick(r, "tcp://", "udp://", "", "tcp6://"), port())
	case 12, 13:
		a := addrs[r.IntN(len(addrs))]
		if strings.Contains(a, ":") {
			a = "[" + a + "]"
		}
		return fmt.Sprintf("%s%s:%d", pick(r, "tcp://", "udp://", ""), a, port())
	case 14:
		return pick(r, "dev lo", "dev != lo", "dev lo,nosuch", "dev 1")
	case 15:
		return pick(r, "mark 7", "mark != 7", "mark 1/1", "mark 0")
	case 16:
		return pick(r, "recvq > 0", "user 0", "inode > 0", "not rtt > 1us")
	}
	return pick(r, "path /run/a.sock", "@name", "sendq = 0", "cgroup /", "cgroup != /")
}

func pick[T any](r *rand.Rand, choices ...T) T { return choices[r.IntN(len(choices))] }
