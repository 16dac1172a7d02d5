// Package demo plays the network application in front of a reader: each step
// is done on real sockets, the kernel's own view of them is printed beside it,
// and what the step claims is checked against that view.
//
// The view comes from sock_diag(7): the demo needs Linux.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/daemon"
	"github.com/fivetuple/fivetuple/datagram"
	"github.com/fivetuple/fivetuple/scan"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/stream"
	"github.com/fivetuple/fivetuple/table"
)

// ErrDisagrees says that the kernel's view was not what the demo claimed.
var ErrDisagrees = errors.New("the kernel disagrees with the demo")

// patience is how long the demo waits for what should be there at once.
const patience = 3 * time.Second

// Options of a run.
type Options struct {
	Pause  time.Duration    // after each step, for a reader to follow
	Color  bool             // colour the output with ANSI sequences
	Socket sockopt.Settings // set on the services' sockets that have them
}

// play is a run of the demo.
type play struct {
	page
	ctx     context.Context
	o       Options
	dir     string // of the Unix socket and the history, removed at the end
	app     *daemon.Daemon
	tcp     netip.AddrPort
	udp     netip.AddrPort
	unix    fivetuple.Endpoint
	clients []*client
}

// Run plays the demo. The error wraps ErrDisagrees if the kernel's view was not
// as claimed.
func Run(ctx context.Context, w io.Writer, o Options) (err error) {
	dir, err := os.MkdirTemp("", "ft-demo-")
	if err != nil {
		return err
	}
	p := &play{page: page{w: &sink{w: w}, color: o.Color}, ctx: ctx, o: o, dir: dir}
	defer func() {
		err = errors.Join(err, p.end(), os.RemoveAll(dir))
	}()
	p.title("The network application, step by step, with the kernel's own view")
	for i, step := range []struct {
		name string
		do   func() error
	}{
		{"Listen: one socket for each service, on ports from the port manager", p.listen},
		{"Connect: the first client gets a socket of its own on each side", p.connectFirst},
		{"Send, and get it echoed", p.echo},
		{"Two more clients: four TCP sockets, one port", p.connectMore},
		{"Broadcast: the server speaks to all three", p.broadcast},
		{"Three UDP clients: still one UDP socket", p.udpClients},
		{"Scan: which ports are open around here?", p.scan},
		{"Cut: the server resets a connection, the client comes back", p.reconnect},
		{"A Unix socket: a path in the place of a port", p.unixClient},
		{"Shut down: sockets closed, ports given back", p.shutdown},
		{"Look back: statistics, history, ports", p.lookBack},
	} {
		p.step(i+1, step.name)
		if err := step.do(); err != nil {
			return fmt.Errorf("step %d: %w", i+1, err)
		}
		if p.w.err != nil { // nobody reads on
			return p.w.err
		}
		if !sleep(ctx, o.Pause) {
			return ctx.Err()
		}
	}
	return nil
}

func (p *play) listen() error {
	endpoint := func(s string) daemon.Endpoint { return daemon.Endpoint{Endpoint: fivetuple.MustParseEndpoint(s)} }
	p.unix = fivetuple.Endpoint{Network: fivetuple.Unix, Path: filepath.Join(p.dir, "echo.sock")}
	c := daemon.Config{Services: []daemon.Service{
		{Name: "tcp-echo", Kind: "echo", Listen: endpoint("127.0.0.1:0")},
		{Name: "udp-echo", Kind: "echo", Listen: endpoint("udp://127.0.0.1:0")},
		{Name: "unix-echo", Kind: "echo", Listen: daemon.Endpoint{Endpoint: p.unix}},
	}}
	err := c.AddOptions(p.o.Socket)
	if err != nil {
		return err
	}
	p.app, err = daemon.Start(p.ctx, c, daemon.Options{
		Log: slog.New(slog.DiscardHandler), HistoryPath: filepath.Join(p.dir, "history.db"),
	})
	if err != nil {
		return err
	}
	at := p.app.Addresses()
	p.tcp, p.udp = netip.MustParseAddrPort(at["tcp-echo"]), netip.MustParseAddrPort(at["udp-echo"])
	p.say("tcp-echo on %s, udp-echo on %s,", p.tcp, p.udp)
	p.say("unix-echo on %s", p.unix.Path)
	if _, err := p.kernel(p.onPort(fivetuple.TCP, p.tcp), "one TCP socket listens", count{fivetuple.StateListen: 1}); err != nil {
		return err
	}
	if _, err := p.kernel(p.onPort(fivetuple.UDP, p.udp), "one UDP socket is bound", count{fivetuple.StateClose: 1}); err != nil {
		return err
	}
	_, err = p.kernel(p.onPath(), "one Unix socket listens", count{fivetuple.StateListen: 1})
	return err
}

// client is a TCP client of the demo that keeps what it received.
type client struct {
	*stream.Client
	mu     sync.Mutex
	got    []byte
	change chan struct{}
}

func (p *play) connect() (*client, error) {
	c := &client{change: make(chan struct{}, 1)}
	notify := func() {
		select {
		case c.change <- struct{}{}:
		default:
		}
	}
	c.Client = &stream.Client{
		Endpoint: fivetuple.Endpoint{Network: fivetuple.TCP, Host: p.tcp.Addr().String()}.WithPort(p.tcp.Port()),
		Delay:    300 * time.Millisecond,
		OnData: func(b []byte) {
			c.mu.Lock()
			c.got = append(c.got, b...)
			c.mu.Unlock()
			notify()
		},
		OnPhase: func(fivetuple.Phase, error) { notify() },
	}
	p.clients = append(p.clients, c)
	if err := c.Connect(p.ctx); err != nil {
		return c, err
	}
	return c, p.awaitServed(len(p.clients))
}

// awaitServed waits until the server has so many connections: the kernel knows
// of their beginning and end before it does.
func (p *play) awaitServed(n int) error {
	for deadline := time.Now().Add(patience); len(p.app.Stream("tcp-echo").Conns()) != n; {
		if time.Now().After(deadline) {
			return fmt.Errorf("waited %v for the server to have %d connections", patience, n)
		}
		if !sleep(p.ctx, time.Millisecond) {
			return p.ctx.Err()
		}
	}
	return nil
}

// await waits until is true, looking again at every change.
func (c *client) await(ctx context.Context, what string, is func() bool) error {
	late := time.NewTimer(patience)
	defer late.Stop()
	for !is() {
		select {
		case <-c.change:
		case <-ctx.Done():
			return ctx.Err()
		case <-late.C:
			return fmt.Errorf("waited %v for %s", patience, what)
		}
	}
	return nil
}

func (c *client) awaitBytes(ctx context.Context, want string) error {
	return c.await(ctx, fmt.Sprintf("%q", want), func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return string(c.got) == want
	})
}

func (c *client) forget() {
	c.mu.Lock()
	c.got = nil
	c.mu.Unlock()
}

func (p *play) connectFirst() error {
	c, err := p.connect()
	if err != nil {
		return err
	}
	p.say("the client's five-tuple: %s", c.Tuple())
	p.say("the server's:            %s", c.Tuple().Reverse())
	rows, err := p.kernel(p.onPort(fivetuple.TCP, p.tcp), "the listener, and one connected socket", count{fivetuple.StateListen: 1, fivetuple.StateEstablished: 1})
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(rows, func(r table.Row) bool { return r.Tuple() == c.Tuple().Reverse() }) {
		return fmt.Errorf("%w: no socket is %v", ErrDisagrees, c.Tuple().Reverse())
	}
	return nil
}

const echoText = "hello, socket"

func (p *play) echo() error {
	c := p.clients[0]
	const text = echoText
	began := time.Now()
	if err := c.Send([]byte(text)); err != nil {
		return err
	}
	if err := c.awaitBytes(p.ctx, text); err != nil {
		return err
	}
	p.say("sent %q, got the same back after %s", text, stats.FormatDuration(time.Since(began)))
	c.forget()
	return p.kernelCounted(c, "client 1", len(text), len(text))
}

func (p *play) connectMore() error {
	for range 2 {
		if _, err := p.connect(); err != nil {
			return err
		}
	}
	_, err := p.kernel(p.onPort(fivetuple.TCP, p.tcp), "N clients, N + 1 sockets, one port", count{fivetuple.StateListen: 1, fivetuple.StateEstablished: 3})
	return err
}

func (p *play) broadcast() error {
	const text = "to all of you"
	n := p.app.Stream("tcp-echo").Broadcast([]byte(text))
	for i, c := range p.clients {
		if err := c.awaitBytes(p.ctx, text); err != nil {
			return fmt.Errorf("client %d: %w", i+1, err)
		}
		c.forget()
	}
	p.say("sent %q to %d connections, all three clients have it", text, n)
	for i, c := range p.clients {
		sent := 0
		if i == 0 {
			sent = len(echoText)
		}
		if err := p.kernelCounted(c, fmt.Sprintf("client %d", i+1), sent, sent+len(text)); err != nil {
			return err
		}
	}
	return nil
}

func (p *play) udpClients() error {
	for i := range 3 {
		text := fmt.Sprintf("datagram %d", i+1)
		from, err := p.udpRoundTrip(text)
		if err != nil {
			return err
		}
		p.say("%s sent %q and got it back", from, text)
	}
	_, err := p.kernel(p.onPort(fivetuple.UDP, p.udp), "N clients, one socket", count{fivetuple.StateClose: 1})
	return err
}

func (p *play) udpRoundTrip(text string) (from fivetuple.Address, err error) {
	e := fivetuple.Endpoint{Network: fivetuple.UDP, Host: p.udp.Addr().String()}.WithPort(p.udp.Port())
	got, failed := make(chan string, 1), make(chan error, 1)
	c := &datagram.Client{Endpoint: e,
		OnData:  func(b []byte, _ fivetuple.Address) { got <- string(b) },
		OnError: func(err error) { failed <- err },
	}
	if err := c.Connect(p.ctx); err != nil {
		return from, err
	}
	defer c.Close()
	from = c.Tuple().Local
	if err := c.Send([]byte(text)); err != nil {
		return from, err
	}
	select {
	case b := <-got:
		if b != text {
			return from, fmt.Errorf("sent %q, got %q back", text, b)
		}
		return from, nil
	case err := <-failed:
		return from, err
	case <-p.ctx.Done():
		return from, p.ctx.Err()
	case <-time.After(patience):
		return from, fmt.Errorf("no answer to %q within %v", text, patience)
	}
}

func (p *play) scan() error {
	first := p.tcp.Port() - 5
	around := fivetuple.PortRange{First: first, Last: uint16(min(int(first)+10, math.MaxUint16))}
	// Somebody else may begin or cease to listen here during the scan: look again.
	for try := 1; ; try++ {
		began := time.Now()
		open, closed, err := p.openPorts(around)
		if err != nil {
			return err
		}
		took := time.Since(began)
		listening, err := p.listening(around)
		if err != nil {
			return err
		}
		same := slices.Equal(open, listening) && slices.Contains(open, p.tcp.Port())
		if !same && try < 5 {
			continue
		}
		p.say("%s, ports %s in %s: open %v, %d closed", p.tcp.Addr(), around, stats.FormatDuration(took), open, closed)
		if !same {
			return fmt.Errorf("%w: the scan found %v open, and %v have listeners", ErrDisagrees, open, listening)
		}
		p.claim("just these ports have a listener in the kernel's table")
		return nil
	}
}

func (p *play) openPorts(r fivetuple.PortRange) (open []uint16, closed int, err error) {
	ports, err := scan.ParsePorts(r.String(), nil)
	if err != nil {
		return nil, 0, err
	}
	var s scan.Scanner
	for r, err := range s.Scan(p.ctx, []scan.Target{{First: p.tcp.Addr()}}, ports) {
		if err != nil {
			return nil, 0, err
		}
		switch r.State {
		case scan.Open:
			open = append(open, r.Port)
		case scan.Closed:
			closed++
		}
	}
	slices.Sort(open)
	return open, closed, nil
}

func (p *play) reconnect() error {
	c := p.clients[0]
	before := c.Tuple()
	if err := p.app.Stream("tcp-echo").Cut(1); err != nil {
		return err
	}
	began := time.Now()
	if err := c.await(p.ctx, "a new connection", func() bool {
		return c.Phase() == fivetuple.PhaseConnected && c.Tuple() != before
	}); err != nil {
		return err
	}
	if err := p.awaitServed(len(p.clients)); err != nil {
		return err
	}
	p.say("%s is gone; after %s the client is back", before.Local, stats.FormatDuration(time.Since(began)))
	p.say("with another five-tuple: %s", c.Tuple())
	_, err := p.kernel(p.onPort(fivetuple.TCP, p.tcp), "again one listener and three connections", count{fivetuple.StateListen: 1, fivetuple.StateEstablished: 3})
	return err
}

func (p *play) unixClient() error {
	const text = "hello, neighbour"
	got := make(chan string, 1)
	c := &stream.Client{Endpoint: p.unix, OnData: func(b []byte) { got <- string(b) }}
	if err := c.Connect(p.ctx); err != nil {
		return err
	}
	defer c.Close()
	if err := c.Send([]byte(text)); err != nil {
		return err
	}
	select {
	case b := <-got:
		if b != text {
			return fmt.Errorf("sent %q, got %q back", text, b)
		}
	case <-p.ctx.Done():
		return p.ctx.Err()
	case <-time.After(patience):
		return fmt.Errorf("no answer to %q within %v", text, patience)
	}
	p.say("sent %q, got the same back", text)
	_, err := p.kernel(p.onPath(), "one listens, one is connected", count{fivetuple.StateListen: 1, fivetuple.StateEstablished: 1})
	return err
}

func (p *play) shutdown() error {
	for _, c := range p.clients {
		c.Close()
	}
	if err := p.awaitServed(0); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	p.app.Stop(ctx)
	p.say("the clients have closed, the services are stopped")
	for _, left := range []struct {
		on string
		query
	}{
		{"TCP port", p.onPort(fivetuple.TCP, p.tcp)}, {"UDP port", p.onPort(fivetuple.UDP, p.udp)}, {"Unix path", p.onPath()},
	} {
		if _, err := p.kernel(left.query, "no socket is left on the "+left.on, count{}); err != nil {
			return err
		}
	}
	return nil
}

// end closes what a failed step has left open.
func (p *play) end() error {
	for _, c := range p.clients {
		c.Close()
	}
	if p.app == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	p.app.Stop(ctx)
	return p.app.Close()
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
