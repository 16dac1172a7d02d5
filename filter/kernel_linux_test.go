package filter_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/filter"
	"github.com/fivetuple/fivetuple/internal/lab"
	"github.com/fivetuple/fivetuple/sockdiag"
)

// TestMain runs the tests in the lab, where no other program has sockets.
func TestMain(m *testing.M) { lab.Main(m) }

// row is a socket of the kernel's table as a filter sees it.
type row struct{ sockdiag.Socket }

func (r row) Any(f filter.Field, test func(filter.Value) bool) bool {
	number := func(n uint64) bool { return test(filter.Value{Number: n}) }
	ports := r.Protocol.IsInet() && r.Protocol != fivetuple.Raw && r.Protocol != fivetuple.ICMP
	switch f {
	case filter.FieldProtocol:
		return number(uint64(r.Protocol))
	case filter.FieldState:
		return number(uint64(r.State))
	case filter.FieldFamily:
		a := r.Local.Addr()
		return a.Is6() && number(6) || (a.Is4() || a.IsValid() && a.IsUnspecified() && !r.V6Only) && number(4)
	case filter.FieldLocalAddr:
		return r.Local.IsValid() && test(filter.Value{Addr: r.Local.Addr()})
	case filter.FieldRemoteAddr:
		return r.Remote.IsValid() && test(filter.Value{Addr: r.Remote.Addr()})
	case filter.FieldLocalPort:
		return ports && number(uint64(r.Local.Port()))
	case filter.FieldRemotePort:
		return ports && r.Remote.IsValid() && number(uint64(r.Remote.Port()))
	case filter.FieldDevice:
		return r.Interface != 0 && test(filter.Value{Number: uint64(r.Interface), Text: map[uint32]string{1: "lo"}[r.Interface]})
	case filter.FieldMark:
		return r.Protocol.IsInet() && number(uint64(r.Mark))
	case filter.FieldCgroup:
		return r.Cgroup != 0 && number(r.Cgroup)
	case filter.FieldName:
		return r.Name != "" && test(filter.Value{Text: r.Name})
	case filter.FieldUser:
		return number(uint64(r.UID))
	case filter.FieldInode:
		return r.Inode != 0 && number(uint64(r.Inode))
	case filter.FieldSendQueue:
		return number(uint64(r.SendQueue))
	case filter.FieldRecvQueue:
		return number(uint64(r.RecvQueue))
	case filter.FieldRTT:
		return r.Info != nil && r.Info.RTT != 0 && number(uint64(r.Info.RTT))
	}
	return false
}

const details = sockdiag.WithInfo | sockdiag.WithMark | sockdiag.WithCgroup

// dump lists the sockets that a filter accepts of those that its plan lets the kernel list.
func dump(t testing.TB, f *filter.Filter, rights ...filter.Right) []sockdiag.Socket {
	t.Helper()
	plan := f.Sockets(rights...)
	if plan.Never {
		return nil
	}
	q := sockdiag.Query{States: sockdiag.States(plan.States), Program: plan.Program, Details: details}
	all, err := listed(q, plan.Protocols)
	if err != nil {
		t.Fatalf("filter %s: %v\n%s", f, err, f.Explain(rights...))
	}
	return slices.DeleteFunc(all, func(s sockdiag.Socket) bool { return !plan.Match(row{s}) })
}

// listed lists the protocols that there are in this kernel; nil for all.
func listed(q sockdiag.Query, protocols []fivetuple.Network) (all []sockdiag.Socket, err error) {
	q.Protocols = slices.DeleteFunc(slices.Clone(protocols), func(n fivetuple.Network) bool {
		return n == fivetuple.SCTP || n == fivetuple.Vsock // may be missing, and the tests open none
	})
	if protocols != nil && len(q.Protocols) == 0 {
		return nil, nil
	}
	return sockdiag.List(context.Background(), q)
}

func accepted(all []sockdiag.Socket, f *filter.Filter) (some []sockdiag.Socket) {
	for _, s := range all {
		if f.Match(row{s}) {
			some = append(some, s)
		}
	}
	return some
}

// names lists sockets for a comparison: what tells them apart and does not change.
func names(all []sockdiag.Socket) []string {
	var names []string
	for _, s := range all {
		if s.Protocol == fivetuple.Netlink {
			continue // the dump's own is another each time
		}
		names = append(names, fmt.Sprintf("%s %s #%x", s.Tuple(), s.State, s.Cookie))
	}
	slices.Sort(names)
	return names
}

func TestTheKernelListsWhatThePredicateAccepts(t *testing.T) {
	ports, host := openSockets(t)
	addrs := []string{"127.0.0.1", "127.0.0.2", "10.7.0.1", "10.7.0.2", "0.0.0.0", "::1", "::", "fd07::1", "fe80::1"}
	host.Do(t, func() {
		all, err := sockdiag.List(t.Context(), sockdiag.Query{Details: details})
		if err != nil {
			t.Fatal(err)
		}
		checkKinds(t, all)
		r := rand.New(rand.NewPCG(1, 2))
		const filters = 1500
		const patience = 20 * time.Second // TIME_WAIT and SYN_RECV end after a minute
		start, tried, hits := time.Now(), 0, 0
		for ; tried < filters && time.Since(start) < patience; tried++ {
			text := filter.RandomFilter(r, ports, addrs)
			f, err := filter.Parse(t.Context(), text)
			if err != nil {
				t.Fatal(err)
			}
			want := names(accepted(all, f))
			hits += len(want)
			got := names(dump(t, f, filter.NetAdmin))
			if !slices.Equal(got, want) {
				again, _ := sockdiag.List(t.Context(), sockdiag.Query{Details: details})
				if !slices.Equal(names(again), names(all)) {
					t.Fatalf("the table changed during the test:\nbefore\n%s\nafter\n%s", strings.Join(names(all), "\n"), strings.Join(names(again), "\n"))
				}
				t.Fatalf("filter %s\nkernel and rest:\n%s\npredicate:\n%s\n%s", text, strings.Join(got, "\n"), strings.Join(want, "\n"), f.Explain(filter.NetAdmin))
			}
		}
		t.Logf("%d filters over %d sockets, %.0f%% accepted", tried, len(all), 100*float64(hits)/float64(tried*len(all)))
	})
}

// checkKinds wants every kind of socket of which the bytecode knows less or other things.
func checkKinds(t *testing.T, all []sockdiag.Socket) {
	for name, is := range map[string]func(sockdiag.Socket) bool{
		"TIME_WAIT":        func(s sockdiag.Socket) bool { return s.State == fivetuple.StateTimeWait },
		"SYN_RECV":         func(s sockdiag.Socket) bool { return s.State == fivetuple.StateSynRecv },
		"CLOSE_WAIT":       func(s sockdiag.Socket) bool { return s.State == fivetuple.StateCloseWait },
		"FIN_WAIT2":        func(s sockdiag.Socket) bool { return s.State == fivetuple.StateFinWait2 },
		"bound only":       func(s sockdiag.Socket) bool { return s.Protocol == fivetuple.TCP && s.State == fivetuple.StateClose },
		"dual-stack":       func(s sockdiag.Socket) bool { return s.Local.Addr() == netip.IPv6Unspecified() && !s.V6Only },
		"IPv6 only":        func(s sockdiag.Socket) bool { return s.Local.Addr() == netip.IPv6Unspecified() && s.V6Only },
		"mark":             func(s sockdiag.Socket) bool { return s.Mark == 7 },
		"marked TIME_WAIT": func(s sockdiag.Socket) bool { return s.Mark == 7 && s.State == fivetuple.StateTimeWait },
		"device":           func(s sockdiag.Socket) bool { return s.Interface == 1 },
		"MPTCP": func(s sockdiag.Socket) bool {
			return s.Protocol == fivetuple.MPTCP && s.State == fivetuple.StateEstablished
		},
		"UDP connected": func(s sockdiag.Socket) bool {
			return s.Protocol == fivetuple.UDP && s.State == fivetuple.StateEstablished
		},
		"raw":  func(s sockdiag.Socket) bool { return s.Protocol == fivetuple.Raw },
		"Unix": func(s sockdiag.Socket) bool { return s.Name == "@name" },
	} {
		if !slices.ContainsFunc(all, is) {
			t.Errorf("the test opened no socket of the kind %s", name)
		}
	}
	if t.Failed() {
		t.Fatalf("the table:\n%s", strings.Join(names(all), "\n"))
	}
}

// openSockets opens sockets of many kinds in a host of their own, until the
// test ends, and returns the host and ports that occur.
func openSockets(t testing.TB) (ports []uint16, host *lab.Host) {
	host, other := lab.NewHost(t, "here"), lab.NewHost(t, "there")
	lab.Link(t, host, other, "10.7.0.0/24", "fd07::/64")
	keep := func(c io.Closer) { t.Cleanup(func() { c.Close() }) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	port := func(a net.Addr) uint16 {
		p := netip.MustParseAddrPort(a.String()).Port()
		ports = append(ports, p)
		return p
	}
	listen := func(network, address string, options func(fd int) error) net.Listener {
		config := net.ListenConfig{Control: control(options)}
		config.SetMultipathTCP(false)
		var l net.Listener
		host.Do(t, func() {
			var err error
			l, err = config.Listen(t.Context(), network, address)
			must(err)
		})
		keep(l)
		port(l.Addr())
		return l
	}
	pair := func(from *lab.Host, l net.Listener, address string) (client, server *net.TCPConn) {
		t.Helper()
		c, err := from.Dial(t.Context(), "tcp", fmt.Sprintf("%s:%d", address, netip.MustParseAddrPort(l.Addr().String()).Port()))
		must(err)
		s, err := l.Accept()
		must(err)
		keep(c)
		keep(s)
		port(c.LocalAddr())
		return c.(*net.TCPConn), s.(*net.TCPConn)
	}
	mark := func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 7) }
	device := func(fd int) error { return unix.BindToDevice(fd, "lo") }

	host.AddAddr(t, "lo", "fe80::1/64")
	four := listen("tcp4", "127.0.0.1:0", nil)
	six := listen("tcp6", "[::1]:0", nil)
	dual := listen("tcp", "[::]:0", nil)
	marked := listen("tcp4", "0.0.0.0:0", mark)
	listen("tcp6", "[::]:0", nil)
	listen("tcp4", "127.0.0.2:0", device)
	listen("tcp6", "[fe80::1%1]:0", nil)
	pair(host, four, "127.0.0.1")
	pair(host, six, "[::1]")
	pair(host, dual, "127.0.0.1") // IPv4 mapped into IPv6 at the server
	pair(host, dual, "[::1]")
	pair(other, dual, "10.7.0.1")
	pair(other, dual, "[fd07::1]")
	c, s := pair(host, four, "127.0.0.1") // FIN_WAIT2 and CLOSE_WAIT
	must(c.CloseWrite())
	_, err := s.Read(make([]byte, 1))
	if err != io.EOF {
		t.Fatalf("read the end: %v", err)
	}
	c, s = pair(host, dual, "127.0.0.1") // something to read
	_, err = c.Write([]byte("hello"))
	must(err)
	_ = s
	for _, l := range []net.Listener{dual, six, marked} { // TIME_WAIT at the server
		address := "127.0.0.1"
		if l == six {
			address = "[::1]"
		}
		c, s := pair(host, l, address)
		must(s.Close())
		_, err = c.Read(make([]byte, 1))
		if err != io.EOF {
			t.Fatalf("read the end: %v", err)
		}
		must(c.Close())
	}
	synReceived(t, host, other, dual)
	for _, address := range []string{"127.0.0.1:0", "[::1]:0", "0.0.0.0:0", "[::]:0"} {
		p, err := host.ListenPacket("udp", address)
		must(err)
		keep(p)
		port(p.LocalAddr())
		if a := netip.MustParseAddrPort(p.LocalAddr().String()); !a.Addr().IsUnspecified() {
			u, err := host.Dial(t.Context(), "udp", a.String())
			must(err)
			keep(u)
		}
	}
	host.Do(t, func() {
		var config net.ListenConfig
		config.SetMultipathTCP(true)
		l, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
		must(err)
		keep(l)
		var dialer net.Dialer
		dialer.SetMultipathTCP(true)
		c, err := dialer.DialContext(t.Context(), "tcp", l.Addr().String())
		must(err)
		keep(c)
		s, err := l.Accept()
		must(err)
		keep(s)
		port(l.Addr())
		u, err := net.Listen("unix", "@name")
		must(err)
		keep(u)
		openRaw(t, unix.AF_INET, unix.SOCK_STREAM, 0, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
		openRaw(t, unix.AF_INET, unix.SOCK_RAW, 253, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
		openRaw(t, unix.AF_INET6, unix.SOCK_RAW, 253, nil)
	})
	return ports, host
}

func control(options func(fd int) error) func(string, string, syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) (err error) {
		if options == nil {
			return nil
		}
		errControl := c.Control(func(fd uintptr) { err = options(int(fd)) })
		if errControl != nil {
			return errControl
		}
		return err
	}
}

// openRaw opens a socket and binds it, without going on to listen.
func openRaw(t testing.TB, family, kind, protocol int, address unix.Sockaddr) {
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if address != nil {
		if err := unix.Bind(fd, address); err != nil {
			t.Fatal(err)
		}
	}
}

// synReceived leaves a connection to l half open: the client never sees the answer.
func synReceived(t testing.TB, host, client *lab.Host, l net.Listener) {
	fd := -1
	client.Do(t, func() {
		var err error
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err == nil {
			err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{10, 7, 0, 2}})
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { unix.Close(fd) })
	own, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	client.Drop(t, "tcp", uint16(own.(*unix.SockaddrInet4).Port))
	port := int(netip.MustParseAddrPort(l.Addr().String()).Port())
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{10, 7, 0, 1}, Port: port}); err != unix.EINPROGRESS {
		t.Fatalf("connect: %v", err)
	}
	deadline := time.Now().Add(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for found := false; !found; <-tick.C {
		host.Do(t, func() {
			all, err := sockdiag.List(t.Context(), sockdiag.Query{Protocols: []fivetuple.Network{fivetuple.TCP}, States: sockdiag.StatesOf(fivetuple.StateSynRecv)})
			if err != nil {
				t.Fatal(err)
			}
			found = len(all) > 0
		})
		if time.Now().After(deadline) {
			t.Fatal("no connection in SYN_RECV after ten seconds")
		}
	}
}

func TestSSFindsTheSame(t *testing.T) {
	ports, host := openSockets(t)
	filters := []string{
		"state established", "state listening", "state time-wait", "state syn-recv", "state close-wait", "state connected", "state synchronized",
		"state bucket", "state big", "state all", "exclude listening", "state established state time-wait", "state fin-wait-2",
		"src 127.0.0.1", "dst 127.0.0.1", "src 127.0.0.0/8", "dst 10.7.0.2", "src [::1]", "dst [fd07::2]", "src 127.0.0.2",
		"not src 127.0.0.1", "state established src 127.0.0.1 dst 127.0.0.1", "state established not ( src 10.7.0.0/24 or src [::1] )",
	}
	for _, p := range []uint16{ports[2], ports[len(ports)-1]} { // a dual-stack listener, MPTCP
		for _, f := range []string{
			"sport = :%d", "dport = :%d", "sport == %d", "sport eq :%d", "( sport = :%[1]d or dport = :%[1]d )", "sport != :%d", "not dport = :%d",
			"sport >= :%d", "sport < :%d", "state established dport > :%d", "src 127.0.0.1:%d", "dst 127.0.0.1:%d", "src :%d", "sport = :%[1]d and src 127.0.0.1",
			"! ( sport = :%[1]d && src 127.0.0.1 ) || dport = :%[1]d",
		} {
			filters = append(filters, fmt.Sprintf(f, p))
		}
	}
	host.Do(t, func() {
		for _, text := range filters {
			arguments := []string{"-Htuna"}
			f, err := filter.Parse(t.Context(), "(tcp or udp) and not (tcp and state close) and ("+text+")")
			if err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command("ss", append(arguments, strings.Fields(text)...)...).Output()
			if err != nil {
				t.Fatalf("ss %s: %v; install it: apt-get install iproute2", text, err)
			}
			var want []string
			for line := range strings.Lines(string(out)) {
				fields := strings.Fields(line) // protocol, state unless one was asked for, two queues, local, peer
				local := fields[slices.IndexFunc(fields, func(s string) bool { return strings.Contains(s, ":") })]
				host, port := local[:strings.LastIndex(local, ":")], local[strings.LastIndex(local, ":")+1:]
				host, _, _ = strings.Cut(host, "%") // the device
				host = strings.Trim(host, "[]")
				if host == "*" {
					host = "::"
				}
				want = append(want, fields[0]+" "+net.JoinHostPort(strings.TrimPrefix(host, "::ffff:"), port))
			}
			var got []string
			for _, s := range dump(t, f) {
				got = append(got, ssName(s))
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("filter %s\nwe find:\n%s\nss finds:\n%s", text, strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		}
	})
}

// ssName writes the protocol and local end as ss does, to which MPTCP is TCP.
func ssName(s sockdiag.Socket) string {
	local := netip.AddrPortFrom(s.Local.Addr().WithZone(""), s.Local.Port())
	return strings.TrimPrefix(s.Protocol.String(), "mp") + " " + local.String()
}
