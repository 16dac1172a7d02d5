package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/secure"
	"github.com/fivetuple/fivetuple/sockdiag"
	"github.com/fivetuple/fivetuple/stream"
)

func endpoints(list ...string) (all []fivetuple.Endpoint) {
	for _, s := range list {
		all = append(all, fivetuple.MustParseEndpoint(s))
	}
	return all
}

func start(t *testing.T, c Config) *Service {
	t.Helper()
	s, err := Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, s) })
	return s
}

func stop(t *testing.T, s *Service) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Errorf("shutdown: %v", err)
	}
}

// address is where the nth socket of a service listens.
func address(t *testing.T, s *Service, n int) (network, addr string) {
	t.Helper()
	network, addr, ok := strings.Cut(s.Addresses()[n], " ")
	if !ok {
		t.Fatalf("address %q", s.Addresses()[n])
	}
	return map[string]string{"tls": "tcp", "seqpacket": "unixpacket"}[network] + strings.TrimPrefix(network, "tls"), addr
}

func echoes(t *testing.T, network, addr, text string) {
	t.Helper()
	c, err := net.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	io.WriteString(c, text)
	b := make([]byte, len(text))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != text {
		t.Errorf("%s %s answered %q, %v; want %q", network, addr, b, err, text)
	}
}

func TestOneServiceServesStreamsAndDatagrams(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s := start(t, Config{Kind: "echo", Endpoints: endpoints("127.0.0.1:0", "udp://127.0.0.1:0", "unix://"+path)})
	for n := range 3 {
		network, addr := address(t, s, n)
		if network == "" {
			network = strings.Fields(s.Addresses()[n])[0]
		}
		echoes(t, network, addr, "hello")
	}
}

func TestEventLoopsHaveASocketEachOnTheirPort(t *testing.T) {
	s := start(t, Config{Kind: "echo", Loops: 3, Endpoints: endpoints("127.0.0.1:0")})
	if len(s.Addresses()) != 1 {
		t.Errorf("addresses %q, want one", s.Addresses())
	}
	_, addr := address(t, s, 0)
	port := netip.MustParseAddrPort(addr).Port()
	sockets, err := sockdiag.List(t.Context(), sockdiag.Query{Protocols: []fivetuple.Network{fivetuple.TCP}, States: sockdiag.Listening, LocalPort: port})
	if err != nil || len(sockets) != 3 {
		t.Errorf("%d sockets listen on port %d, %v; want 3", len(sockets), port, err)
	}
}

func TestASecondServiceOnAPortIsRefusedThoughLoopsShareIt(t *testing.T) {
	s := start(t, Config{Kind: "echo", Loops: 2, Endpoints: endpoints("127.0.0.1:0")})
	_, addr := address(t, s, 0)
	if _, err := Start(t.Context(), Config{Kind: "echo", Loops: 2, Endpoints: endpoints(addr)}); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("got %v, want address already in use", err)
	}
}

func TestNothingIsServedIfOneSocketCannotBeOpened(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	path := filepath.Join(t.TempDir(), "s")
	if _, err := Start(t.Context(), Config{Kind: "echo", Endpoints: endpoints("unix://"+path, taken.Addr().String())}); err == nil {
		t.Error("a taken port was served")
	}
	if _, err := os.Lstat(path); err == nil {
		t.Error("the other socket was left behind")
	}
}

func TestWhatDoesNotGoTogetherIsRefused(t *testing.T) {
	allow := stream.Limits{Allow: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}
	for _, tt := range []struct {
		name string
		c    Config
		want string // "" for none
	}{
		{"unknown kind", Config{Kind: "ech", Endpoints: endpoints("0")}, `unknown kind "ech"`},
		{"no endpoint", Config{Kind: "echo"}, "no endpoint"},
		{"stdin", Config{Kind: "echo", Endpoints: endpoints("-")}, "no place to listen on"},
		{"exec for all", Config{Kind: "exec", Command: []string{"cat"}, Endpoints: endpoints("*:0")}, "would run the command"},
		{"exec for a network", Config{Kind: "exec", Command: []string{"cat"}, Endpoints: endpoints("*:0"), Limits: allow}, ""},
		{"exec on loopback", Config{Kind: "exec", Command: []string{"cat"}, Endpoints: endpoints("[::1]:0")}, ""},
		{"exec on a Unix socket", Config{Kind: "exec", Command: []string{"cat"}, Endpoints: endpoints("unix://@service-test-exec")}, ""},
		{"http over udp", Config{Kind: "http", Path: ".", Endpoints: endpoints("udp://0")}, "needs a stream"},
		{"tls without certificate", Config{Kind: "echo", Endpoints: endpoints("tls://0")}, "needs a certificate"},
		{"loops for exec", Config{Kind: "exec", Command: []string{"cat"}, Engine: Poll, Endpoints: endpoints("0")}, "the engine poll serves"},
		{"file that is not there", Config{Kind: "file", Path: "no-such-file", Endpoints: endpoints("0")}, "no-such-file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := Start(t.Context(), tt.c)
			if err == nil {
				defer stop(t, s)
			}
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestSocketsOpenAlreadyAreServed(t *testing.T) {
	dir := t.TempDir()
	tcp := listener(t, "tcp", "127.0.0.1:0")
	local := listener(t, "unix", filepath.Join(dir, "u"))
	records := listener(t, "unixpacket", filepath.Join(dir, "q"))
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	files := []*os.File{fileOf(t, tcp), fileOf(t, local), fileOf(t, records), fileOf(t, udp)}
	var sockets []Socket
	for i, want := range []fivetuple.Network{fivetuple.TCP, fivetuple.Unix, fivetuple.Seqpacket, fivetuple.UDP} {
		s, err := SocketOf(files[i])
		if err != nil || s.Endpoint.Network != want {
			t.Fatalf("got %v, %v; want %v", s.Endpoint, err, want)
		}
		sockets = append(sockets, s)
	}
	start(t, Config{Kind: "echo", Sockets: sockets})
	echoes(t, "tcp", tcp.Addr().String(), "one")
	echoes(t, "unix", local.Addr().String(), "two")
	echoes(t, "unixpacket", records.Addr().String(), "three")
	echoes(t, "udp", udp.LocalAddr().String(), "four")
}

func TestSocketOfRefusesWhatCannotBeServed(t *testing.T) {
	file, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	ln := listener(t, "tcp", "127.0.0.1:0")
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	connected := fileOf(t, conn)
	defer connected.Close()
	for want, f := range map[string]*os.File{"not a socket": file, "it does not listen": connected} {
		_, err := SocketOf(f)
		if err == nil {
			t.Errorf("want an error: %s", want)
		} else if want == "it does not listen" && err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func listener(t *testing.T, network, addr string) net.Listener {
	t.Helper()
	ln, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

func fileOf(t *testing.T, socket any) *os.File {
	t.Helper()
	f, err := socket.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestASuccessorHasSocketsAndConnections(t *testing.T) {
	dir := t.TempDir()
	control, path := filepath.Join(dir, "control"), filepath.Join(dir, "s")
	certificate, err := secure.Server{SelfSigned: true}.Config()
	if err != nil {
		t.Fatal(err)
	}
	c := Config{Kind: "echo", Loops: 2, TLS: certificate, Endpoints: endpoints("127.0.0.1:0", "unix://"+path, "udp://127.0.0.1:0")}
	old, oldControl, err := Succeed(t.Context(), c, control)
	if err != nil {
		t.Fatal(err)
	}
	_, tcp := address(t, old, 0)
	conn, err := net.Dial("tcp", tcp)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	say := func(text string) {
		t.Helper()
		conn.SetDeadline(time.Now().Add(5 * time.Second))
		fmt.Fprint(conn, text)
		b := make([]byte, len(text))
		if _, err := io.ReadFull(conn, b); err != nil || string(b) != text {
			t.Fatalf("got %q, %v; want %q", b, err, text)
		}
	}
	say("before")
	successor, control2, err := Succeed(t.Context(), c, control)
	if err != nil {
		t.Fatal(err)
	}
	<-oldControl.HandedOver()
	oldControl.Close()
	stop(t, old)
	say("after")
	if !slices.Equal(successor.Addresses(), old.Addresses()) {
		t.Errorf("the successor is at %q, want %q", successor.Addresses(), old.Addresses())
	}
	echoes(t, "tcp", tcp, "new connection")
	echoes(t, "unix", path, "unix")
	_, udp := address(t, successor, 2)
	echoes(t, "udp", udp, "datagram")
	control2.Close()
	stop(t, successor)
	for _, p := range []string{path, control} {
		if _, err := os.Lstat(p); err == nil {
			t.Errorf("%s was left behind", p)
		}
	}
}

func TestASuccessorThatDiffersIsRefusedAndNothingIsLost(t *testing.T) {
	control := filepath.Join(t.TempDir(), "control")
	old, oldControl, err := Succeed(t.Context(), Config{Kind: "echo", Endpoints: endpoints("127.0.0.1:0", "udp://127.0.0.1:0")}, control)
	if err != nil {
		t.Fatal(err)
	}
	defer stop(t, old)
	defer oldControl.Close()
	_, tcp := address(t, old, 0)
	for want, c := range map[string]Config{
		"serves echo":             {Kind: "discard", Endpoints: endpoints("127.0.0.1:0", "udp://127.0.0.1:0")},
		"listens on udp://127.0.": {Kind: "echo", Endpoints: endpoints("127.0.0.1:0")},
	} {
		_, _, err := Succeed(t.Context(), c, control)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
		echoes(t, "tcp", tcp, "still here")
	}
}

// successions starts a service, has another take it over, and returns both.
func successions(t *testing.T, c Config) (old, successor *Service) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "control")
	old, oldControl, err := Succeed(t.Context(), c, path)
	if err != nil {
		t.Fatal(err)
	}
	successor, control, err := Succeed(t.Context(), c, path)
	if err != nil {
		oldControl.Close()
		stop(t, old)
		t.Fatal(err)
	}
	<-oldControl.HandedOver()
	t.Cleanup(func() {
		oldControl.Close()
		control.Close()
		stop(t, old)
		stop(t, successor)
	})
	return old, successor
}

func TestHandingOverIsNoFailureOfAnyEngine(t *testing.T) {
	for _, engine := range []Engine{Poll, Goroutines} {
		old, _ := successions(t, Config{Kind: "echo", Engine: engine, Endpoints: endpoints("127.0.0.1:0", "udp://127.0.0.1:0")})
		old.served.Wait()
		select {
		case err := <-old.Failed():
			t.Errorf("%v: the predecessor failed: %v", engine, err)
		default:
		}
	}
}

func TestANamedServiceIsTakenOver(t *testing.T) {
	_, successor := successions(t, Config{Kind: "echo", Endpoints: endpoints("localhost:http-alt")})
	_, tcp := address(t, successor, 0)
	echoes(t, "tcp", tcp, "hello")
}

func TestTheFileOfASocketStaysAtItsSuccessorAndGoesWithIt(t *testing.T) {
	for _, network := range []string{"unix", "seqpacket", "unixgram"} {
		t.Run(network, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			old, successor := successions(t, Config{Kind: "echo", Endpoints: endpoints(network + "://" + path)})
			stop(t, old)
			if _, err := os.Lstat(path); err != nil {
				t.Error("the predecessor removed it")
			}
			stop(t, successor)
			if _, err := os.Lstat(path); err == nil {
				t.Error("the successor left it")
			}
		})
	}
}

func TestASuccessorThatGivesUpRemovesOnlyItsOwnFiles(t *testing.T) {
	dir := t.TempDir()
	control, shared, own := filepath.Join(dir, "c"), filepath.Join(dir, "shared"), filepath.Join(dir, "own")
	old, oldControl, err := Succeed(t.Context(), Config{Kind: "echo", Engine: Poll, Endpoints: endpoints("unix://" + shared)}, control)
	if err != nil {
		t.Fatal(err)
	}
	defer stop(t, old)
	defer oldControl.Close()
	conn, err := net.Dial("unix", shared)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.Write([]byte("x"))
	io.ReadFull(conn, make([]byte, 1)) // it is one of the connections
	c := Config{Kind: "echo", Engine: Goroutines, Endpoints: endpoints("unix://"+shared, "unix://"+own)}
	if _, _, err := Succeed(t.Context(), c, control); err == nil {
		t.Fatal("connections of event loops were taken over without them")
	}
	echoes(t, "unix", shared, "still here")
	if _, err := os.Lstat(own); err == nil {
		t.Error("the file of the socket that was opened in vain is left")
	}
}

func TestFilesGivenAreClosedThoughTheServiceCannotBe(t *testing.T) {
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Start(t.Context(), Config{Kind: "nothing", Sockets: []Socket{{endpoints("8080")[0], f}}}); err == nil {
		t.Fatal("an unknown kind was started")
	}
	if err := f.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("closing the file again gives %v, want %v", err, os.ErrClosed)
	}
}

func TestAConnectionThatCannotBeTakenOverStaysUntilItEnds(t *testing.T) {
	control := filepath.Join(t.TempDir(), "control")
	c := Config{Kind: "echo", Engine: Goroutines, Endpoints: endpoints("127.0.0.1:0")}
	old, oldControl, err := Succeed(t.Context(), c, control)
	if err != nil {
		t.Fatal(err)
	}
	defer stop(t, old)
	defer oldControl.Close()
	_, tcp := address(t, old, 0)
	conn, err := net.Dial("tcp", tcp)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	say := func(text string) {
		t.Helper()
		fmt.Fprint(conn, text)
		b := make([]byte, len(text))
		if _, err := io.ReadFull(conn, b); err != nil || string(b) != text {
			t.Fatalf("got %q, %v; want %q", b, err, text)
		}
	}
	say("before")
	successor, control2, err := Succeed(t.Context(), c, control)
	if err != nil {
		t.Fatal(err)
	}
	defer stop(t, successor)
	defer control2.Close()
	<-oldControl.HandedOver()
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := old.Drain(over); !errors.Is(err, context.Canceled) {
		t.Errorf("with a connection left Drain gives %v, want %v", err, context.Canceled)
	}
	say("after")
	conn.Close()
	if err := old.Drain(t.Context()); err != nil {
		t.Error(err)
	}
}
