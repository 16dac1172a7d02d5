package service

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/relay"
	"github.com/fivetuple/fivetuple/relay/faults"
	"github.com/fivetuple/fivetuple/secure"
	"github.com/fivetuple/fivetuple/sockdiag"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/stream"
)

// echoAt is a target: an echo service, by the endpoint at which it listens.
func echoAt(t *testing.T, where string) fivetuple.Endpoint {
	t.Helper()
	s := start(t, Config{Kind: "echo", Endpoints: endpoints(where)})
	network, addr, _ := strings.Cut(s.Addresses()[0], " ")
	return fivetuple.MustParseEndpoint(network + "://" + addr)
}

func forwardTo(listen string, targets ...fivetuple.Endpoint) Config {
	rule := relay.Config{Targets: targets}
	if len(targets) > 0 && targets[0].Network.Protocol() == fivetuple.TCP && fivetuple.MustParseEndpoint(listen).Ports.Len() == 1 {
		rule.Check.Interval = 50 * time.Millisecond // which has to end with the service
	}
	return Config{Kind: "forward", Name: "f", Endpoints: endpoints(listen), Forward: &rule}
}

func TestAServiceForwards(t *testing.T) {
	dir := t.TempDir()
	tcp, udp, local := echoAt(t, "127.0.0.1:0"), echoAt(t, "udp://127.0.0.1:0"), echoAt(t, "unix://"+filepath.Join(dir, "target"))
	slow := forwardTo("127.0.0.1:0", tcp)
	slow.Forward.Faults = faults.Config{Delay: time.Millisecond}
	goroutines := forwardTo("127.0.0.1:0", tcp)
	goroutines.Engine = Goroutines
	for name, tt := range map[string]struct {
		c      Config
		engine string
	}{
		"tcp":             {forwardTo("127.0.0.1:0", tcp), "splice"},
		"tcp to unix":     {forwardTo("127.0.0.1:0", local), "splice"},
		"unix to tcp":     {forwardTo("unix://"+filepath.Join(dir, "listen"), tcp), "splice"},
		"udp":             {forwardTo("udp://127.0.0.1:0", udp), "sessions"},
		"faults":          {slow, "goroutines"},
		"as it was asked": {goroutines, "goroutines"},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, tt.c)
			network, addr, _ := strings.Cut(s.Addresses()[0], " ")
			echoes(t, network, addr, "through")
			if l := s.Relayed().Listeners; len(l) != 1 || l[0].Engine != tt.engine || l[0].Address != addr {
				t.Errorf("listeners %+v, want one of the engine %s", l, tt.engine)
			}
		})
	}
}

func TestTLSEndsAtAForwardingService(t *testing.T) {
	certificate, err := secure.Server{SelfSigned: true}.Config()
	if err != nil {
		t.Fatal(err)
	}
	c := forwardTo("tls://127.0.0.1:0", echoAt(t, "127.0.0.1:0"))
	c.TLS = certificate
	s := start(t, c)
	_, addr := address(t, s, 0)
	conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	exchange(t, conn, "secret")
}

func exchange(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if err := tryExchange(c, text); err != nil {
		t.Fatal(err)
	}
}

func tryExchange(c net.Conn, text string) error {
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	b := make([]byte, len(text))
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if string(b) != text {
		return fmt.Errorf("sent %q, got %q", text, b)
	}
	return nil
}

func dial(t *testing.T, network, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// neighbours are n ports in a row on which nothing is bound.
func neighbours(t *testing.T, network string, n int) fivetuple.PortRange {
	t.Helper()
	for range 100 {
		first, ok := tryNeighbours(network, n)
		if ok {
			return fivetuple.PortRange{First: first, Last: first + uint16(n-1)}
		}
	}
	t.Fatalf("no %d free ports in a row", n)
	return fivetuple.PortRange{}
}

func tryNeighbours(network string, n int) (first uint16, ok bool) {
	for i := range n {
		at := "127.0.0.1:0"
		if i > 0 {
			at = fmt.Sprintf("127.0.0.1:%d", int(first)+i)
		}
		if network == "udp" {
			c, err := net.ListenPacket("udp", at)
			if err != nil {
				return 0, false
			}
			defer c.Close()
			if i == 0 {
				first = netip.MustParseAddrPort(c.LocalAddr().String()).Port()
			}
			continue
		}
		ln, err := net.Listen("tcp", at)
		if err != nil {
			return 0, false
		}
		defer ln.Close()
		if i == 0 {
			first = netip.MustParseAddrPort(ln.Addr().String()).Port()
		}
	}
	return first, int(first)+n <= 65536
}

func TestARangeOfPortsGoesOnToOne(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		t.Run(network, func(t *testing.T) {
			targets := neighbours(t, network, 3)
			for port := int(targets.First); port <= int(targets.Last); port++ {
				sayPort(t, network, port)
			}
			listen := neighbours(t, network, 3)
			prefix := network + "://127.0.0.1:"
			s := start(t, forwardTo(prefix+listen.String(), fivetuple.MustParseEndpoint(prefix+targets.String())))
			if len(s.Addresses()) != 3 {
				t.Errorf("addresses %q, want three", s.Addresses())
			}
			for i := range 3 {
				c := dial(t, network, fmt.Sprintf("127.0.0.1:%d", int(listen.First)+i))
				c.SetDeadline(time.Now().Add(10 * time.Second))
				io.WriteString(c, "which?")
				b := make([]byte, 16)
				n, err := c.Read(b)
				if want := fmt.Sprint(int(targets.First) + i); err != nil || string(b[:n]) != want {
					t.Errorf("port %d of the range leads to %q, %v; want %s", i, b[:n], err, want)
				}
			}
		})
	}
}

// sayPort answers on a port with its number.
func sayPort(t *testing.T, network string, port int) {
	t.Helper()
	at, answer := fmt.Sprintf("127.0.0.1:%d", port), []byte(fmt.Sprint(port))
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	if network == "udp" {
		c, err := net.ListenPacket("udp", at)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		wg.Go(func() {
			b := make([]byte, 64)
			for {
				_, from, err := c.ReadFrom(b)
				if err != nil {
					return
				}
				c.WriteTo(answer, from)
			}
		})
		return
	}
	ln := listener(t, "tcp", at)
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Write(answer)
			c.Close()
		}
	})
}

func TestEventLoopsOfARelayHaveASocketEachAndTellOnce(t *testing.T) {
	for network, protocol := range map[string]fivetuple.Network{"tcp": fivetuple.TCP, "udp": fivetuple.UDP} {
		t.Run(network, func(t *testing.T) {
			var listens, closes atomic.Int32
			c := forwardTo(network+"://127.0.0.1:0", echoAt(t, network+"://127.0.0.1:0"))
			c.Loops = 3
			c.Sink = stats.SinkFunc(func(e stats.Event) {
				switch e.Kind {
				case stats.Listen:
					listens.Add(1)
				case stats.Close:
					closes.Add(1)
				}
			})
			s, err := Start(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			_, addr, _ := strings.Cut(s.Addresses()[0], " ")
			echoes(t, network, addr, "x")
			port := netip.MustParseAddrPort(addr).Port()
			q := sockdiag.Query{Protocols: []fivetuple.Network{protocol}, LocalPort: port}
			if protocol == fivetuple.TCP {
				q.States = sockdiag.Listening
			}
			sockets, err := sockdiag.List(t.Context(), q)
			if err != nil || len(sockets) != 3 || len(s.Addresses()) != 1 || s.Relayed().Listeners[0].Sockets != 3 {
				t.Errorf("%d sockets on port %d, %v, addresses %q; want 3 and one", len(sockets), port, err, s.Addresses())
			}
			stop(t, s)
			if listens.Load() != 1 || closes.Load() != 1 {
				t.Errorf("%d events of listening and %d of closing, want one of each", listens.Load(), closes.Load())
			}
		})
	}
}

func TestARuleThatDoesNotGoWithItsPlaceIsRefused(t *testing.T) {
	tcp, udp := endpoints("127.0.0.1:1")[0], endpoints("udp://127.0.0.1:1")[0]
	two := forwardTo("127.0.0.1:2000-2001", tcp)
	two.Endpoints = append(two.Endpoints, endpoints("127.0.0.1:3000")...)
	poll := forwardTo("127.0.0.1:0", tcp)
	poll.Engine, poll.Forward.Faults = Poll, faults.Config{Loss: 0.5}
	for want, c := range map[string]Config{
		"needs a rule":             {Kind: "forward", Endpoints: endpoints("0")},
		"no target":                forwardTo("0"),
		"datagrams go on to udp":   forwardTo("udp://0", tcp),
		"not to udp":               forwardTo("0", udp),
		"a certificate":            forwardTo("tls://0", tcp),
		"a range of ports goes al": two,
		"the engine poll relays":   poll,
	} {
		s, err := Start(t.Context(), c)
		if err == nil {
			stop(t, s)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestANewRuleIsForNewConnections(t *testing.T) {
	first, second := neighbours(t, "tcp", 1), fivetuple.PortRange{}
	sayPort(t, "tcp", int(first.First))
	second = neighbours(t, "tcp", 1)
	sayPort(t, "tcp", int(second.First))
	at := func(r fivetuple.PortRange) fivetuple.Endpoint {
		return fivetuple.MustParseEndpoint("127.0.0.1:" + r.String())
	}
	s := start(t, forwardTo("127.0.0.1:0", at(first)))
	_, addr := address(t, s, 0)
	leadsTo := func(want fivetuple.PortRange) {
		t.Helper()
		b, err := io.ReadAll(dial(t, "tcp", addr))
		if err != nil || string(b) != want.String() {
			t.Errorf("it leads to %q, %v; want %s", b, err, want)
		}
	}
	leadsTo(first)
	if err := s.SetForward(relay.Config{Targets: []fivetuple.Endpoint{at(second)}}); err != nil {
		t.Fatal(err)
	}
	leadsTo(second)
	if err := s.SetForward(relay.Config{}); err == nil {
		t.Error("a rule without a target was taken")
	}
	faulty := relay.Config{Targets: []fivetuple.Endpoint{at(first)}, Faults: faults.Config{Delay: time.Second}}
	if err := s.SetForward(faulty); !errors.Is(err, ErrEngine) {
		t.Errorf("faults, which need another engine: %v", err)
	}
	leadsTo(second)
	s.SetLimits(stream.Limits{Deny: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return // it was reset before connect(2) was back
	}
	defer c.Close()
	if b, err := io.ReadAll(c); err == nil {
		t.Errorf("one who is denied got %q", b)
	}
}

func TestANewRuleReachesTheEngines(t *testing.T) {
	tcp, udp := echoAt(t, "127.0.0.1:0"), echoAt(t, "udp://127.0.0.1:0")
	s := start(t, forwardTo("127.0.0.1:0", tcp))
	if err := s.SetForward(relay.Config{Targets: []fivetuple.Endpoint{tcp}, ProxyVersion: 1}); err != nil {
		t.Fatal(err)
	}
	_, addr := address(t, s, 0)
	c := dial(t, "tcp", addr)
	c.SetDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, len("PROXY TCP4 "))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "PROXY TCP4 " {
		t.Errorf("the target echoes %q, %v; want a PROXY header", b, err)
	}
	u := start(t, forwardTo("udp://127.0.0.1:0", udp))
	if err := u.SetForward(relay.Config{Targets: []fivetuple.Endpoint{udp}, Faults: faults.Config{Delay: 200 * time.Millisecond}}); err != nil {
		t.Fatal(err)
	}
	_, addr, _ = strings.Cut(u.Addresses()[0], " ")
	began := time.Now()
	echoes(t, "udp", addr, "late")
	if took := time.Since(began); took < 400*time.Millisecond {
		t.Errorf("with a delay of 200 ms each way the answer took %v", took)
	}
}

func TestWhatIsRelayedCanBeSeen(t *testing.T) {
	c := forwardTo("127.0.0.1:0", echoAt(t, "127.0.0.1:0"))
	s := start(t, c)
	_, addr := address(t, s, 0)
	exchange(t, dial(t, "tcp", addr), "hello")
	r := s.Relayed()
	if r.Service != "f" || len(r.Upstreams[""]) != 1 || len(r.Pairs) != 1 || r.Pipes == nil || r.Datagrams != nil {
		t.Errorf("got %+v", r)
	}
	u := start(t, forwardTo("udp://127.0.0.1:0", echoAt(t, "udp://127.0.0.1:0")))
	_, addr, _ = strings.Cut(u.Addresses()[0], " ")
	exchange(t, dial(t, "udp", addr), "hello")
	r = u.Relayed()
	if len(r.Sessions) != 1 || r.Datagrams == nil || r.Pipes != nil {
		t.Errorf("got %+v", r)
	}
	if _, err := json.Marshal(r); err != nil {
		t.Error(err)
	}
	if e := start(t, Config{Kind: "echo", Endpoints: endpoints("127.0.0.1:0")}).Relayed(); len(e.Listeners) != 0 {
		t.Errorf("an echo service relays %+v", e)
	}
}

// busy is a connection or session that has something under way all the time.
func busy(t *testing.T, network, addr string) (finish func()) {
	t.Helper()
	c := dial(t, network, addr)
	exchange(t, c, "begin")
	over := make(chan struct{})
	failed := make(chan error, 1)
	go func() {
		for i := 0; ; i++ {
			select {
			case <-over:
				failed <- nil
				return
			default:
			}
			if err := tryExchange(c, fmt.Sprintf("%08d", i)); err != nil {
				failed <- fmt.Errorf("%s, exchange %d: %w", network, i, err)
				return
			}
		}
	}()
	return func() {
		t.Helper()
		close(over)
		if err := <-failed; err != nil {
			t.Error(err)
		}
		c.Close()
	}
}

func TestASuccessorGoesOnRelaying(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		t.Run(network, func(t *testing.T) {
			control := filepath.Join(t.TempDir(), "control")
			c := forwardTo(network+"://127.0.0.1:0", echoAt(t, network+"://127.0.0.1:0"))
			c.Loops = 2
			s, ctl, err := Succeed(t.Context(), c, control)
			if err != nil {
				t.Fatal(err)
			}
			_, addr, _ := strings.Cut(s.Addresses()[0], " ")
			var finish []func()
			for range 20 {
				finish = append(finish, busy(t, network, addr))
			}
			for range 3 {
				next, ctl2, err := Succeed(t.Context(), c, control)
				if err != nil {
					t.Fatal(err)
				}
				<-ctl.HandedOver()
				ctl.Close()
				stop(t, s)
				s, ctl = next, ctl2
				echoes(t, network, addr, "new")
				if r := s.Relayed(); len(r.Pairs)+len(r.Sessions) < 20 {
					t.Errorf("the successor has %d pairs and %d sessions, want 20", len(r.Pairs), len(r.Sessions))
				}
			}
			for _, f := range finish {
				f()
			}
			ctl.Close()
			stop(t, s)
		})
	}
}

// together starts services as a group.
func together(t *testing.T, path string, configs ...Config) (all []*Service, control *Control, err error) {
	t.Helper()
	from, err := TakeOver(t.Context(), path)
	if err != nil {
		return nil, nil, err
	}
	defer from.Close()
	for _, c := range configs {
		s, err := from.Open(t.Context(), c)
		if err != nil {
			return nil, nil, err
		}
		all = append(all, s)
	}
	if err := from.Commit(); err != nil {
		return nil, nil, err
	}
	ln, err := from.Listener()
	if err != nil {
		t.Fatal(err)
	}
	return all, groupOf(t, all).Await(ln), nil
}

func groupOf(t *testing.T, all []*Service) Group {
	return Group{HandOver: func(give func([]*Service) error) error { return give(all) }, Failed: func(err error) { t.Log(err) }}
}

func TestServicesAreHandedOverTogether(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control")
	chat := Config{Kind: "echo", Name: "e", Endpoints: endpoints("127.0.0.1:0", "udp://127.0.0.1:0")}
	rule := forwardTo("127.0.0.1:0", echoAt(t, "127.0.0.1:0"))
	first := Config{Kind: "discard", Name: "first", Endpoints: endpoints("127.0.0.1:0")}
	old, ctl, err := Succeed(t.Context(), first, path)
	if err != nil {
		t.Fatal(err)
	}
	// A group takes over from one, and adds to it.
	a, ctlA, err := together(t, path, chat, first, rule)
	if err != nil {
		t.Fatal(err)
	}
	<-ctl.HandedOver()
	ctl.Close()
	stop(t, old)
	if !slices.Equal(a[1].Addresses(), old.Addresses()) {
		t.Errorf("at %q, want %q", a[1].Addresses(), old.Addresses())
	}
	_, echo := address(t, a[0], 0)
	_, through := address(t, a[2], 0)
	inEcho, inRelay := dial(t, "tcp", echo), dial(t, "tcp", through)
	exchange(t, inEcho, "1")
	exchange(t, inRelay, "1")

	// One that does not know all of them is refused, and nothing is lost.
	for want, configs := range map[string][]Config{
		`serves "f", too`: {chat, first},
		`serves "first",`: {rule, chat},
		"serves echo":     {{Kind: "chat", Name: "e", Endpoints: chat.Endpoints}, first, rule},
		"two services":    {chat, chat},
	} {
		if _, _, err := together(t, path, configs...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
		exchange(t, inEcho, "2")
		exchange(t, inRelay, "2")
	}

	b, ctlB, err := together(t, path, rule, chat, first)
	if err != nil {
		t.Fatal(err)
	}
	<-ctlA.HandedOver()
	ctlA.Close()
	for _, s := range a {
		stop(t, s)
	}
	exchange(t, inEcho, "3")
	exchange(t, inRelay, "3")
	echoes(t, "tcp", echo, "new")
	echoes(t, "tcp", through, "new")
	ctlB.Close()
	inRelay.Close() // it would be waited for
	for _, s := range b {
		stop(t, s)
	}
}

func TestARelayedConnectionOfGoroutinesStaysUntilItEnds(t *testing.T) {
	control := filepath.Join(t.TempDir(), "control")
	c := forwardTo("127.0.0.1:0", echoAt(t, "127.0.0.1:0"))
	c.Engine = Goroutines
	old, ctl, err := Succeed(t.Context(), c, control)
	if err != nil {
		t.Fatal(err)
	}
	_, addr := address(t, old, 0)
	conn := dial(t, "tcp", addr)
	exchange(t, conn, "before")
	successor, ctl2, err := Succeed(t.Context(), c, control)
	if err != nil {
		t.Fatal(err)
	}
	<-ctl.HandedOver()
	ctl.Close()
	exchange(t, conn, "after")
	conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := old.Drain(ctx); err != nil {
		t.Error(err)
	}
	stop(t, old)
	echoes(t, "tcp", addr, "new")
	ctl2.Close()
	stop(t, successor)
}

func TestARangeThatGrowsKeepsWhatItHas(t *testing.T) {
	control := filepath.Join(t.TempDir(), "control")
	ports := neighbours(t, "tcp", 3)
	c := forwardTo(fmt.Sprintf("127.0.0.1:%d-%d", ports.First, ports.First+1), echoAt(t, "127.0.0.1:0"))
	old, ctl, err := Succeed(t.Context(), c, control)
	if err != nil {
		t.Fatal(err)
	}
	wider := c
	wider.Endpoints = endpoints("127.0.0.1:" + ports.String())
	var bound []string
	wider.Bind = func(ctx context.Context, e fivetuple.Endpoint, bind func(context.Context, fivetuple.Endpoint) error) error {
		bound = append(bound, e.String())
		return bind(ctx, e)
	}
	successor, ctl2, err := Succeed(t.Context(), wider, control)
	if err != nil {
		t.Fatal(err)
	}
	<-ctl.HandedOver()
	ctl.Close()
	stop(t, old)
	if len(successor.Addresses()) != 3 || !slices.Equal(bound, []string{fmt.Sprintf("127.0.0.1:%d", ports.Last)}) {
		t.Errorf("at %q, of which it opened %q", successor.Addresses(), bound)
	}
	ctl2.Close()
	stop(t, successor)
}

func TestIdsGoOnAtASuccessor(t *testing.T) {
	for _, engine := range []Engine{Poll, Goroutines} {
		control := filepath.Join(t.TempDir(), "control")
		ids := make(chan uint64, 8)
		c := Config{Kind: "echo", Engine: engine, Endpoints: endpoints("127.0.0.1:0"), Sink: stats.SinkFunc(func(e stats.Event) {
			if e.Kind == stats.Accept {
				ids <- e.Conn
			}
		})}
		old, ctl, err := Succeed(t.Context(), c, control)
		if err != nil {
			t.Fatal(err)
		}
		_, addr := address(t, old, 0)
		echoes(t, "tcp", addr, "1")
		echoes(t, "tcp", addr, "2")
		successor, ctl2, err := Succeed(t.Context(), c, control)
		if err != nil {
			t.Fatal(err)
		}
		<-ctl.HandedOver()
		ctl.Close()
		stop(t, old)
		echoes(t, "tcp", addr, "3")
		if got := []uint64{<-ids, <-ids, <-ids}; !slices.Equal(got, []uint64{1, 2, 3}) {
			t.Errorf("%v: ids are %d, want 1, 2, 3", engine, got)
		}
		ctl2.Close()
		stop(t, successor)
	}
}
