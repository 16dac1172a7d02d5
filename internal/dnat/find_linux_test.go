package dnat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple/internal/lab"
)

// nft loads rules in the calling thread's network namespace.
func nft(t *testing.T, rules string) {
	t.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v\n%s\ninstall it: apt-get install nftables", err, out)
	}
}

// summary is "in|out FAMILY TARGET [ONLY] [CONDITIONS]" for each rule.
func summary(rules []Rule) []string {
	all := []string{}
	for _, r := range rules {
		var hooks []string
		if r.Incoming {
			hooks = append(hooks, "in")
		}
		if r.Local {
			hooks = append(hooks, "out")
		}
		s := fmt.Sprintf("%s %d %s", strings.Join(hooks, "+"), r.Family, r.Target())
		if r.Only.IsValid() {
			s += " [" + r.Only.String() + "]"
		}
		if len(r.Conditions) > 0 {
			s += " (" + strings.Join(r.Conditions, ", ") + ")"
		}
		all = append(all, s)
	}
	return all
}

const base = `
table ip nat {
	chain pre { type nat hook prerouting priority -100; }
	chain out { type nat hook output priority -100; }
	chain other { }
	chain unused { tcp dport 8080 dnat to 10.9.9.9:9; }
	map ports { type inet_service : ipv4_addr; elements = { 8080 : 10.0.0.7 }; }
}
table ip6 n {
	chain pre { type nat hook prerouting priority -100; }
}
table inet n {
	chain pre { type nat hook prerouting priority -90; }
}
`

func TestRulesThatSendAPortElsewhereAreFound(t *testing.T) {
	tcp := func(n uint16) Port { return Port{TCP, n} }
	for _, c := range []struct {
		name, rules string
		port        Port
		want        []string
	}{
		{"none", "", tcp(8080), nil},
		{"dnat", "add rule ip nat pre tcp dport 8080 dnat to 10.0.0.2:80", tcp(8080), []string{"in 4 10.0.0.2:80"}},
		{"another port", "add rule ip nat pre tcp dport 8080 dnat to 10.0.0.2:80", tcp(8081), nil},
		{"another protocol", "add rule ip nat pre tcp dport 8080 dnat to 10.0.0.2:80", Port{UDP, 8080}, nil},
		{"udp", "add rule ip nat pre udp dport 53 dnat to 10.0.0.2", Port{UDP, 53}, []string{"in 4 10.0.0.2:53"}},
		{"redirect", "add rule ip nat out tcp dport 8080 redirect to :9000", tcp(8080), []string{"out 4 port 9000 of this machine"}},
		{"both hooks", "add rule ip nat other tcp dport 8080 dnat to 10.0.0.2:80\nadd rule ip nat pre jump other\nadd rule ip nat out goto other", tcp(8080), []string{"in+out 4 10.0.0.2:80"}},
		{"first of a range", "add rule ip nat pre tcp dport 8000-8080 redirect to :9000", tcp(8000), []string{"in 4 port 9000 of this machine"}},
		{"last of a range", "add rule ip nat pre tcp dport 8000-8080 redirect to :9000", tcp(8080), []string{"in 4 port 9000 of this machine"}},
		{"behind a range", "add rule ip nat pre tcp dport 8000-8079 redirect to :9000", tcp(8080), nil},
		{"not a port", "add rule ip nat pre tcp dport != 8080 redirect to :9000", tcp(8080), nil},
		{"not another port", "add rule ip nat pre tcp dport != 8081 redirect to :9000", tcp(8080), []string{"in 4 port 9000 of this machine"}},
		{"not a range", "add rule ip nat pre tcp dport != 8000-8080 redirect to :9000", tcp(8080), nil},
		{"in a set", "add rule ip nat pre tcp dport { 80, 8080 } redirect to :9000", tcp(8080), []string{"in 4 port 9000 of this machine"}},
		{"not in a set", "add rule ip nat pre tcp dport != { 80, 8080 } redirect to :9000", tcp(8080), nil},
		{"in a set of ranges", "add rule ip nat pre tcp dport { 80, 8000-8080 } redirect to :9000", tcp(8080), []string{"in 4 port 9000 of this machine"}},
		{"between ranges", "add rule ip nat pre tcp dport { 80, 8000-8080 } redirect to :9000", tcp(7999), nil},
		{"behind ranges", "add rule ip nat pre tcp dport { 80, 8000-8080 } redirect to :9000", tcp(8081), nil},
		{"two protocols", "add rule ip nat pre meta l4proto { tcp, udp } th dport 53 redirect to :5353", Port{UDP, 53}, []string{"in 4 port 5353 of this machine"}},
		{"a map of addresses", "add rule ip nat pre dnat to tcp dport map { 80 : 10.0.0.3, 8080 : 10.0.0.4 }", tcp(8080), []string{"in 4 10.0.0.4:8080"}},
		{"a map without the port", "add rule ip nat pre dnat to tcp dport map { 80 : 10.0.0.3 }", tcp(8080), nil},
		{"a named map", "add rule ip nat pre dnat to tcp dport map @ports", tcp(8080), []string{"in 4 10.0.0.7:8080"}},
		{"a map of addresses and ports", "add rule ip nat pre dnat to tcp dport map { 8080 : 10.0.0.4 . 80 }", tcp(8080), []string{"in 4 10.0.0.4:80"}},
		{"a map of ports", "add rule ip nat pre meta l4proto tcp redirect to :tcp dport map { 8080 : 9080 }", tcp(8080), []string{"in 4 port 9080 of this machine"}},
		{"a map by something else", "add rule ip nat pre meta l4proto tcp dnat to numgen random mod 2 map { 0 : 10.0.0.3, 1 : 10.0.0.4 }", tcp(8080), []string{"in 4 "}},
		{"a map of verdicts", "add rule ip nat other dnat to 10.0.0.2\nadd rule ip nat pre tcp dport vmap { 8080 : jump other }", tcp(8080), []string{"in 4 10.0.0.2:8080"}},
		{"another in a map of verdicts", "add rule ip nat other dnat to 10.0.0.2\nadd rule ip nat pre tcp dport vmap { 8081 : jump other }", tcp(8080), nil},
		{"a range of target ports", "add rule ip nat pre tcp dport 8080 dnat to 10.0.0.2:5000-5010", tcp(8080), []string{"in 4 10.0.0.2:5000-5010"}},
		{"for this machine", "add rule ip nat pre fib daddr type local tcp dport 8080 dnat to 10.0.0.2:80", tcp(8080), []string{"in 4 10.0.0.2:80"}},
		{"not for this machine", "add rule ip nat pre fib daddr type != local tcp dport 8080 dnat to 10.0.0.2:80", tcp(8080), nil},
		{"for one address", "add rule ip nat pre ip daddr 192.0.2.1 tcp dport 8080 dnat to 10.0.0.2:80", tcp(8080), []string{"in 4 10.0.0.2:80 [192.0.2.1/32]"}},
		{"for addresses", "add rule ip nat pre ip daddr 192.0.2.0/27 tcp dport 8080 dnat to 10.0.0.2:80", tcp(8080), []string{"in 4 10.0.0.2:80 [192.0.2.0/27]"}},
		{"conditions", `add rule ip nat pre iifname != "docker0" ip daddr != 127.0.0.0/8 ip saddr 192.0.2.1 tcp dport 8080 dnat to 10.0.0.2:80`, tcp(8080),
			[]string{"in 4 10.0.0.2:80 (not from device docker0, not to 127.0.0.0/8, further conditions)"}},
		{"a device", `add rule ip nat pre iifname "br-*" tcp dport 8080 dnat to 10.0.0.2:80`, tcp(8080), []string{"in 4 10.0.0.2:80 (from device br-*)"}},
		{"accepted before", "add rule ip nat pre tcp dport 8080 accept\nadd rule ip nat pre tcp dport 8080 dnat to 10.0.0.2:80", tcp(8080), nil},
		{"accepted before, perhaps", "add rule ip nat pre ip saddr 192.0.2.1 accept\nadd rule ip nat pre tcp dport 8080 dnat to 10.0.0.2:80", tcp(8080), []string{"in 4 10.0.0.2:80"}},
		{"the first of two", "add rule ip nat pre tcp dport 8080 dnat to 10.0.0.2:80\nadd rule ip nat pre tcp dport 8080 dnat to 10.0.0.3:80", tcp(8080), []string{"in 4 10.0.0.2:80"}},
		{"accepted before, for one address", "add rule ip nat pre ip daddr 192.0.2.1 accept\nadd rule ip nat pre tcp dport 8080 dnat to 10.0.0.2:80", tcp(8080), []string{"in 4 10.0.0.2:80"}},
		{"ranges side by side in a map", "add rule ip nat pre dnat to tcp dport map { 8000-8079 : 10.0.0.3, 8080-8089 : 10.0.0.4 }", tcp(8080), []string{"in 4 10.0.0.4:8080"}},
		{"returned before", "add rule ip nat other return\nadd rule ip nat other dnat to 10.0.0.2\nadd rule ip nat pre jump other\nadd rule ip nat pre tcp dport 8080 redirect to :1", tcp(8080), []string{"in 4 port 1 of this machine"}},
		{"ipv6", "add rule ip6 n pre tcp dport 8080 dnat to [fd00::2]:80", tcp(8080), []string{"in 6 [fd00::2]:80"}},
		{"ipv6, one address", "add rule ip6 n pre ip6 daddr fd00::1 tcp dport 8080 dnat to [fd00::2]:80", tcp(8080), []string{"in 6 [fd00::2]:80 [fd00::1/128]"}},
		{"inet, one family", "add rule inet n pre ip daddr 192.0.2.1 tcp dport 8080 dnat ip to 10.0.0.2:80", tcp(8080), []string{"in 4 10.0.0.2:80 [192.0.2.1/32]"}},
		{"inet, both families", "add rule inet n pre tcp dport 8080 redirect to :80", tcp(8080), []string{"in 0 port 80 of this machine"}},
		{"source nat", "add chain ip nat post { type nat hook postrouting priority 100; }\nadd rule ip nat post tcp dport 8080 snat to 10.0.0.2", tcp(8080), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			lab.NewHost(t, "host").Do(t, func() {
				nft(t, base+c.rules)
				got, err := Find(t.Context(), []Port{c.port})
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(append([]string{}, c.want...), summary(got)); diff != "" {
					t.Errorf("-want +got:\n%s", diff)
				}
			})
		})
	}
}

func TestAHostWithoutRulesHasNone(t *testing.T) {
	lab.NewHost(t, "host").Do(t, func() {
		got, err := Find(t.Context(), []Port{{TCP, 80}})
		if err != nil || len(got) != 0 {
			t.Errorf("got %v, %v, want none", got, err)
		}
		if Legacy() {
			t.Error("got rules of iptables-legacy, want none")
		}
	})
}

// The rules that iptables-nft writes, as Docker has it do:
//
//	-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
//	-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80
func TestRulesOfIptablesAreRead(t *testing.T) {
	address := func(a ...byte) []byte { return append(a, make([]byte, 16-len(a))...) }
	native := binary.NativeEndian
	tcpMatch := func(first, last uint16, inverted byte) []byte {
		b := native.AppendUint16(native.AppendUint16(nil, 0), 65535)
		b = native.AppendUint16(native.AppendUint16(b, first), last)
		return append(b, 0, 0, 0, inverted)
	}
	port80 := []byte{0, 80, 0, 80}
	range2 := slices.Concat(native.AppendUint32(nil, 3), address(172, 17, 0, 2), address(172, 17, 0, 2), port80, []byte{0, 0, 0, 0})
	range0 := slices.Concat(native.AppendUint32(native.AppendUint32(nil, 1), 2), make([]byte, 8), port80)
	local := append(native.AppendUint16(native.AppendUint16(nil, 0), 4), 0, 0, 0, 0)
	multiport := make([]byte, 48)
	multiport[0], multiport[1], multiport[32] = 1, 3, 1
	native.PutUint16(multiport[2:], 8000)
	native.PutUint16(multiport[4:], 8080)
	native.PutUint16(multiport[6:], 9000)
	for _, c := range []struct {
		name  string
		exprs [][]byte
		port  uint16
		want  []string
	}{
		{"DNAT", [][]byte{compat("match", "tcp", 0, tcpMatch(8080, 8080, 0)), compat("target", "DNAT", 2, range2)}, 8080, []string{"in 4 172.17.0.2:80"}},
		{"another port", [][]byte{compat("match", "tcp", 0, tcpMatch(8080, 8080, 0)), compat("target", "DNAT", 2, range2)}, 8081, nil},
		{"not the port", [][]byte{compat("match", "tcp", 0, tcpMatch(8080, 8080, 2)), compat("target", "DNAT", 2, range2)}, 8080, nil},
		{"REDIRECT", [][]byte{compat("match", "tcp", 0, tcpMatch(8000, 9000, 0)), compat("target", "REDIRECT", 0, range0)}, 8080, []string{"in 4 port 80 of this machine"}},
		{"to this machine", [][]byte{compat("match", "addrtype", 1, local), compat("match", "tcp", 0, tcpMatch(8080, 8080, 0)), compat("target", "DNAT", 2, range2)}, 8080, []string{"in 4 172.17.0.2:80"}},
		{"several ports", [][]byte{compat("match", "multiport", 1, multiport), compat("target", "DNAT", 2, range2)}, 8040, []string{"in 4 172.17.0.2:80"}},
		{"the last of several ports", [][]byte{compat("match", "multiport", 1, multiport), compat("target", "DNAT", 2, range2)}, 9000, []string{"in 4 172.17.0.2:80"}},
		{"none of several ports", [][]byte{compat("match", "multiport", 1, multiport), compat("target", "DNAT", 2, range2)}, 8081, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			lab.NewHost(t, "host").Do(t, func() {
				nft(t, base)
				addRule(t, "nat", "pre", c.exprs)
				got, err := Find(t.Context(), []Port{{TCP, c.port}})
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(append([]string{}, c.want...), summary(got)); diff != "" {
					t.Errorf("-want +got:\n%s", diff)
				}
			})
		})
	}
}

// compat makes an expression of a match or target of x_tables.
func compat(kind, name string, revision uint32, info []byte) []byte {
	return marshal([]netlink.Attribute{
		{Type: attrExpressionName, Data: append([]byte(kind), 0)},
		{Type: netlink.Nested | attrExpressionData, Data: marshal([]netlink.Attribute{
			{Type: 1, Data: append([]byte(name), 0)}, {Type: 2, Data: binary.BigEndian.AppendUint32(nil, revision)}, {Type: 3, Data: info},
		})},
	})
}

func marshal(a []netlink.Attribute) []byte {
	b, err := netlink.MarshalAttributes(a)
	if err != nil {
		panic(err)
	}
	return b
}

// addRule adds a rule for TCP as iptables-nft does: a batch of messages.
func addRule(t *testing.T, table, chain string, exprs [][]byte) {
	t.Helper()
	var list []netlink.Attribute
	for _, e := range exprs {
		list = append(list, netlink.Attribute{Type: netlink.Nested | attrListElement, Data: e})
	}
	// What the rule is for, which the matches are checked against (NFTA_RULE_COMPAT).
	tcp := marshal([]netlink.Attribute{{Type: 1, Data: binary.BigEndian.AppendUint32(nil, TCP)}, {Type: 2, Data: make([]byte, 4)}})
	body := marshal([]netlink.Attribute{
		{Type: unix.NFTA_RULE_TABLE, Data: append([]byte(table), 0)},
		{Type: unix.NFTA_RULE_CHAIN, Data: append([]byte(chain), 0)},
		{Type: netlink.Nested | unix.NFTA_RULE_EXPRESSIONS, Data: marshal(list)},
		{Type: netlink.Nested | 5, Data: tcp},
	})
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetOption(netlink.ExtendedAcknowledge, true)
	message := func(kind netlink.HeaderType, flags netlink.HeaderFlags, data []byte) netlink.Message {
		return netlink.Message{Header: netlink.Header{Type: kind, Flags: netlink.Request | flags}, Data: data}
	}
	batch := []byte{0, 0, 0, unix.NFNL_SUBSYS_NFTABLES}
	sent, err := c.SendMessages([]netlink.Message{
		message(0x10, 0, batch), // NFNL_MSG_BATCH_BEGIN
		message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWRULE, netlink.Create|netlink.Append|netlink.Acknowledge, append([]byte{familyIP, 0, 0, 0}, body...)),
		message(0x11, 0, batch),
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Receive(); err != nil {
		t.Fatalf("add a rule (%d messages): %v", len(sent), err)
	}
}

func TestWithoutTheRightTheErrorSaysSo(t *testing.T) {
	runtime.LockOSThread() // and never unlocked: the thread ends with the test
	var none [2]unix.CapUserData
	if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
		t.Fatal(err)
	}
	_, err := Find(t.Context(), []Port{{TCP, 80}})
	if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("got %v, want a permission error that names CAP_NET_ADMIN", err)
	}
}
