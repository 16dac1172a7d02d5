package port_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/fivetuple/fivetuple/port"
)

// resolver is what users of LookupPort ask for.
type resolver interface {
	LookupPort(ctx context.Context, network, service string) (int, error)
}

var (
	_ resolver = (*port.Names)(nil)
	_ resolver = (*net.Resolver)(nil)
)

func TestLookupPort(t *testing.T) {
	names := load(t, "mine 4444/tcp\nmine 3333/tcp\nonly-udp 5555/udp\nhttp-alt 8080/tcp\n")
	for _, test := range []struct {
		network, service string
		want             int
	}{
		{"tcp", "https", 443}, {"tcp4", "HTTPS", 443}, {"tcp6", "www", 80}, {"udp6", "domain", 53}, {"sctp", "http", 80},
		{"dccp", "discard", 9}, {"", "https", 443}, {"ip", "tftp", 69}, {"ip", "only-udp", 5555}, {"ip", "s1-control", 36412},
		{"tcp", "0", 0}, {"tcp", "65535", 65535}, {"udp", "00080", 80}, {"tcp", "mine", 4444}, {"tcp", "http-alt", 8080},
	} {
		got, err := names.LookupPort(t.Context(), test.network, test.service)
		if err != nil || got != test.want {
			t.Errorf("LookupPort(%q, %q) = %d, %v, want %d", test.network, test.service, got, err, test.want)
		}
	}
}

func TestLookupPortRefuses(t *testing.T) {
	for _, test := range []struct {
		network, service, want string
		unknown                bool
	}{
		{"tcp", "no-such", "look up port no-such/tcp: unknown service: write the number", true},
		{"dccp", "https", "unknown service", true},
		{"tcp", "", "unknown service", true},
		{"tcp", "-1", "unknown service", true},
		{"tcp", "80 ", "unknown service", true},
		{"tcp", "65536", "out of range 0-65535", false},
		{"udp", "99999999999999999999", "out of range 0-65535", false},
		{"tcp", "http-alt", "has 3 tcp ports (591, 8008, 8080): write the number", false},
		{"ip", "x11", "has 64 tcp ports (6000-6063): write the number", false},
		{"unix", "https", "the network has no ports", false},
		{"tcp46", "https", "the network has no ports", false},
	} {
		got, err := (*port.Names)(nil).LookupPort(t.Context(), test.network, test.service)
		if err == nil || !strings.Contains(err.Error(), test.want) || errors.Is(err, port.ErrUnknown) != test.unknown {
			t.Errorf("LookupPort(%q, %q) = %d, %v, want an error with %q", test.network, test.service, got, err, test.want)
		}
	}
}

func TestLookupPortStopsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (*port.Names)(nil).LookupPort(ctx, "tcp", "https"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}
