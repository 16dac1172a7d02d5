package lease

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple"
)

func TestRequestIsBroughtIntoOneForm(t *testing.T) {
	type form struct {
		protocol fivetuple.Network
		address  string
		ports    string
	}
	addr := netip.MustParseAddr
	for _, tt := range []struct {
		request Request
		want    form
	}{
		{Request{}, form{fivetuple.TCP, "127.0.0.1", "49152-65535"}},
		{Request{Protocol: fivetuple.UDP6}, form{fivetuple.UDP, "::1", "49152-65535"}},
		{Request{Protocol: fivetuple.TLS, Port: 443}, form{fivetuple.TCP, "127.0.0.1", "443"}},
		{Request{Protocol: fivetuple.TCP4, Address: addr("::")}, form{fivetuple.TCP, "0.0.0.0", "49152-65535"}},
		{Request{Protocol: fivetuple.TCP6, Address: addr("::")}, form{fivetuple.TCP6, "::", "49152-65535"}},
		{Request{Protocol: fivetuple.TCP6, Address: addr("fd00::1")}, form{fivetuple.TCP, "fd00::1", "49152-65535"}},
		{Request{Address: addr("::ffff:10.0.0.1")}, form{fivetuple.TCP, "10.0.0.1", "49152-65535"}},
		{Request{Address: addr("::ffff:0.0.0.0")}, form{fivetuple.TCP, "0.0.0.0", "49152-65535"}},
		{Request{Address: addr("fe80::1%1")}, form{fivetuple.TCP, "fe80::1%lo", "49152-65535"}},
		{Request{Range: fivetuple.PortRange{First: 0, Last: 9}}, form{fivetuple.TCP, "127.0.0.1", "1-9"}},
		{Request{Port: 80, Range: fivetuple.PortRange{First: 80, Last: 90}}, form{fivetuple.TCP, "127.0.0.1", "80"}},
	} {
		r, err := tt.request.normal(Owner{PID: 1})
		got := form{r.Protocol, r.Address.String(), r.Range.String()}
		if err != nil || got != tt.want || r.Owner.PID != 1 {
			t.Errorf("%+v: got %+v of pid %d, %v; want %+v", tt.request, got, r.Owner.PID, err, tt.want)
		}
	}
}

func TestBadRequest(t *testing.T) {
	addr := netip.MustParseAddr
	for _, tt := range []struct {
		request Request
		want    string
	}{
		{Request{Protocol: fivetuple.Unix}, "unix sockets have no port"},
		{Request{Protocol: fivetuple.TCP4, Address: addr("::1")}, "::1 is not an address for tcp4"},
		{Request{Protocol: fivetuple.UDP6, Address: addr("10.0.0.1")}, "10.0.0.1 is not an address for udp6"},
		{Request{Address: addr("::%1")}, "::%1 has a zone, which only link-local addresses do"},
		{Request{Range: fivetuple.PortRange{First: 9, Last: 8}}, "the port range 9-8 runs backwards"},
		{Request{Range: fivetuple.PortRange{First: 9}}, "the port range 9-0 runs backwards"},
		{Request{Port: 7, Range: fivetuple.PortRange{First: 8, Last: 9}}, "port 7 is not in the range 8-9"},
		{Request{TTL: -time.Second}, "the time to live -1s is negative"},
		{Request{Name: "a\nb"}, `the name "a\nb" contains '\n', which does not print`},
		{Request{Name: "a\x1b[2J"}, `contains '\x1b', which does not print`},
		{Request{Name: "a\u202eb"}, `contains '\u202e', which does not print`},
		{Request{Name: "\xff"}, `the name "\xff" is not UTF-8 text`},
		{Request{Name: strings.Repeat("x", 65)}, "the name is 65 bytes long; the limit is 64"},
		{Request{Purpose: "\r"}, "the purpose"},
		{Request{Owner: Owner{PID: 1, Command: "\n"}}, "the owner's command"},
	} {
		_, err := NewMemory().Acquire(t.Context(), tt.request)
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: got %v, want %q", tt.request, err, tt.want)
		}
	}
}

func TestLeasesOverlapAsTheKernelBinds(t *testing.T) {
	for _, tt := range []struct {
		protocol  fivetuple.Network
		address   string
		protocol2 fivetuple.Network
		address2  string
		want      bool
	}{
		{fivetuple.TCP, "127.0.0.1", fivetuple.TCP, "127.0.0.1", true},
		{fivetuple.TCP, "127.0.0.1", fivetuple.UDP, "127.0.0.1", false},
		{fivetuple.TCP, "127.0.0.1", fivetuple.TCP, "127.0.0.2", false},
		{fivetuple.TCP, "127.0.0.1", fivetuple.TCP, "::ffff:127.0.0.1", true},
		{fivetuple.TCP, "127.0.0.1", fivetuple.TCP, "0.0.0.0", true},
		{fivetuple.TCP, "127.0.0.1", fivetuple.TCP, "::1", false},
		{fivetuple.TCP, "127.0.0.1", fivetuple.TCP, "::", true},
		{fivetuple.TCP, "127.0.0.1", fivetuple.TCP6, "::", false},
		{fivetuple.TCP, "::1", fivetuple.TCP, "0.0.0.0", false},
		{fivetuple.TCP, "::1", fivetuple.TCP, "::", true},
		{fivetuple.TCP, "::1", fivetuple.TCP6, "::", true},
		{fivetuple.TCP, "0.0.0.0", fivetuple.TCP, "::", true},
		{fivetuple.TCP, "0.0.0.0", fivetuple.TCP6, "::", false},
		{fivetuple.UDP, "0.0.0.0", fivetuple.UDP6, "::", false},
		{fivetuple.UDP, "0.0.0.0", fivetuple.UDP4, "::", true},
		{fivetuple.TCP6, "::", fivetuple.TCP, "::", true},
	} {
		a := Request{Protocol: tt.protocol, Address: netip.MustParseAddr(tt.address), Port: 50000}
		b := Request{Protocol: tt.protocol2, Address: netip.MustParseAddr(tt.address2), Port: 50000}
		for _, pair := range [][2]Request{{a, b}, {b, a}} {
			// The kernel, with sockets that stay open, and the registry, with sockets that do not, should agree.
			network, address := listenArgs(t, pair[0])
			closer, _, err := open(network, address)
			if err != nil {
				t.Fatal(err)
			}
			_, err = NewMemory().Acquire(t.Context(), pair[1])
			closer.Close()
			if got := errors.Is(err, ErrInUse); got != tt.want {
				t.Errorf("socket on %s %s, lease on %s %s: got %v, want in use: %v", pair[0].Protocol, pair[0].Address, pair[1].Protocol, pair[1].Address, err, tt.want)
			}
			m := NewMemory()
			held := acquire(t, m, pair[0])
			_, err = m.Acquire(t.Context(), pair[1])
			if got := errors.Is(err, ErrLeased); got != tt.want {
				t.Errorf("leases on %s %s and %s %s: got %v, want leased: %v", pair[0].Protocol, pair[0].Address, pair[1].Protocol, pair[1].Address, err, tt.want)
			}
			var conflict *ConflictError
			if tt.want && (!errors.As(err, &conflict) || conflict.Holder != held) {
				t.Errorf("got holder %+v, want %+v", conflict, held)
			}
		}
	}
}

// listenArgs writes a request so that net.Listen opens just that: to net, 0.0.0.0 is dual-stack.
func listenArgs(t *testing.T, r Request) (network, address string) {
	t.Helper()
	r, err := r.normal(Owner{})
	if err != nil {
		t.Fatal(err)
	}
	network = r.Protocol.String()
	if r.Address.Is4() {
		network += "4"
	}
	return network, netip.AddrPortFrom(r.Address, r.Port).String()
}
