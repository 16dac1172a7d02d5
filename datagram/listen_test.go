package datagram

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestListenAndDialRefuse(t *testing.T) {
	for _, tt := range []struct {
		endpoint, options, want string
		unsupported             bool
	}{
		{"tcp://127.0.0.1:7", "", "tcp is not a datagram network: write udp:// or unixgram://", true},
		{"tls://127.0.0.1:7", "", "tls is not a datagram network", true},
		{"unix:///tmp/x", "", "unix is not a datagram network", true},
		{"udp://127.0.0.1:7-9", "", "3 ports where one is needed", false},
		{"udp://*%lo:7", "", "use the option bindtodevice=lo", false},
		{"udp://127.0.0.1%lo:7", "", "use the option bindtodevice=lo", false},
		{"udp://127.0.0.1:7", "gro=on", "option gro would join datagrams", true},
		{"udp://localhost:echo", "", "the service name is not resolved", false},
	} {
		options := settings(t, tt.options)
		_, errListen := ListenConfig{Options: options}.Listen(t.Context(), parse(t, tt.endpoint))
		_, errDial := Dialer{Options: options}.Dial(t.Context(), parse(t, tt.endpoint))
		for verb, err := range map[string]error{"listen on ": errListen, "connect ": errDial} {
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), parse(t, tt.endpoint).String()) ||
				errors.Is(err, errors.ErrUnsupported) != tt.unsupported {
				t.Errorf("%s%s %s: got %v, want %q", verb, tt.endpoint, tt.options, err, tt.want)
			}
		}
	}
}

func TestListenRefusesAGroupWithoutItsInterface(t *testing.T) {
	for endpoint, want := range map[string]string{
		"udp://[ff02::123]:0":      "name the interface, [ff02::123%eth0]:0",
		"udp://239.1.2.3:0":        "no route says on which interface: name it, 239.1.2.3%eth0", // the tests' namespace has no route
		"udp://239.1.2.3%nosuch:0": "interface nosuch",
	} {
		_, err := ListenConfig{}.Listen(t.Context(), parse(t, endpoint))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", endpoint, err, want)
		}
	}
}

func TestOptionsAreSetBeforeBind(t *testing.T) {
	options := settings(t, "reuseport=on")
	a, err := ListenConfig{Options: options}.Listen(t.Context(), parse(t, "udp://127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := ListenConfig{Options: options}.Listen(t.Context(), parse(t, udp(a)))
	if err != nil {
		t.Fatalf("second socket on the port: %v", err)
	}
	b.Close()
	if _, err := (ListenConfig{}).Listen(t.Context(), parse(t, udp(a))); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("without the option: got %v, want address already in use", err)
	}
}

func TestLastOf(t *testing.T) {
	for prefix, want := range map[string]string{"10.0.0.7/24": "10.0.0.255", "10.1.2.3/8": "10.255.255.255", "192.0.2.1/30": "192.0.2.3", "0.0.0.0/0": "255.255.255.255"} {
		if got := lastOf(netip.MustParsePrefix(prefix)); got.String() != want {
			t.Errorf("%s: got %s, want %s", prefix, got, want)
		}
	}
}
