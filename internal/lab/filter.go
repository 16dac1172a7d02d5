package lab

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

// Drop makes the host swallow what arrives for these ports, from any address, so
// that a connection to them times out. proto is "tcp" or "udp".
func (h *Host) Drop(t testing.TB, proto string, ports ...uint16) {
	t.Helper()
	h.filter(t, proto, ports, "drop")
}

// Reject makes the host refuse what arrives for these ports, whoever listens: a
// reset for proto "tcp", an ICMP port unreachable for "udp".
func (h *Host) Reject(t testing.TB, proto string, ports ...uint16) {
	t.Helper()
	verdict := "reject with icmpx port-unreachable"
	if proto == "tcp" {
		verdict = "reject with tcp reset"
	}
	h.filter(t, proto, ports, verdict)
}

func (h *Host) filter(t testing.TB, proto string, ports []uint16, verdict string) {
	t.Helper()
	set := strings.ReplaceAll(strings.Trim(fmt.Sprint(ports), "[]"), " ", ", ")
	h.must(t, "filter "+proto+" ports "+set, func() error {
		nft := exec.Command("nft", "-f", "-")
		// Tables and chains that exist are left as they are; rules are tried in the order they came.
		nft.Stdin = strings.NewReader(fmt.Sprintf(
			"add table inet lab\nadd chain inet lab input { type filter hook input priority filter; }\n"+
				"add rule inet lab input %s dport { %s } %s\n", proto, set, verdict))
		if out, err := nft.CombinedOutput(); err != nil {
			return withAdvice(nft, fmt.Errorf("%w %s", err, out))
		}
		return nil
	})
}
