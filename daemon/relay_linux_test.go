package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/ancillary"
	"github.com/fivetuple/fivetuple/port/lease"
	"github.com/fivetuple/fivetuple/service"
)

// echoTarget is an echo daemon of its own, at an address.
func echoTarget(t *testing.T, scheme string) string {
	t.Helper()
	d := start(t, "services: [{name: e, listen: '"+scheme+"://127.0.0.1:0'}]", Options{})
	return d.Addresses()["e"]
}

// busyClient is one that has something under way all the time.
func busyClient(t *testing.T, network, address string) (finish func()) {
	t.Helper()
	c := dial(t, network, address)
	echoes(t, c, "begin")
	over, failed := make(chan struct{}), make(chan error, 1)
	go func() {
		for i := 0; ; i++ {
			select {
			case <-over:
				failed <- nil
				return
			default:
			}
			c.SetDeadline(time.Now().Add(10 * time.Second))
			if err := tryEcho(c, fmt.Sprintf("%08d", i)); err != nil {
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

func TestReloadsUnderLoadAreNotNoticed(t *testing.T) {
	target, udp := echoTarget(t, "tcp"), echoTarget(t, "udp")
	config := func(changing string) string {
		return fmt.Sprintf(`
services:
  - {name: stays, listen: 0, kind: forward, to: ['%s']}
  - {name: udp, listen: 'udp://0', kind: forward, to: ['%s']}
  - {name: echo, listen: 0}
  - %s
drain: 1s`, target, udp, changing)
	}
	changes := []string{
		"{name: c, listen: 0, kind: forward, to: ['" + target + "']}",
		"{name: c, listen: 0, kind: forward, to: ['127.0.0.1:1', '" + target + "'], balance: least-connections}",
		"{name: c, listen: 0, kind: forward, to: ['" + target + "'], faults: {delay: 1ms}}",
		"{name: d, listen: 0, kind: discard}",
	}
	d := start(t, config(changes[0]), Options{})
	at := d.Addresses()
	var finish []func()
	for range 10 {
		finish = append(finish, busyClient(t, "tcp", at["stays"]), busyClient(t, "udp", at["udp"]), busyClient(t, "tcp", at["echo"]))
	}
	for i := range 100 {
		if err := d.Reload(t.Context(), parse(t, config(changes[i%len(changes)]))); err != nil {
			t.Fatal(err)
		}
		if c := d.Addresses()["c"]; c != "" {
			echoes(t, dial(t, "tcp", c), "new")
		}
	}
	for _, f := range finish {
		f()
	}
	after := d.Addresses()
	for _, name := range []string{"stays", "udp", "echo"} {
		if after[name] != at[name] {
			t.Errorf("%s went from %s to %s", name, at[name], after[name])
		}
	}
}

func TestAReloadedRuleIsForNewConnections(t *testing.T) {
	first, second := echoTarget(t, "tcp"), start(t, "services: [{name: e, listen: 0, kind: daytime}]", Options{}).Addresses()["e"]
	config := "services: [{name: f, listen: 0, kind: forward, to: ['%s']}]"
	d := start(t, fmt.Sprintf(config, first), Options{})
	at := d.Addresses()["f"]
	old := dial(t, "tcp", at)
	echoes(t, old, "before")
	if err := d.Reload(t.Context(), parse(t, fmt.Sprintf(config, second))); err != nil {
		t.Fatal(err)
	}
	echoes(t, old, "after")
	if b, err := io.ReadAll(dial(t, "tcp", at)); err != nil || len(b) < 20 {
		t.Errorf("daytime answered %q, %v", b, err)
	}
}

// lastRange is the last port that rangeOf gave.
var lastRange atomic.Uint32

// rangeOf are n ports in a row that are free: the lab has none but those of the tests,
// and no connection leaves from below 32768.
func rangeOf(t *testing.T, n int) fivetuple.PortRange {
	t.Helper()
	last := uint16(20000 + lastRange.Add(uint32(n)))
	return fivetuple.PortRange{First: last - uint16(n-1), Last: last}
}

func TestEveryPortOfARangeIsLeasedAndGivenBack(t *testing.T) {
	target, ports := echoTarget(t, "tcp"), rangeOf(t, 3)
	config := fmt.Sprintf("services: [{name: r, listen: '127.0.0.1:%s', kind: forward, to: ['%s']}]", ports, target)
	registry := lease.NewMemory()
	d := start(t, config, Options{Leases: registry})
	if at := d.Addresses()["r"]; at != "127.0.0.1:"+ports.String() {
		t.Errorf("it is at %s, want 127.0.0.1:%s", at, ports)
	}
	leases, err := registry.List(t.Context())
	if err != nil || len(leases) != 3 || leases[2].Port != ports.Last || leases[2].Name != "r" {
		t.Errorf("leases are %v, %v", leases, err)
	}
	if err := d.Reload(t.Context(), Config{}); err != nil {
		t.Fatal(err)
	}
	if leases, _ := registry.List(t.Context()); len(leases) != 0 {
		t.Errorf("leases left: %v", leases)
	}

	// A port of it that is taken leaves nothing behind.
	ln, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", ports.Last))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if err := d.Reload(t.Context(), parse(t, config)); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("got %v", err)
	}
	if leases, _ := registry.List(t.Context()); len(leases) != 0 {
		t.Errorf("leases left: %v", leases)
	}
}

func TestUDPRelaysAreKnownAsServices(t *testing.T) {
	d := start(t, "services: [{name: f, listen: 'udp://0', kind: forward, to: ['"+echoTarget(t, "udp")+"']}]", Options{})
	if from := netip.MustParseAddrPort(d.Addresses()["f"]); !d.isOwnUDP(from) {
		t.Errorf("an echo service would answer %s for ever", from)
	}
}

// startAt starts a daemon that takes over from the one at a control socket.
func startAt(t *testing.T, control, config string, o Options) (*Daemon, error) {
	t.Helper()
	o.Handoff = control
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return Start(t.Context(), parse(t, config), o)
}

func stop(t *testing.T, d *Daemon) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	d.Stop(ctx)
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

func registry(t *testing.T) *lease.Shared {
	t.Helper()
	ports, err := lease.Open(t.Context(), filepath.Join(t.TempDir(), "ports.db"), lease.Options{Claims: "none"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ports.Close() })
	return ports
}

func TestASuccessorHasEverythingAndItsLeases(t *testing.T) {
	tcp, udp := echoTarget(t, "tcp"), echoTarget(t, "udp")
	dir := t.TempDir()
	control := filepath.Join(dir, "control")
	config := fmt.Sprintf(`
services:
  - {name: tcp, listen: 0, kind: forward, to: ['%s']}
  - {name: udp, listen: 'udp://0', kind: forward, to: ['%s']}
  - {name: echo, listen: 0}
  - {name: unix, listen: 'unix://%s/s'}
`, tcp, udp, dir)
	ports := registry(t)
	d, err := startAt(t, control, config, Options{Leases: ports})
	if err != nil {
		t.Fatal(err)
	}
	at := d.Addresses()
	var finish []func()
	for range 5 {
		finish = append(finish, busyClient(t, "tcp", at["tcp"]), busyClient(t, "udp", at["udp"]), busyClient(t, "tcp", at["echo"]), busyClient(t, "unix", at["unix"]))
	}
	for round := range 3 {
		more := config + fmt.Sprintf("  - {name: new%d, listen: 0}\n", round)
		before, err := ports.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		next, err := startAt(t, control, more, Options{Leases: ports})
		if err != nil {
			t.Fatal(err)
		}
		<-d.HandedOver()
		if err := d.Reload(t.Context(), Config{}); !errors.Is(err, ErrStopped) {
			t.Errorf("the predecessor reloads, with %v", err)
		}
		if err := d.Drain(t.Context()); err != nil {
			t.Error(err)
		}
		stop(t, d)
		after, err := ports.List(t.Context())
		if err != nil || len(after) != len(before)+1 {
			t.Errorf("leases before %v, after %v, %v", before, after, err)
		}
		for name, address := range at {
			if next.Addresses()[name] != address {
				t.Errorf("%s is at %s, and was at %s", name, next.Addresses()[name], address)
			}
		}
		echoes(t, dial(t, "tcp", next.Addresses()[fmt.Sprintf("new%d", round)]), "hello")
		echoes(t, dial(t, "tcp", at["tcp"]), "hello")
		echoes(t, dial(t, "unix", at["unix"]), "hello")
		if !next.isOwnUDP(netip.MustParseAddrPort(at["udp"])) {
			t.Error("the successor does not know its UDP port as one of a service")
		}
		d, config = next, more
	}
	for _, f := range finish {
		f()
	}
	stop(t, d)
	if left, _ := ports.List(t.Context()); len(left) != 0 {
		t.Errorf("leases left: %v", left)
	}
	for _, name := range []string{"s", "control"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			t.Errorf("%s is left", name)
		}
	}
}

func TestALeaseOfAPredecessorThatIsGoneIsTakenAnew(t *testing.T) {
	control := filepath.Join(t.TempDir(), "control")
	config := "services: [{name: a, listen: 0}]"
	d, err := startAt(t, control, config, Options{}) // with a registry of its own
	if err != nil {
		t.Fatal(err)
	}
	ports := registry(t)
	next, err := startAt(t, control, config, Options{Leases: ports})
	if err != nil {
		t.Fatal(err)
	}
	<-d.HandedOver()
	stop(t, d)
	leases, err := ports.List(t.Context())
	if err != nil || len(leases) != 1 || fmt.Sprint(leases[0].AddrPort()) != next.Addresses()["a"] || leases[0].Owner.PID != os.Getpid() {
		t.Errorf("leases %v, %v, want that of %s", leases, err, next.Addresses()["a"])
	}
	stop(t, next)
}

func TestASuccessorThatWouldLoseSomethingIsRefused(t *testing.T) {
	control := filepath.Join(t.TempDir(), "control")
	ports := registry(t)
	target := echoTarget(t, "tcp")
	config := "services: [{name: a, listen: 0}, {name: f, listen: 0, kind: forward, to: ['" + target + "']}]"
	d, err := startAt(t, control, config, Options{Leases: ports})
	if err != nil {
		t.Fatal(err)
	}
	c, f := dial(t, "tcp", d.Addresses()["a"]), dial(t, "tcp", d.Addresses()["f"])
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	busyPort := "{name: busy, listen: '" + ln.Addr().String() + "'}"
	for want, other := range map[string]string{
		"also runs f, which":     "services: [{name: new, listen: 0}, {name: a, listen: 0}]",
		"serves echo":            "services: [{name: new, listen: 0}, {name: a, listen: 0, kind: discard}]",
		"listens on 0, too":      strings.ReplaceAll(config, "listen: 0}", "listen: 'udp://0'}"),
		"address already in use": strings.TrimSuffix(config, "]") + ", {name: new, listen: 0}, " + busyPort + "]",
	} {
		if next, err := startAt(t, control, other, Options{Leases: ports}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
			if err == nil {
				stop(t, next)
			}
		}
		echoes(t, c, "still here")
		echoes(t, f, "still here")
		echoes(t, dial(t, "tcp", d.Addresses()["a"]), "new")
		if leases, err := ports.List(t.Context()); err != nil || len(leases) != 2 {
			t.Errorf("leases %v, %v, want two", leases, err)
		}
	}
	stop(t, d)
}

func TestSocketsThatWerePassedAreUsed(t *testing.T) {
	dir := t.TempDir()
	tcp, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	udp, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	local, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	wild, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	passed := func() (all []service.Socket) {
		for _, socket := range []any{tcp, udp, local, wild} {
			f, err := socket.(interface{ File() (*os.File, error) }).File()
			if err != nil {
				t.Fatal(err)
			}
			s, err := service.SocketOf(f)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, s)
		}
		return all
	}
	defer func() {
		for _, c := range []io.Closer{tcp, udp, local, wild} {
			c.Close()
		}
	}()
	_, port, _ := net.SplitHostPort(wild.Addr().String())
	config := fmt.Sprintf("services: [{name: t, listen: '%s'}, {name: u, listen: 'udp://%s'}, {name: x, listen: 'unix://%s/s'}, {name: w, listen: ':%s'}, {name: own, listen: 0}]",
		tcp.Addr(), udp.LocalAddr(), dir, port)
	ports := lease.NewMemory()
	d := start(t, config, Options{Sockets: passed(), Leases: ports})
	check := func() {
		t.Helper()
		echoes(t, dial(t, "tcp", tcp.Addr().String()), "1")
		echoes(t, dial(t, "udp", udp.LocalAddr().String()), "2")
		echoes(t, dial(t, "unix", filepath.Join(dir, "s")), "3")
		echoes(t, dial(t, "tcp", "127.0.0.1:"+port), "4")
		echoes(t, dial(t, "tcp", d.Addresses()["own"]), "5")
		if leases, err := ports.List(t.Context()); err != nil || len(leases) != 4 {
			t.Errorf("leases %v, %v, want four", leases, err)
		}
	}
	check()
	// A service that is replaced leaves the socket to the next.
	if err := d.Reload(t.Context(), parse(t, strings.ReplaceAll(config, "}", ", kind: discard}"))); err != nil {
		t.Fatal(err)
	}
	if err := d.Reload(t.Context(), parse(t, config)); err != nil {
		t.Fatal(err)
	}
	check()

	stray := passed()
	_, err = Start(t.Context(), parse(t, "services: [{name: own, listen: 0}]"), Options{Sockets: stray, Log: slog.New(slog.DiscardHandler)})
	if err == nil || !strings.Contains(err.Error(), "the socket of "+tcp.Addr().String()+" was passed, and no service listens there") {
		t.Errorf("got %v", err)
	}
	for _, s := range stray {
		if err := s.File.Close(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("a file was left open: %v", err)
		}
	}
}

func TestWhatIsRelayedCanBeAskedFor(t *testing.T) {
	dir := t.TempDir()
	target := echoTarget(t, "tcp")
	d := start(t, "services: [{name: f, listen: 0, kind: forward, to: ['"+target+"']}, {name: e, listen: 0}]", Options{})
	echoes(t, dial(t, "tcp", d.Addresses()["f"]), "hello")
	stale := filepath.Join(dir, "serve-1.sock")
	ln, err := net.Listen("unix", stale)
	if err != nil {
		t.Fatal(err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	ln.Close()
	os.WriteFile(filepath.Join(dir, "other-2.sock"), nil, 0o600) // not a socket, and nobody's business
	s, err := d.ServeControl(t.Context(), dir, "serve")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(stale); err == nil {
		t.Error("the socket of one that is gone is left")
	}
	if _, err := os.Lstat(filepath.Join(dir, "other-2.sock")); err != nil {
		t.Error(err)
	}
	paths, err := Controls(t.Context(), dir)
	want := filepath.Join(dir, fmt.Sprintf("serve-%d.sock", os.Getpid()))
	if err != nil || len(paths) != 1 || paths[0] != want {
		t.Fatalf("control sockets %q, %v; want %s", paths, err, want)
	}
	if info, err := os.Stat(want); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			b, err := AskControl(t.Context(), want)
			var got struct {
				Schema, PID int
				Services    []struct {
					Service string
					Pairs   []struct{ ID int }
				}
			}
			if err == nil {
				err = json.Unmarshal(b, &got)
			}
			if err != nil || got.Schema != 1 || got.PID != os.Getpid() || len(got.Services) != 1 || got.Services[0].Service != "f" || len(got.Services[0].Pairs) != 1 {
				t.Errorf("got %s, %v", b, err)
			}
		})
	}
	wg.Wait()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(want); err == nil {
		t.Error("the socket is left")
	}
	if _, err := AskControl(t.Context(), want); err == nil {
		t.Error("there is an answer after the end")
	}
}

func TestTheServiceManagerIsTold(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := Notify(Ready); err != nil {
		t.Errorf("without a manager: %v", err)
	}
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	for state, more := range map[string]string{Ready: fmt.Sprintf("MAINPID=%d", os.Getpid()), Reloading: "MONOTONIC_USEC=", Stopping: ""} {
		if err := Notify(state); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 256)
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, err := c.Read(b)
		first, second, _ := strings.Cut(string(b[:n]), "\n")
		if err != nil || first != state || !strings.HasPrefix(second, more) || (second == "") != (more == "") {
			t.Errorf("got %q, %v; want %s and %s", b[:n], err, state, more)
		}
	}
	c.Close()
	if err := Notify(Ready); err == nil {
		t.Error("a manager that is gone was told")
	}
}

func TestOnlyTheSameUserAndRootMayAsk(t *testing.T) {
	for uid, may := range map[uint32]bool{0: true, 1000: true, 1001: false, 65534: false} {
		if err := mayAsk(ancillary.Credentials{UID: uid}, 1000); (err == nil) != may {
			t.Errorf("user %d of a daemon of user 1000: %v", uid, err)
		}
	}
}
