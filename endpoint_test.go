package fivetuple

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
)

func port(n uint16) PortRange { return PortRange{First: n, Last: n} }

func TestParseEndpointReadsEveryFormOfTheGrammar(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want Endpoint
		out  string // what it prints as, if not in
	}{
		{"8080", Endpoint{Network: TCP, Ports: port(8080)}, ""},
		{"0", Endpoint{Network: TCP}, ""},
		{"8000-8090", Endpoint{Network: TCP, Ports: PortRange{8000, 8090}}, ""},
		{":8080", Endpoint{Network: TCP, Host: "*", Ports: port(8080)}, "*:8080"},
		{"*:8080", Endpoint{Network: TCP, Host: "*", Ports: port(8080)}, ""},
		{"tcp://8080", Endpoint{Network: TCP, Ports: port(8080)}, "8080"},
		{"localhost:80", Endpoint{Network: TCP, Host: "localhost", Ports: port(80)}, ""},
		{"example.com:https", Endpoint{Network: TCP, Host: "example.com", Service: "https"}, ""},
		{":https", Endpoint{Network: TCP, Host: "*", Service: "https"}, "*:https"},
		{":sql*net", Endpoint{Network: TCP, Host: "*", Service: "sql*net"}, "*:sql*net"},
		{":HTTP-Alt", Endpoint{Network: TCP, Host: "*", Service: "http-alt"}, "*:http-alt"},
		{"127.0.0.1:1-65535", Endpoint{Network: TCP, Host: "127.0.0.1", Ports: PortRange{1, 65535}}, ""},
		{"[::1]:80", Endpoint{Network: TCP, Host: "::1", Ports: port(80)}, ""},
		{"[0:0::1]:80", Endpoint{Network: TCP, Host: "::1", Ports: port(80)}, "[::1]:80"},
		{"[fe80::1%eth0]:80", Endpoint{Network: TCP, Host: "fe80::1", Zone: "eth0", Ports: port(80)}, ""},
		{"tcp4://127.0.0.1:80", Endpoint{Network: TCP4, Host: "127.0.0.1", Ports: port(80)}, ""},
		{"tcp6://80", Endpoint{Network: TCP6, Ports: port(80)}, ""},
		{"UDP://:53", Endpoint{Network: UDP, Host: "*", Ports: port(53)}, "udp://*:53"},
		{"udp://239.1.1.1:5000", Endpoint{Network: UDP, Host: "239.1.1.1", Ports: port(5000)}, ""},
		{"udp://239.1.1.1%eth0:5000", Endpoint{Network: UDP, Host: "239.1.1.1", Zone: "eth0", Ports: port(5000)}, ""},
		{"udp://[ff02::1%eth0]:5000", Endpoint{Network: UDP, Host: "ff02::1", Zone: "eth0", Ports: port(5000)}, ""},
		{"udp://*%eth0:68", Endpoint{Network: UDP, Host: "*", Zone: "eth0", Ports: port(68)}, ""},
		{"udp://255.255.255.255:9", Endpoint{Network: UDP, Host: "255.255.255.255", Ports: port(9)}, ""},
		{"tls://example.com:443", Endpoint{Network: TLS, Host: "example.com", Ports: port(443)}, ""},
		{"unix:///run/a.sock", Endpoint{Network: Unix, Path: "/run/a.sock"}, ""},
		{"unix://a b%c:1.sock", Endpoint{Network: Unix, Path: "a b%c:1.sock"}, ""},
		{"unix://@name", Endpoint{Network: Unix, Path: "@name"}, ""},
		{"unixgram:///tmp/d", Endpoint{Network: Unixgram, Path: "/tmp/d"}, ""},
		{"seqpacket://@q", Endpoint{Network: Seqpacket, Path: "@q"}, ""},
		{"vsock://3:4294967295", Endpoint{Network: Vsock, CID: 3, VPort: math.MaxUint32}, ""},
		{"vsock://host:22", Endpoint{Network: Vsock, CID: 2, VPort: 22}, "vsock://2:22"},
		{"vsock://*:22", Endpoint{Network: Vsock, CID: math.MaxUint32, VPort: 22}, ""},
		{"-", Endpoint{Network: Stdio}, ""},
	} {
		got, err := ParseEndpoint(tt.in)
		if err != nil {
			t.Errorf("ParseEndpoint(%q): %v", tt.in, err)
			continue
		}
		if got != tt.want {
			t.Errorf("ParseEndpoint(%q) = %+v, want %+v", tt.in, got, tt.want)
		}
		out := tt.out
		if out == "" {
			out = tt.in
		}
		if got.String() != out {
			t.Errorf("ParseEndpoint(%q) prints %q, want %q", tt.in, got, out)
		}
	}
}

func TestParseEndpointSaysWhatIsWrong(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"", "is empty"},
		{"localhost", "has no port: write localhost:PORT"},
		{"localhost:", "no port after the colon"},
		{"65536", "out of range 0-65535"},
		{"127.0.0.1:99999", "out of range 0-65535"},
		{"127.0.0.1:-1", "not a port number"},
		{"9000-8000", "runs backwards"},
		{"8000-", "not a port number"},
		{"::1", "brackets"},
		{"::1:80", "brackets"},
		{"[::1", "no closing ]"},
		{"[::1]", "no port after ]"},
		{"[]:80", "no address between"},
		{"[nonsense]:80", "not an IPv6 address"},
		{"[*]:80", "not an IPv6 address"},
		{"256.1.1.1:80", "neither an IPv4 address"},
		{"1.2.3:80", "neither an IPv4 address"},
		{"a b:80", "contains a space"},
		{" 8080", "contains a space"},
		{"a!b:80", "cannot stand in a host name"},
		{"-1", "not a port number, 0-65535"},
		{"host:-ab", "not a port number"},
		{"ex..ample:80", "not a host name"},
		{strings.Repeat("a", 254) + ":80", "limit is 253"},
		{"localhost%eth0:80", "goes after an IP address"},
		{"127.0.0.1%:80", "not an interface name"},
		{"[fe80::1%abcdefghijklmnop]:80", "not an interface name"},
		{"tcp4://[::1]:80", "not an IPv4 address"},
		{"tcp6://127.0.0.1:80", "not an IPv6 address"},
		{"http://example.com:80", "unknown scheme"},
		{"-://x", "unknown scheme"},
		{"unix://", "names no path"},
		{"unix://@", "names no path"},
		{"unix:///" + strings.Repeat("a", 107), "at most 107"},
		{"unix:///a\nb", "control character"},
		{"localhost:80\x00", "control character"},
		{"unix:///\xff", "not UTF-8"},
		{"vsock://3", "vsock://CID:PORT"},
		{"vsock://x:1", "context id"},
		{"vsock://3:4294967296", "vsock port"},
	} {
		_, err := ParseEndpoint(tt.in)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("ParseEndpoint(%q): got error %v, want one with %q", tt.in, err, tt.want)
		}
	}
}

func TestUnixPathOf107BytesIsAccepted(t *testing.T) {
	path := "/" + strings.Repeat("a", 106)
	if _, err := ParseEndpoint("unix://" + path); err != nil {
		t.Error(err)
	}
}

func TestEndpointGoesThroughJSON(t *testing.T) {
	type doc struct{ Listen Endpoint }
	in := doc{Endpoint{Network: UDP, Host: "ff02::1", Zone: "eth0", Ports: port(5000)}}
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"Listen":"udp://[ff02::1%eth0]:5000"}`; string(b) != want {
		t.Errorf("got %s, want %s", b, want)
	}
	var out doc
	if err := json.Unmarshal(b, &out); err != nil || out != in {
		t.Errorf("got %+v, %v, want %+v", out, err, in)
	}
}

func TestListenAndDialArgs(t *testing.T) {
	for _, tt := range []struct{ in, listen, dial string }{
		{"8080", "tcp 127.0.0.1:8080", "tcp localhost:8080"},
		{":8080", "tcp :8080", "tcp localhost:8080"},
		{"tcp4://*:8080", "tcp4 0.0.0.0:8080", "tcp4 localhost:8080"},
		{"tcp6://8080", "tcp6 [::1]:8080", "tcp6 localhost:8080"},
		{"udp://[fe80::1%eth0]:9", "udp [fe80::1%eth0]:9", "udp [fe80::1%eth0]:9"},
		{"udp://239.1.1.1%eth0:9", "udp4 239.1.1.1:9", "udp4 239.1.1.1:9"},
		{"0.0.0.0:80", "tcp4 0.0.0.0:80", "tcp4 0.0.0.0:80"},
		{"[::]:80", "tcp [::]:80", "tcp [::]:80"},
		{"tls://example.com:443", "tcp example.com:443", "tcp example.com:443"},
		{"unix://@a", "unix @a", "unix @a"},
		{"seqpacket:///a", "unixpacket /a", "unixpacket /a"},
		{"0", "tcp 127.0.0.1:0", ""},
		{":https", "", ""},
		{"8000-8001", "", ""},
		{"-", "", ""},
		{"vsock://2:1", "", ""},
	} {
		e, err := ParseEndpoint(tt.in)
		if err != nil {
			t.Fatal(err)
		}
		if got := args(e.ListenArgs()); got != tt.listen {
			t.Errorf("%q listens on %q, want %q", tt.in, got, tt.listen)
		}
		if got := args(e.DialArgs()); got != tt.dial {
			t.Errorf("%q dials %q, want %q", tt.in, got, tt.dial)
		}
	}
}

func args(network, address string, err error) string {
	if err != nil {
		return ""
	}
	return network + " " + address
}

type resolver func(network, service string) (int, error)

func (r resolver) LookupPort(_ context.Context, network, service string) (int, error) {
	return r(network, service)
}

func TestResolveServiceAsksByNameAndProtocol(t *testing.T) {
	lookup := resolver(func(network, service string) (int, error) {
		if network != "udp" || service != "domain" {
			return 0, errors.New("unknown service")
		}
		return 53, nil
	})
	e, err := ParseEndpoint("udp4://127.0.0.1:domain")
	if err != nil {
		t.Fatal(err)
	}
	if e, err = e.ResolveService(t.Context(), lookup); err != nil || e.String() != "udp4://127.0.0.1:53" {
		t.Errorf("got %v, %v", e, err)
	}
	e, _ = ParseEndpoint(":domain")
	if _, err := e.ResolveService(t.Context(), lookup); err == nil {
		t.Error("an unknown service resolved")
	}
}

func FuzzParseEndpointPrintsAndParsesBackEqual(f *testing.F) {
	for _, s := range []string{
		"8080", ":8080", "*:80", "[::1%lo]:1-2", "udp://239.1.1.1%eth0:5", "unix://@x", "vsock://*:1", "-", "tls://a.b:https",
		"[::ffff:1.2.3.4]:80", "tcp4://%a:1", "*%lo:1", "seqpacket://~", "1-2-3", "[1.2.3.4]:80",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e, err := ParseEndpoint(s)
		if err != nil {
			return
		}
		again, err := ParseEndpoint(e.String())
		if err != nil {
			t.Fatalf("%q printed as %q, which does not parse: %v", s, e, err)
		}
		if again != e {
			t.Fatalf("%q parsed as %+v, but printed and parsed again is %+v", s, e, again)
		}
		b, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, &again); err != nil || again != e {
			t.Fatalf("%q through JSON %s: %+v, %v", s, b, again, err)
		}
	})
}
