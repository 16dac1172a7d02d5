package lab

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestLinkedHostsTalk(t *testing.T) {
	a, b := NewHost(t, "a"), NewHost(t, "b")
	Link(t, a, b, "10.0.0.0/24", "fd00::/64")
	for _, tt := range []struct{ network, address string }{
		{"tcp", "10.0.0.2:7"},
		{"tcp", "[fd00::2]:7"},
		{"udp", "10.0.0.2:7"},
		{"udp", "[fd00::2]:7"},
	} {
		t.Run(tt.network+" "+tt.address, func(t *testing.T) {
			serveEcho(t, b, tt.network, tt.address)
			wantEcho(t, a, tt.network, tt.address)
		})
	}
}

func TestLinkIsReadyAtOnce(t *testing.T) {
	const lessThanRetransmission = 900 * time.Millisecond // RFC 6298 section 2.1: one second
	for i := range 8 {
		a, b := NewHost(t, "a"), NewHost(t, "b")
		Link(t, a, b, "10.0.0.0/24", "fd00::/64")
		for _, address := range []string{"10.0.0.2:7", "[fd00::2]:7"} {
			serveEcho(t, b, "tcp", address)
			ctx, cancel := context.WithTimeout(t.Context(), lessThanRetransmission)
			defer cancel()
			conn, err := a.Dial(ctx, "tcp", address)
			if err != nil {
				t.Fatalf("round %d: %v", i, err)
			}
			conn.Close()
		}
		a.Do(t, func() { wantLinkLocal(t, "b") })
		b.Do(t, func() { wantLinkLocal(t, "a") })
	}
}

// wantLinkLocal wants a link-local address that can be bound.
func wantLinkLocal(t *testing.T, device string) {
	t.Helper()
	link, err := net.InterfaceByName(device)
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := link.Addrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range addrs {
		if ip := addr.(*net.IPNet).IP; ip.IsLinkLocalUnicast() {
			conn, err := net.ListenUDP("udp6", &net.UDPAddr{IP: ip, Zone: strconv.Itoa(link.Index)})
			if err != nil {
				t.Errorf("listen on link-local address: %v", err)
				return
			}
			conn.Close()
			return
		}
	}
	t.Errorf("addresses of %s: got %v, want a link-local one", device, addrs)
}

func TestRouterForwards(t *testing.T) {
	a, r, b := NewHost(t, "a"), NewHost(t, "r"), NewHost(t, "b")
	Link(t, a, r, "10.1.0.0/24", "fd01::/64")
	Link(t, r, b, "10.2.0.0/24", "fd02::/64")
	r.Sysctl(t, "net.ipv4.ip_forward", "1")
	r.Sysctl(t, "net.ipv6.conf.all.forwarding", "1")
	a.AddRoute(t, "0.0.0.0/0", "10.1.0.2")
	a.AddRoute(t, "::/0", "fd01::2")
	b.AddRoute(t, "10.1.0.0/24", "10.2.0.1")
	b.AddRoute(t, "fd01::/64", "fd02::1")
	for _, address := range []string{"10.2.0.2:7", "[fd02::2]:7"} {
		serveEcho(t, b, "tcp", address)
		wantEcho(t, a, "tcp", address)
	}
}

func TestAddedAddressAnswers(t *testing.T) {
	h := NewHost(t, "h")
	h.AddAddr(t, "lo", "192.0.2.7/32")
	serveEcho(t, h, "udp", "192.0.2.7:7")
	wantEcho(t, h, "udp", "192.0.2.7:7")
}

func TestPortIsTheHostsOwn(t *testing.T) {
	const address = "127.0.0.1:7777"
	a, b := NewHost(t, "a"), NewHost(t, "b")
	serveEcho(t, a, "tcp", address)
	if conn, err := b.Dial(t.Context(), "tcp", address); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial a's port from b: got %v, %v, want connection refused", conn, err)
	}
	if conn, err := net.Dial("tcp", address); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial a's port from no host: got %v, %v, want connection refused", conn, err)
	}
	serveEcho(t, b, "tcp", address) // not in use here
	wantEcho(t, a, "tcp", address)
}

func TestDialRefusesNames(t *testing.T) {
	h := NewHost(t, "h")
	if conn, err := h.Dial(t.Context(), "tcp", "localhost:7"); err == nil || !strings.Contains(err.Error(), "literal") {
		t.Errorf("got %v, %v, want an error that asks for a literal address", conn, err)
	}
}

func TestListenerIsNotMultipath(t *testing.T) {
	h := NewHost(t, "h")
	l, err := h.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var protocol int
	errControl := raw.Control(func(fd uintptr) {
		protocol, err = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_PROTOCOL)
	})
	if errors.Join(errControl, err) != nil || protocol != syscall.IPPROTO_TCP {
		t.Errorf("protocol: got %d, %v, %v, want %d", protocol, errControl, err, syscall.IPPROTO_TCP)
	}
}

func TestSysctlIsTheHostsOwn(t *testing.T) {
	const key = "net.ipv4.ip_unprivileged_port_start"
	a, b := NewHost(t, "a"), NewHost(t, "b")
	a.Sysctl(t, key, "7")
	b.Sysctl(t, "net/ipv4/ip_unprivileged_port_start", "8")
	for h, want := range map[*Host]string{a: "7", b: "8"} {
		var got []byte
		h.Do(t, func() { got, _ = os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start") })
		if string(bytes.TrimSpace(got)) != want {
			t.Errorf("%s of host %s: got %s, want %s", key, h.name, got, want)
		}
	}
}

func TestDoReturnsHome(t *testing.T) {
	a, b := NewHost(t, "a"), NewHost(t, "b")
	for name, do := range map[string]func(){
		"return": func() { a.Do(t, func() {}) },
		"goexit": func() { a.Do(t, runtime.Goexit) },
		"nested": func() { a.Do(t, func() { b.Do(t, runtime.Goexit) }) },
	} {
		t.Run(name, func(t *testing.T) {
			done := make(chan [2]string)
			go func() {
				runtime.LockOSThread() // so that before and after are of one thread
				defer runtime.UnlockOSThread()
				before := netns(t)
				defer func() { done <- [2]string{before, netns(t)} }()
				do()
			}()
			if got := <-done; got[0] != got[1] {
				t.Errorf("namespace after Do: got %s, want %s", got[1], got[0])
			}
		})
	}
}

func TestDoIsInTheHost(t *testing.T) {
	a, b := NewHost(t, "a"), NewHost(t, "b")
	seen := map[string]bool{netns(t): true}
	a.Do(t, func() {
		seen[netns(t)] = true
		b.Do(t, func() { seen[netns(t)] = true })
	})
	if len(seen) != 3 {
		t.Errorf("namespaces of the test, a and b: got %v, want three", seen)
	}
}

func TestClosedHostSaysSo(t *testing.T) {
	var h *Host
	t.Run("lifetime", func(t *testing.T) { h = NewHost(t, "gone") })
	if got := failure(t, func(tb testing.TB) { h.Do(tb, func() {}) }); !strings.Contains(got, "run in host gone") {
		t.Errorf("got failure %q, want it to name the host", got)
	}
}

func TestSetUpNamesWhatFailed(t *testing.T) {
	a, b := NewHost(t, "a"), NewHost(t, "b")
	for want, fn := range map[string]func(testing.TB){
		"link to host b":                          func(tb testing.TB) { Link(tb, a, b); Link(tb, a, b) },
		"too small":                               func(tb testing.TB) { Link(tb, NewHost(t, "c"), NewHost(t, "d"), "10.0.0.0/31") },
		"add address 10.0.0.1/8 to eth9":          func(tb testing.TB) { a.AddAddr(tb, "eth9", "10.0.0.1/8") },
		"add route to 10.9.0.0/16 via 10.8.0.1":   func(tb testing.TB) { a.AddRoute(tb, "10.9.0.0/16", "10.8.0.1") },
		"set sysctl net.nonsense":                 func(tb testing.TB) { a.Sysctl(tb, "net.nonsense", "1") },
		"no '/'":                                  func(tb testing.TB) { a.AddAddr(tb, "lo", "10.0.0.1") },
		"link to host a-name-longer-than-devices": func(tb testing.TB) { Link(tb, a, NewHost(t, "a-name-longer-than-devices")) },
	} {
		if got := failure(t, fn); !strings.Contains(got, want) {
			t.Errorf("got failure %q, want %q in it", got, want)
		}
	}
}

// netns names the network namespace of this thread.
func netns(t *testing.T) string {
	t.Helper()
	name, err := os.Readlink(threadNetns)
	if err != nil {
		t.Error(err)
	}
	return name
}

// serveEcho answers the first message, for the length of the test.
func serveEcho(t *testing.T, h *Host, network, address string) {
	t.Helper()
	var closer io.Closer
	var serve func()
	if network == "tcp" {
		l, err := h.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		closer, serve = l, func() {
			if conn, err := l.Accept(); err == nil {
				io.Copy(conn, conn)
				conn.Close()
			}
		}
	} else {
		conn, err := h.ListenPacket(network, address)
		if err != nil {
			t.Fatal(err)
		}
		closer, serve = conn, func() {
			buf := make([]byte, 64)
			if n, from, err := conn.ReadFrom(buf); err == nil {
				conn.WriteTo(buf[:n], from)
			}
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		serve()
	}()
	t.Cleanup(func() {
		closer.Close()
		<-done
	})
}

func wantEcho(t *testing.T, h *Host, network, address string) {
	t.Helper()
	conn, err := h.Dial(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const message = "to and fro"
	if _, err := io.WriteString(conn, message); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(message))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != message {
		t.Errorf("echo from %s %s: got %q, %v, want %q", network, address, got, err, message)
	}
}
