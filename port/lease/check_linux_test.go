package lease

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/lab"
)

func TestPrivilegeIsTheCapabilityAndNotTheUser(t *testing.T) {
	for _, tt := range []struct {
		start   string // net.ipv4.ip_unprivileged_port_start
		capable bool
		port    uint16
		want    bool
	}{
		{"1024", true, 80, true},
		{"1024", false, 80, false},
		{"1024", false, 1024, true},
		{"80", false, 80, true},
		{"80", false, 79, false},
		{"0", false, 1, true},
		{"30000", false, 29999, false},
		{"30000", true, 29999, true},
	} {
		t.Run(fmt.Sprint(tt), func(t *testing.T) {
			host := lab.NewHost(t, "host")
			host.Sysctl(t, "net.ipv4.ip_unprivileged_port_start", tt.start)
			host.Do(t, func() {
				setCapable(t, tt.capable)
				defer setCapable(t, true)
				for _, protocol := range []fivetuple.Network{fivetuple.TCP, fivetuple.UDP} {
					a := Check(t.Context(), protocol, any6, tt.port)
					_, err := NewMemory().Acquire(t.Context(), Request{Protocol: protocol, Address: any6, Port: tt.port})
					if a.Permitted != tt.want || a.Free != tt.want || errors.Is(err, ErrNotPermitted) == tt.want {
						t.Errorf("%s: got %+v and %v, want permitted: %v", protocol, a, err, tt.want)
					}
					advice := fmt.Sprintf("ports below %s (net.ipv4.ip_unprivileged_port_start) need the capability CAP_NET_BIND_SERVICE, "+
						"which this process lacks: give it with \"setcap cap_net_bind_service=+ep ", tt.start)
					if !tt.want && !strings.Contains(fmt.Sprint(err), advice) {
						t.Errorf("got %v, want %s", err, advice)
					}
				}
			})
		})
	}
}

func TestPortsThatAreNotPermittedArePassedOver(t *testing.T) {
	host := lab.NewHost(t, "host")
	host.Do(t, func() {
		setCapable(t, false)
		defer setCapable(t, true)
		m := NewMemory()
		if l := acquire(t, m, Request{Range: fivetuple.PortRange{First: 1000, Last: 1024}}); l.Port != 1024 {
			t.Errorf("got port %d, want 1024", l.Port)
		}
		_, err := m.Acquire(t.Context(), Request{Range: fivetuple.PortRange{First: 1000, Last: 1024}})
		if !errors.Is(err, ErrExhausted) || !errors.Is(err, ErrNotPermitted) || !strings.Contains(err.Error(), ": 1 leased, 24 not permitted (") {
			t.Errorf("got %v, want ErrExhausted and ErrNotPermitted", err)
		}
	})
}

// setCapable sets or clears CAP_NET_BIND_SERVICE in the calling thread, which Host.Do locks.
func setCapable(t *testing.T, capable bool) {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
	data[0].Effective &^= 1 << unix.CAP_NET_BIND_SERVICE
	if capable {
		data[0].Effective |= 1 << unix.CAP_NET_BIND_SERVICE
	}
	if err := unix.Capset(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
}

func TestReservedPortsAreGrantedOnlyByNumber(t *testing.T) {
	host := lab.NewHost(t, "host")
	host.Sysctl(t, "net.ipv4.ip_local_reserved_ports", "50000-50001,50003")
	host.Sysctl(t, "net.ipv4.ip_local_port_range", "40000 50003")
	host.Do(t, func() {
		m := NewMemory()
		within := fivetuple.PortRange{First: 50000, Last: 50003}
		if l := acquire(t, m, Request{Range: within}); l.Port != 50002 {
			t.Errorf("got port %d, want 50002", l.Port)
		}
		_, err := m.Acquire(t.Context(), Request{Range: within})
		if want := ": 1 leased, 3 reserved by the kernel: "; !errors.Is(err, ErrExhausted) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
		acquire(t, m, Request{Port: 50000})
		for port, want := range map[uint16][2]bool{50001: {true, false}, 50002: {false, true}, 50004: {false, false}, 39999: {false, false}} {
			a := Check(t.Context(), fivetuple.UDP, any4, port)
			if got := [2]bool{a.Reserved, a.Ephemeral}; !a.Free || got != want {
				t.Errorf("port %d: got %+v, want free, reserved and ephemeral %v", port, a, want)
			}
		}
	})
}

func TestConnectionsOfAnEarlierServerDoNotHoldThePort(t *testing.T) {
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := listener.Addr().(*net.TCPAddr).AddrPort()
	client, err := net.Dial("tcp4", at.String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	expect := func(what string, want error) {
		t.Helper()
		_, err := NewMemory().Acquire(t.Context(), Request{Port: at.Port()})
		if a := Check(t.Context(), fivetuple.TCP, loopback, at.Port()); !errors.Is(err, want) || a.Free != (want == nil) {
			t.Errorf("%s: got %v and %+v, want %v", what, err, a, want)
		}
	}
	expect("listening", ErrInUse)
	listener.Close()
	expect("connected", nil)
	server.Close() // first: TIME_WAIT is on this side
	if _, err := client.Read(make([]byte, 1)); err != io.EOF {
		t.Fatal(err)
	}
	client.Close()
	if err := bindOnce(fivetuple.TCP, at); !errors.Is(err, unix.EADDRINUSE) {
		t.Fatalf("nothing is in TIME_WAIT: %v", err)
	}
	expect("in TIME_WAIT", nil)
}

func TestSocketsThatHoldAPort(t *testing.T) {
	for name, hold := range map[string]func(*testing.T) (fivetuple.Network, uint16){
		"listener": func(t *testing.T) (fivetuple.Network, uint16) { return fivetuple.TCP, listen(t, "tcp", "127.0.0.1:0") },
		"listener on all addresses": func(t *testing.T) (fivetuple.Network, uint16) {
			return fivetuple.TCP, listen(t, "tcp", ":0")
		},
		"SO_REUSEPORT": func(t *testing.T) (fivetuple.Network, uint16) {
			return fivetuple.UDP, listen(t, "udp", "127.0.0.1:0", unix.SO_REUSEPORT)
		},
		"UDP with SO_REUSEADDR": func(t *testing.T) (fivetuple.Network, uint16) {
			return fivetuple.UDP, listen(t, "udp4", "0.0.0.0:0", unix.SO_REUSEADDR)
		},
		"bound with SO_REUSEADDR, will listen": func(t *testing.T) (fivetuple.Network, uint16) {
			return fivetuple.TCP, bindOnly(t, unix.SO_REUSEADDR)
		},
		"bound": func(t *testing.T) (fivetuple.Network, uint16) { return fivetuple.TCP, bindOnly(t) },
		"outgoing connection": func(t *testing.T) (fivetuple.Network, uint16) {
			conn, err := net.Dial("tcp4", fmt.Sprint("127.0.0.1:", listen(t, "tcp4", "127.0.0.1:0")))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			return fivetuple.TCP, conn.LocalAddr().(*net.TCPAddr).AddrPort().Port()
		},
	} {
		t.Run(name, func(t *testing.T) {
			protocol, port := hold(t)
			a := Check(t.Context(), protocol, loopback, port)
			if !errors.Is(a.Err, ErrInUse) || !errors.Is(a.Err, unix.EADDRINUSE) || a.Free || !a.Permitted {
				t.Errorf("got %+v, want ErrInUse", a)
			}
		})
	}
}

// bindOnly binds a TCP socket that does not listen.
func bindOnly(t *testing.T, options ...int) uint16 {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	for _, option := range options {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: loopback.As4()}); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return uint16(name.(*unix.SockaddrInet4).Port)
}

func TestReusePortJoinsAGroup(t *testing.T) {
	for _, protocol := range []fivetuple.Network{fivetuple.TCP, fivetuple.UDP} {
		port := listen(t, protocol.String()+"4", "127.0.0.1:0", unix.SO_REUSEPORT)
		acquire(t, NewMemory(), Request{Protocol: protocol, Port: port, ReusePort: true})
		alone := listen(t, protocol.String()+"4", "127.0.0.1:0")
		if _, err := NewMemory().Acquire(t.Context(), Request{Protocol: protocol, Port: alone, ReusePort: true}); !errors.Is(err, ErrInUse) {
			t.Errorf("%s, a socket that does not share: got %v, want ErrInUse", protocol, err)
		}
	}
}

// A client that connects while ports are checked is refused as if nobody had looked.
func TestCheckIsNotSeenByClients(t *testing.T) {
	const port = 50000
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			Check(ctx, fivetuple.TCP, loopback, port)
		}
	}()
	for range 2000 {
		if conn, err := net.Dial("tcp4", "127.0.0.1:50000"); err == nil {
			t.Errorf("connected: %v", conn.LocalAddr())
			conn.Close()
			break
		}
	}
	cancel()
	<-done
}

func TestAddressOfAnotherMachine(t *testing.T) {
	_, err := NewMemory().Acquire(t.Context(), Request{Address: netip.MustParseAddr("192.0.2.1")})
	if !errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, ErrExhausted) || !strings.Contains(err.Error(), "none of this machine's") {
		t.Errorf("got %v, want EADDRNOTAVAIL at the first port", err)
	}
}

func TestCheckOfNoPort(t *testing.T) {
	for _, a := range []Availability{
		Check(t.Context(), fivetuple.TCP, loopback, 0),
		Check(t.Context(), fivetuple.Unix, loopback, 80),
	} {
		if !errors.Is(a.Err, ErrInvalid) || a.Free {
			t.Errorf("got %+v, want ErrInvalid", a)
		}
	}
}
