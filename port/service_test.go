package port_test

import (
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/fivetuple/fivetuple/port"
)

// common are names that IANA's registry and Debian's /etc/services (netbase 6.4) agree on.
var common = []struct {
	port     uint16
	protocol string
	name     string
}{
	{7, "tcp", "echo"}, {7, "udp", "echo"}, {9, "udp", "discard"}, {13, "tcp", "daytime"}, {19, "udp", "chargen"},
	{20, "tcp", "ftp-data"}, {21, "tcp", "ftp"}, {22, "tcp", "ssh"}, {23, "tcp", "telnet"}, {25, "tcp", "smtp"},
	{53, "tcp", "domain"}, {53, "udp", "domain"}, {67, "udp", "bootps"}, {69, "udp", "tftp"}, {80, "tcp", "http"},
	{88, "tcp", "kerberos"}, {110, "tcp", "pop3"}, {111, "udp", "sunrpc"}, {119, "tcp", "nntp"}, {123, "udp", "ntp"},
	{161, "udp", "snmp"}, {179, "tcp", "bgp"}, {389, "tcp", "ldap"}, {443, "tcp", "https"}, {443, "udp", "https"},
	{465, "tcp", "submissions"}, {514, "udp", "syslog"}, {587, "tcp", "submission"}, {631, "tcp", "ipp"}, {636, "tcp", "ldaps"},
	{853, "tcp", "domain-s"}, {853, "udp", "domain-s"}, {873, "tcp", "rsync"}, {993, "tcp", "imaps"}, {995, "tcp", "pop3s"},
	{1194, "udp", "openvpn"}, {2049, "tcp", "nfs"}, {3306, "tcp", "mysql"}, {5060, "udp", "sip"}, {5353, "udp", "mdns"},
	{5432, "tcp", "postgresql"}, {5672, "tcp", "amqp"}, {8080, "tcp", "http-alt"},
}

// registered are names that only the registry has, or has differently.
var registered = []struct {
	port     uint16
	protocol string
	name     string
}{
	{1, "tcp", "tcpmux"}, {80, "sctp", "http"}, {9, "dccp", "discard"}, {143, "tcp", "imap"}, {1701, "udp", "l2tp"},
	{3478, "udp", "stun"}, {6000, "tcp", "x11"}, {6063, "udp", "x11"}, {6379, "tcp", "redis"}, {27017, "tcp", "mongodb"},
	{36412, "sctp", "s1-control"}, {49150, "tcp", "inspider"},
}

func TestNameIsThePrimaryOne(t *testing.T) {
	for _, test := range slices.Concat(common, registered) {
		if got := port.Name(test.port, test.protocol); got != test.name {
			t.Errorf("Name(%d, %s) = %q, want %q", test.port, test.protocol, got, test.name)
		}
	}
}

func TestLookupKnowsAliasesAndDescription(t *testing.T) {
	got, ok := port.Lookup(80, "TCP")
	want := port.Service{Name: "http", Port: 80, Protocol: "tcp", Description: "World Wide Web HTTP", Aliases: []string{"www", "www-http"}}
	if !ok || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, ok, want)
	}
}

func TestLookupFindsNothingWhereNothingIsAssigned(t *testing.T) {
	for _, test := range []struct {
		port     uint16
		protocol string
	}{
		{0, "tcp"}, {4, "tcp"}, {443, "dccp"}, {443, ""}, {443, "t"}, {443, "tls"}, {49152, "tcp"}, {65535, "udp"},
	} {
		if got, ok := port.Lookup(test.port, test.protocol); ok {
			t.Errorf("Lookup(%d, %q) = %+v, want nothing", test.port, test.protocol, got)
		}
		if got := port.Name(test.port, test.protocol); got != "" {
			t.Errorf("Name(%d, %q) = %q, want nothing", test.port, test.protocol, got)
		}
	}
}

func TestLookupNameIgnoresCaseAndTakesAliases(t *testing.T) {
	for _, test := range []struct {
		name, protocol string
		want           []string
	}{
		{"https", "", []string{"https 443/tcp", "https 443/udp", "https 443/sctp"}},
		{"HttpS", "Udp", []string{"https 443/udp"}},
		{"www", "tcp", []string{"http 80/tcp"}},
		{"whois++", "tcp", []string{"whoispp 63/tcp"}},
		{"ethernet-ip-2", "tcp", []string{"EtherNet-IP-2 44818/tcp"}},
		{"http-alt", "tcp", []string{"http-alt 591/tcp", "http-alt 8008/tcp", "http-alt 8080/tcp"}},
		{"discard", "", []string{"discard 9/tcp", "discard 9/udp", "discard 9/sctp", "discard 9/dccp"}},
		{"sua", "", []string{"sua 14001/tcp", "sua 14001/udp", "sua 14001/sctp"}},
		{"https", "dccp", nil},
		{"https", "tls", nil},
		{"http,www", "tcp", nil},
		{"htt", "tcp", nil},
		{"", "", nil},
	} {
		if got := written(port.LookupName(test.name, test.protocol)); !slices.Equal(got, test.want) {
			t.Errorf("LookupName(%q, %q) = %q, want %q", test.name, test.protocol, got, test.want)
		}
	}
}

func TestServicesListsAllProtocolsOfAPort(t *testing.T) {
	want := []string{"submissions 465/tcp", "igmpv3lite 465/udp"}
	if got := written(port.Services(465)); !slices.Equal(got, want) {
		t.Errorf("Services(465) = %q, want %q", got, want)
	}
	if got := port.Services(4); got != nil {
		t.Errorf("Services(4) = %v, want nothing", got)
	}
}

// Looks up every port there is, and a sample of the names found in that way.
func TestNamesAndPortsFindEachOther(t *testing.T) {
	byName := make(map[string][]port.Service)
	services := 0
	for p := range 65536 {
		for _, s := range port.Services(uint16(p)) {
			services++
			if s.Port != uint16(p) || s.Name != port.Name(s.Port, s.Protocol) {
				t.Fatalf("port %d has %+v", p, s)
			}
			for _, name := range append([]string{s.Name}, s.Aliases...) {
				name = strings.ToLower(name)
				byName[name] = append(byName[name], s)
			}
		}
	}
	if services < 11000 || len(byName) < 6000 {
		t.Errorf("%d services with %d names, want over 11,000 and 6,000 as in the registry", services, len(byName))
	}
	for i, name := range slices.Sorted(maps.Keys(byName)) {
		if i%13 != 0 { // each is a search of the whole registry, so a sample is taken
			continue
		}
		if got, want := port.LookupName(name, ""), byName[name]; !reflect.DeepEqual(got, want) {
			t.Errorf("LookupName(%q) = %+v, want %+v", name, got, want)
		}
	}
}

func TestWellKnownAreTheAssignedSystemPorts(t *testing.T) {
	for _, protocol := range append(port.Protocols(), "", "TCP") {
		var want []uint16
		for p := range uint16(1024) {
			if protocol == "" && len(port.Services(p)) > 0 || port.Name(p, protocol) != "" {
				want = append(want, p)
			}
		}
		if got := port.WellKnown(protocol); !slices.Equal(got, want) {
			t.Errorf("WellKnown(%q) = %v, want %v", protocol, got, want)
		}
	}
	tcp := port.WellKnown("tcp")
	for _, p := range []uint16{21, 22, 25, 53, 80, 443, 853, 993} {
		if !slices.Contains(tcp, p) {
			t.Errorf("WellKnown(tcp) lacks %d", p)
		}
	}
	if got := port.WellKnown("tls"); got != nil {
		t.Errorf("WellKnown(tls) = %v, want nothing", got)
	}
}

func TestNameAllocatesNothing(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() { port.Name(443, "tcp"); port.Name(65000, "udp") }); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

func written(services []port.Service) []string {
	var s []string
	for _, service := range services {
		s = append(s, service.Name+" "+address(service))
	}
	return s
}
