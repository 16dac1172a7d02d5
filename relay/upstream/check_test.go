package upstream

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/dial"
	"github.com/fivetuple/fivetuple/sockopt"
)

const often = 5 * time.Millisecond

// server accepts connections, and holds them until it is closed.
type server struct {
	net.Listener
	accepted atomic.Int64
	workers  sync.WaitGroup
}

// serve listens until the test ends or the server is closed. handle, if not nil, has
// each connection for as long as it likes.
func serve(t *testing.T, network, address string, handle func(net.Conn)) *server {
	t.Helper()
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{Listener: ln}
	s.workers.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			s.accepted.Add(1)
			s.workers.Go(func() {
				defer conn.Close()
				if handle != nil {
					handle(conn)
				}
			})
		}
	})
	t.Cleanup(s.stop)
	return s
}

func (s *server) stop() {
	s.Close()
	s.workers.Wait()
}

func (s *server) endpoint(network string) string {
	if network == "unix" {
		return "unix://" + s.Addr().String()
	}
	return network + "://" + s.Addr().String()
}

func stateOf(p *Pool, i int) Status { return p.Status()[i] }

func TestChecksFindWhatGoesAndComes(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			address, steady := "127.0.0.2:0", "127.0.0.3:0" // in the lab nobody else is there
			if network == "unix" {
				address, steady = filepath.Join(t.TempDir(), "a.sock"), filepath.Join(t.TempDir(), "b.sock")
			}
			server, other := serve(t, network, address, nil), serve(t, network, steady, nil)
			var told events
			p := newPool(t, Config{
				Targets: endpoints(server.endpoint(network), other.endpoint(network)), Sink: &told,
				Check: Check{Interval: often, Timeout: patience, Rise: 3, Fall: 4},
			})
			a := p.current.Load().addresses[0]
			until(t, "checks", func() bool { return server.accepted.Load() > 8 && other.accepted.Load() > 8 })
			wantShare(t, "while it listens", p, a, 5)
			told.want(t)
			place := server.Addr().String()
			server.stop()
			until(t, "the end is noticed", func() bool { return stateOf(p, 0).State == Bad })
			wantShare(t, "when it has gone", p, a, 0)
			s := stateOf(p, 0)
			if s.Reason == "" || s.Since.IsZero() || s.LastError == "" || s.LastFailure.IsZero() {
				t.Errorf("the status is %+v", s)
			}
			if got := len(way(p, "")); got != 2 {
				t.Errorf("%d addresses are tried, want the bad one, too", got)
			}
			until(t, "it is told", told.some)
			told.want(t, " is bad: checks found 4 failures in a row: connect ")
			server = serve(t, network, place, nil)
			until(t, "the return is noticed", func() bool { return stateOf(p, 0).State == Good })
			until(t, "three connections", func() bool { return server.accepted.Load() >= 3 })
			wantShare(t, "when it is back", p, a, 5)
			until(t, "it is told", told.some)
			told.want(t, " is good again, after ")
			p.Close()
			if s := stateOf(p, 0); s.State != Good || s.Opened != 0 || s.Connections != 0 {
				t.Errorf("checks count as connections, or Close changed the state: %+v", s)
			}
		})
	}
}

func TestRiseAndFall(t *testing.T) {
	_, a, _ := two(t, Config{})
	fail, local := errors.New("refused"), fmt.Errorf("connect: %w", syscall.EMFILE)
	c := Check{Rise: 2, Fall: 3}
	for i, step := range []struct {
		err error
		bad bool
	}{
		{fail, false}, {fail, false}, {nil, false}, {fail, false}, {fail, false}, {local, false}, {fail, true},
		{nil, true}, {fail, true}, {nil, true}, {local, true}, {nil, false}, {fail, false}, {local, false}, {local, false}, {local, false},
	} {
		text := a.checked(step.err, c)
		was := a.bad.Load()
		if was != step.bad {
			t.Fatalf("step %d: bad is %v, want %v", i, was, step.bad)
		}
		if changed := i == 6 || i == 11; changed != (text != "") {
			t.Errorf("step %d tells %q", i, text)
		}
	}
}

// certified is a TLS configuration for one name, and who trusts it.
func certified(t *testing.T, name string) (*tls.Config, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour),
		BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, roots
}

func TestCheckOfTLSShakesHands(t *testing.T) {
	config, roots := certified(t, "db.test")
	handshake := func(conn net.Conn) {
		conn.SetDeadline(time.Now().Add(patience))
		tls.Server(conn, config).Handshake()
	}
	s := serve(t, "tcp", "127.0.0.1:0", handshake)
	n := newNameServer("db.test", a(60, "127.0.0.1")...)
	n.set("web.test", a(60, "127.0.0.1")...)
	_, port, _ := net.SplitHostPort(s.Addr().String())
	for _, tt := range []struct {
		target string
		config *tls.Config
		says   string // "" is good
	}{
		{"tls://db.test:" + port, &tls.Config{RootCAs: roots}, ""},
		{"tls://web.test:" + port, &tls.Config{RootCAs: roots, ServerName: "db.test"}, ""},
		{"tls://web.test:" + port, &tls.Config{RootCAs: roots}, "web.test"},
		{"tls://127.0.0.1:" + port, &tls.Config{RootCAs: roots}, "127.0.0.1"},
		{"tls://db.test:" + port, nil, "self-signed and not trusted here"},
		{"tcp://db.test:" + port, nil, ""},
	} {
		told := &events{}
		p := resolvedPool(t, Config{
			Targets: endpoints(tt.target), DNS: n.pipe, Sink: told, Dialer: dial.Dialer{TLS: tt.config},
			Check: Check{Interval: often, Timeout: patience, Fall: 2},
		})
		if tt.says == "" {
			before := s.accepted.Load()
			until(t, "checks", func() bool { return s.accepted.Load() > before+4 })
			if got := stateOf(p, 0); got.State != Good || got.LastError != "" {
				t.Errorf("%s: %s, %s", tt.target, got.State, got.LastError)
			}
			p.Close()
			continue
		}
		until(t, tt.target+" is bad", func() bool { return stateOf(p, 0).State == Bad })
		if got := stateOf(p, 0).Reason; !strings.Contains(got, tt.says) {
			t.Errorf("%s: bad, as %s: want it to say %q", tt.target, got, tt.says)
		}
		p.Close()
	}
}

func TestFewChecksConnectAtOnce(t *testing.T) {
	var now, most atomic.Int64
	silent := func(conn net.Conn) { // until the other side gives the handshake up
		n := now.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		b := make([]byte, 1024)
		for err := error(nil); err == nil; {
			_, err = conn.Read(b)
		}
		now.Add(-1)
	}
	s := serve(t, "tcp", "0.0.0.0:0", silent)
	_, port, _ := net.SplitHostPort(s.Addr().String())
	var targets []string
	for i := range 3 * maxChecks {
		targets = append(targets, fmt.Sprintf("tls://127.0.1.%d:%s", i+1, port))
	}
	p := newPool(t, Config{Targets: endpoints(targets...), Check: Check{Interval: often, Timeout: time.Hour}})
	until(t, "as many checks as may be", func() bool { return now.Load() == maxChecks })
	other := serve(t, "tcp", "127.0.0.1:0", nil) // whose checks are not held up
	newPool(t, Config{Targets: endpoints(other.endpoint("tcp")), Check: Check{Interval: often, Timeout: patience}})
	until(t, "many checks of another pool", func() bool { return other.accepted.Load() > 10 })
	if most.Load() != maxChecks {
		t.Errorf("%d checks were connected at once, want %d", most.Load(), maxChecks)
	}
	p.Close() // and ends those under way
	until(t, "their end", func() bool { return now.Load() == 0 })
}

func TestCheckTimesOut(t *testing.T) {
	s := serve(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
		b := make([]byte, 1024)
		for err := error(nil); err == nil; {
			_, err = conn.Read(b)
		}
	})
	p := newPool(t, Config{
		Targets: endpoints(s.endpoint("tls")), Check: Check{Interval: often, Timeout: 20 * time.Millisecond, Fall: 1},
	})
	until(t, "a server that says nothing is bad", func() bool { return stateOf(p, 0).State == Bad })
	if got := stateOf(p, 0).Reason; !strings.Contains(got, "timed out") {
		t.Errorf("bad, as %s", got)
	}
	p.Close()
}

func TestCheckHasTheOptionsOfTheDialer(t *testing.T) {
	s := serve(t, "tcp", "127.0.0.1:0", nil)
	var options sockopt.Settings
	if err := options.Set("mss=700"); err != nil {
		t.Fatal(err)
	}
	granted := make(chan struct{}, 1)
	d := dial.Dialer{Options: options, Report: func([]sockopt.Granted) {
		select {
		case granted <- struct{}{}:
		default:
		}
	}}
	newPool(t, Config{Targets: endpoints(s.endpoint("tcp")), Dialer: d, Check: Check{Interval: often}})
	select {
	case <-granted:
	case <-time.After(patience):
		t.Error("no check set them")
	}
}

func TestAddressesThatComeAndGoAreCheckedAndNoMore(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(p *Pool, c Config, second *server) error
	}{
		{"another target", func(p *Pool, c Config, second *server) error {
			c.Targets = endpoints(second.endpoint("tcp"))
			return p.Set(c)
		}},
		{"another answer", func(p *Pool, _ Config, second *server) error {
			addr := fivetuple.AddressOf(second.Addr()).AddrPort.Addr()
			p.mu.Lock()
			defer p.mu.Unlock()
			p.take(p.targets[0], answer{addrs: []netip.Addr{addr}}, time.Now())
			return nil
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			marked := make(chan struct{})
			s1 := serve(t, "tcp", "127.0.0.2:0", func(conn net.Conn) {
				if n, _ := conn.Read(make([]byte, 1)); n > 0 {
					close(marked)
				}
			})
			_, port, _ := net.SplitHostPort(s1.Addr().String())
			s2 := serve(t, "tcp", "127.0.0.3:"+port, nil)
			n := newNameServer("db.test", a(600, "127.0.0.2")...)
			c := Config{Targets: endpoints("db.test:" + port), DNS: n.pipe, Check: Check{Interval: often, Timeout: patience}}
			p := resolvedPool(t, c)
			until(t, "checks of the first", func() bool { return s1.accepted.Load() > 2 })
			if err := tt.change(p, c, s2); err != nil {
				t.Fatal(err)
			}
			until(t, "checks of the second", func() bool { return s2.accepted.Load() > 2 })
			p.mu.Lock()
			checks := len(p.checks)
			p.mu.Unlock()
			if checks != 1 {
				t.Errorf("%d addresses are checked, want 1", checks)
			}
			// What waited to be accepted comes before this; and one check may have been under way.
			mark, err := net.Dial("tcp", s1.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer mark.Close()
			mark.Write([]byte("x"))
			<-marked
			before := s1.accepted.Load() + 1
			more := s2.accepted.Load() + 10
			until(t, "more checks of the second", func() bool { return s2.accepted.Load() > more })
			if got := s1.accepted.Load(); got > before {
				t.Errorf("the first was checked %d times after it was no target any more", got-before+1)
			}
		})
	}
}

func TestWithoutChecksNothingIsBad(t *testing.T) {
	gone := fivetuple.MustParseEndpoint("unix://" + filepath.Join(t.TempDir(), "gone.sock"))
	c := Config{Targets: []fivetuple.Endpoint{gone}, Check: Check{Interval: often, Fall: 1}}
	p := newPool(t, c)
	until(t, "bad", func() bool { return stateOf(p, 0).State == Bad })
	c.Check = Check{}
	if err := p.Set(c); err != nil {
		t.Fatal(err)
	}
	if s := stateOf(p, 0); s.State != Good {
		t.Errorf("when checks were switched off it is %s", s.State)
	}
}
