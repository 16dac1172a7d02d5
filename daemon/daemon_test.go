package daemon

import (
	"bytes"
	"context"
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
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/history"
	"github.com/fivetuple/fivetuple/internal/lab"
	"github.com/fivetuple/fivetuple/port/lease"
	"github.com/fivetuple/fivetuple/stats"
)

func TestMain(m *testing.M) {
	if os.Getenv("DAEMON_TEST_SERVE") != "" {
		serveUntilKilled()
		return
	}
	lab.Enter() // where no other program takes ports
	goleak.VerifyTestMain(m)
}

// start runs a configuration until the test ends, without a history unless o
// asks for one.
func start(t *testing.T, config string, o Options) *Daemon {
	t.Helper()
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	d, err := Start(t.Context(), parse(t, config), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		d.Stop(ctx)
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func parse(t *testing.T, config string) Config {
	t.Helper()
	c, err := ParseConfig([]byte(config))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func dial(t *testing.T, network, address string) net.Conn {
	t.Helper()
	c, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(10 * time.Second))
	return c
}

// firstRead connects and returns what the first read fails with. A server that
// resets at once may be seen by connect already.
func firstRead(address string) error {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	_, err = c.Read(make([]byte, 1))
	return err
}

func echoes(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if err := tryEcho(c, text); err != nil {
		t.Fatal(err)
	}
}

func tryEcho(c net.Conn, text string) error {
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

func TestTheThreeEchoServicesServeAndAreRecorded(t *testing.T) {
	dir := t.TempDir()
	c := DefaultConfig(dir)
	c.Services[0].Listen = Endpoint{fivetuple.MustParseEndpoint("127.0.0.1:0")}
	c.Services[1].Listen = Endpoint{fivetuple.MustParseEndpoint("udp://127.0.0.1:0")}
	path := filepath.Join(dir, "state", "history.db")
	d, err := Start(t.Context(), c, Options{Log: slog.New(slog.DiscardHandler), HistoryPath: path})
	if err != nil {
		t.Fatal(err)
	}
	at := d.Addresses()
	for name, network := range map[string]string{"tcp-echo": "tcp", "udp-echo": "udp", "unix-echo": "unix"} {
		c := dial(t, network, at[name])
		echoes(t, c, "hello")
		c.Close()
	}
	leases, err := d.Leases().List(t.Context())
	if err != nil || len(leases) != 2 || leases[0].Name != "tcp-echo" {
		t.Errorf("leases are %v, %v", leases, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	d.Stop(ctx)
	for _, s := range d.Counters() {
		if s.Service != "" && (s.BytesIn != 5 || s.BytesOut != 5) {
			t.Errorf("%s counted %d bytes in, %d out, want 5", s.Service, s.BytesIn, s.BytesOut)
		}
	}
	entries, err := d.Recent(t.Context(), 100)
	if err != nil || len(entries) != 12 { // listen, accept, disconnect, close of each
		t.Errorf("the history has %d entries, %v: %+v", len(entries), err, entries)
	}
	if left, _ := d.Leases().List(t.Context()); len(left) != 0 {
		t.Errorf("leases left: %v", left)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

func TestABusyPortNamesItsHolder(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	config := parse(t, fmt.Sprintf("services:\n  - {name: free, listen: 0}\n  - {name: busy, listen: '%s'}\n", ln.Addr()))
	_, err = Start(t.Context(), config, Options{Log: slog.New(slog.DiscardHandler)})
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), fmt.Sprintf("(pid %d,", os.Getpid())) || !strings.Contains(err.Error(), "service busy") {
		t.Errorf("got %v", err)
	}
}

func TestABusyUnixSocketNamesItsHolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, err = Start(t.Context(), parse(t, "services: [{listen: 'unix://"+path+"'}]"), Options{Log: slog.New(slog.DiscardHandler)})
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), fmt.Sprintf("(pid %d,", os.Getpid())) {
		t.Errorf("got %v", err)
	}
}

func TestReloadKeepsWhatIsUnchangedAndDrainsWhatIsGone(t *testing.T) {
	d := start(t, "services: [{name: stays, listen: 0}, {name: goes, listen: 0}, {name: changes, listen: 0}]", Options{})
	before := d.Addresses()
	stays, goes, changes := dial(t, "tcp", before["stays"]), dial(t, "tcp", before["goes"]), dial(t, "tcp", before["changes"])
	for _, c := range []net.Conn{stays, goes, changes} {
		echoes(t, c, "before")
	}
	err := d.Reload(t.Context(), parse(t, `
services:
  - {name: stays, listen: 0, limits: {per_source: 1}}
  - {name: changes, listen: 0, kind: discard}
  - {name: new, listen: 0}
drain: 5s`))
	if err != nil {
		t.Fatal(err)
	}
	echoes(t, stays, "after") // the connection lives
	if err := firstRead(before["stays"]); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the new limit is not in force: %v", err)
	}
	for _, c := range []net.Conn{goes, changes} {
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("a connection of a service that is gone: %v, want EOF", err)
		}
	}
	if _, err := net.Dial("tcp", before["goes"]); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the service that is gone still listens: %v", err)
	}
	after := d.Addresses()
	echoes(t, dial(t, "tcp", after["new"]), "new")
	if after["stays"] != before["stays"] || after["goes"] != "" {
		t.Errorf("addresses before %v, after %v", before, after)
	}
}

func TestReloadThatMovesAPortToAnotherServiceWorks(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	d := start(t, "services: [{name: a, listen: '"+addr+"'}]", Options{})
	c := dial(t, "tcp", addr)
	echoes(t, c, "a")
	if err := d.Reload(t.Context(), parse(t, "services: [{name: b, listen: '"+addr+"', kind: daytime}]")); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(dial(t, "tcp", addr)); err != nil || len(b) < 20 {
		t.Errorf("daytime answered %q, %v", b, err)
	}
}

func TestReloadAndStopDoNotWaitForAFullService(t *testing.T) {
	d := start(t, "services: [{name: full, listen: 0, limits: {connections: 1, per_source: off}}]", Options{})
	c := dial(t, "tcp", d.Addresses()["full"])
	echoes(t, c, "accepted")
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() { // busy until it is reset
		defer close(stopped)
		for tryEcho(c, "busy") == nil {
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	began := time.Now()
	if err := d.Reload(t.Context(), parse(t, "services: [{name: new, listen: 0}]\ndrain: 1m")); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("Reload took %v", took)
	}
	echoes(t, dial(t, "tcp", d.Addresses()["new"]), "x")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	began = time.Now()
	d.Stop(ctx)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("Stop took %v, though its context ended after 0.3 s", took)
	}
	close(stop)
	<-stopped
	if err := d.Reload(t.Context(), Config{}); !errors.Is(err, ErrStopped) {
		t.Errorf("Reload after Stop: %v", err)
	}
}

func TestReloadOfAUnixServiceKeepsItsPath(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	d := start(t, "services: [{name: u, listen: 'unix://"+path+"'}]", Options{})
	for _, kind := range []string{"daytime", "discard", "echo"} {
		if err := d.Reload(t.Context(), parse(t, "services: [{name: u, listen: 'unix://"+path+"', kind: "+kind+"}]")); err != nil {
			t.Fatal(err)
		}
		dial(t, "unix", path).Close()
	}
	echoes(t, dial(t, "unix", path), "still here")
}

func TestReloadsAtOnceLeaveOneOfEachService(t *testing.T) {
	d := start(t, "services: [{name: other, listen: 0}]", Options{})
	var wg sync.WaitGroup
	config, begin := parse(t, "services: [{name: a, listen: 0}]"), make(chan struct{})
	for range 50 {
		wg.Go(func() {
			<-begin
			if err := d.Reload(t.Context(), config); err != nil {
				t.Error(err)
			}
		})
	}
	close(begin)
	wg.Wait()
	if leases, err := d.Leases().List(t.Context()); err != nil || len(leases) != 1 {
		t.Errorf("leases are %v, %v", leases, err)
	}
}

func TestUDPServicesDoNotAnswerEachOther(t *testing.T) {
	d := start(t, "services: [{name: a, listen: 'udp://0'}, {name: b, listen: 'udp://0'}]", Options{})
	for name, at := range d.Addresses() {
		if from := netip.MustParseAddrPort(at); !d.isOwnUDP(from) {
			t.Errorf("%s at %s is not known as a service", name, at)
		}
		echoes(t, dial(t, "udp", at), "a client is answered")
	}
	if err := d.Reload(t.Context(), Config{}); err != nil {
		t.Fatal(err)
	}
	d.udpPorts.Range(func(port, _ any) bool {
		t.Errorf("port %v is still known after its service has gone", port)
		return true
	})
}

func TestConnectionIdsGoOnAfterAReload(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history.db")
	d := start(t, "services: [{name: a, listen: 0}]", Options{HistoryPath: path})
	for _, kind := range []string{"echo", "discard", "echo"} {
		if err := d.Reload(t.Context(), parse(t, "services: [{name: a, listen: 0, kind: "+kind+"}]")); err != nil {
			t.Fatal(err)
		}
		c := dial(t, "tcp", d.Addresses()["a"])
		io.WriteString(c, "1234567890")
		c.(*net.TCPConn).CloseWrite()
		io.ReadAll(c)
	}
	d.Stop(t.Context())
	if err := d.Reload(t.Context(), Config{}); !errors.Is(err, ErrStopped) {
		t.Errorf("Reload after Stop: %v", err)
	}
	db, err := history.OpenReadOnly(t.Context(), path, history.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	totals, err := db.Totals(t.Context(), history.Query{Services: []string{"a"}})
	if err != nil || len(totals) != 1 || totals[0].Connections != 3 || totals[0].BytesIn != 30 || totals[0].BytesOut != 20 {
		t.Errorf("the history's totals are %+v, %v; want 3 connections, 30 bytes in, 20 out", totals, err)
	}
}

func TestReloadReportsWhatFailsAndDoesTheRest(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	d := start(t, "services: [{name: a, listen: 0}]", Options{})
	err = d.Reload(t.Context(), parse(t, "services: [{name: a, listen: 0}, {name: busy, listen: '"+ln.Addr().String()+"'}, {name: c, listen: 0}]"))
	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("got %v", err)
	}
	if got := d.Names(); fmt.Sprint(got) != "[a c]" {
		t.Errorf("running are %v", got)
	}
}

func TestAHistoryThatCannotBeOpenedStopsTheStart(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "history.db")
	os.WriteFile(path, bytes.Repeat([]byte("not a database "), 1000), 0o600)
	_, err := Start(t.Context(), parse(t, "services: [{listen: 0}]"), Options{Log: slog.New(slog.DiscardHandler), HistoryPath: path})
	if !errors.Is(err, history.ErrDamaged) || !strings.Contains(err.Error(), "off: true") {
		t.Errorf("got %v", err)
	}
	d := start(t, "services: [{listen: 0}]\nhistory: {off: true}", Options{HistoryPath: path})
	if entries, err := d.Recent(t.Context(), 5); err != nil || entries != nil {
		t.Errorf("got %v, %v", entries, err)
	}
}

func TestErrorsAreLoggedAndConnectionsOnlyWhenAskedFor(t *testing.T) {
	for level, want := range map[slog.Level]string{slog.LevelInfo: "listening error", slog.LevelDebug: "listening accept error"} {
		var mu sync.Mutex
		var out bytes.Buffer
		log := slog.New(slog.NewTextHandler(writerFunc(func(b []byte) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			return out.Write(b)
		}), &slog.HandlerOptions{Level: level}))
		d := start(t, "services: [{name: a, listen: 0, limits: {per_source: 1}}]", Options{Log: log})
		echoes(t, dial(t, "tcp", d.Addresses()["a"]), "x")
		firstRead(d.Addresses()["a"])
		mu.Lock()
		text := out.String()
		mu.Unlock()
		for _, w := range []string{"listening", "accept", "error"} {
			if has := strings.Contains(text, "msg="+w); has != strings.Contains(want, w) {
				t.Errorf("at %v the log has %q: %v, want %q in\n%s", level, w, has, want, text)
			}
		}
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestFiveThousandConnectionsFromOneSourceAndSlowClientsDisturbNobody(t *testing.T) {
	many := 5000
	if raceEnabled {
		many = 1000
	}
	d := start(t, "services: [{name: e, listen: '*:0', limits: {connections: 6000, per_source: 4500}}]", Options{})
	_, port, _ := net.SplitHostPort(d.Addresses()["e"])
	server := "127.0.0.1:" + port
	good := dial(t, "tcp", server)
	from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}}
	refused := 0
	for i := range many {
		c, err := from.Dial("tcp", server)
		if errors.Is(err, syscall.ECONNRESET) { // refused before connect(2) was back
			refused++
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if i%100 != 0 {
			continue
		}
		go io.Copy(c, zeros{}) // never reads: blocks when every buffer is full
		began := time.Now()
		if err := tryEcho(good, "still there?"); err != nil {
			t.Fatalf("after %d connections: %v", i, err)
		}
		if d := time.Since(began); d > time.Second {
			t.Errorf("after %d connections the echo took %v", i, d)
		}
		other := dial(t, "tcp", server)
		echoes(t, other, "a new one")
		other.Close()
	}
	var s stats.ServiceCounters
	for _, row := range d.Counters() {
		if row.Service == "e" {
			s = row
		}
	}
	if want := 4500; many == 5000 && s.Live > uint64(want+2) {
		t.Errorf("%d live connections, want at most three quarters of 6000 from one source (%d refused)", s.Live, refused)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

func TestLeasesCanBeKeptFromOtherPrograms(t *testing.T) {
	for off, want := range map[bool]int{true: 0, false: 1} {
		ports := lease.NewMemory()
		start(t, fmt.Sprintf("services: [{listen: 0}]\nleases: {off: %v}", off), Options{Leases: ports})
		if leases, err := ports.List(t.Context()); err != nil || len(leases) != want {
			t.Errorf("off: %v: got %v, %v, want %d leases", off, leases, err, want)
		}
	}
}
