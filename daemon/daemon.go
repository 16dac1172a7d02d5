// Package daemon runs services from a configuration: it takes their ports from
// a lease registry, starts them, records what happens on them, replaces them
// when the configuration changes, and stops them in order.
//
// A service manager can pass sockets ([Options.Sockets]) and be told how things stand
// ([Notify]); a new process can take over all services from a running one
// ([Options.Handoff]); what a daemon relays can be asked for ([AskControl]).
//
// It stands on package service and works wherever that does.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fivetuple/fivetuple/handoff"
	"github.com/fivetuple/fivetuple/history"
	"github.com/fivetuple/fivetuple/port"
	"github.com/fivetuple/fivetuple/port/lease"
	"github.com/fivetuple/fivetuple/service"
	"github.com/fivetuple/fivetuple/stats"
)

// Daemon runs the services of a configuration. Make one with [Start].
type Daemon struct {
	log      *slog.Logger
	leases   lease.Registry
	names    *port.Names
	sink     stats.Sink
	counters stats.Counters
	history  *history.DB      // nil if none is kept
	writer   *history.Writer  // likewise
	self     lease.Owner      // this process, where it matters
	passed   []*passed        // sockets that were open before the start
	control  *service.Control // nil if no successor can take over

	change  sync.Mutex      // held by Reload, by a hand-over, and by the beginning of Stop
	stopped bool            // nothing is started any more; guarded by change
	now     context.Context // ends when draining connections are to be reset
	reset   context.CancelFunc

	mu       sync.Mutex
	config   Config
	running  map[string]*running       // by service name
	ids      map[string]*atomic.Uint64 // of connections, by service name: they go on after a reload
	draining sync.WaitGroup
	retired  atomic.Int32   // how many services drain though the daemon goes on
	watching sync.WaitGroup // for services that end by themselves

	// udpPorts are those of the services: what comes from one is not answered, as
	// two echo services would go on for ever after one forged datagram.
	udpPorts sync.Map // of uint16
}

// ErrStopped is what Reload answers after Stop, or when a successor serves.
var ErrStopped = errors.New("the daemon is stopped")

// Options of a Daemon. The zero value works.
type Options struct {
	Log *slog.Logger // default slog.Default()
	// Leases is where services take their ports from, unless the configuration
	// says off; default a registry of this process.
	Leases lease.Registry
	// HistoryPath is where the history is kept unless the configuration names a
	// place. Without either none is kept.
	HistoryPath string
	// Sockets are open already. Each is used by the service that listens where it
	// does, and an error at the start if there is none. The files are the daemon's to close.
	Sockets []service.Socket
	// Handoff is the path of a control socket. If another daemon of this user
	// serves there, this one takes over its services: their sockets, leases, and what
	// event loops serve; connections that have goroutines stay there until they end.
	// Then, or if there is none, it waits there for its own successor.
	//
	// A service is the predecessor's if it has its name, kind and listen; others are
	// started. One that the predecessor has and this configuration has not is an error
	// that leaves everything as it was: reload the predecessor first, which drains it.
	Handoff string
}

// Start starts every service of the configuration. If one cannot start, those
// before it are stopped again, and the error says which, why, and for a busy
// port who holds it. A history that cannot be opened is an error too: events
// would be lost without anyone knowing.
func Start(ctx context.Context, c Config, o Options) (*Daemon, error) {
	d := &Daemon{log: o.Log, leases: o.Leases, running: make(map[string]*running), ids: make(map[string]*atomic.Uint64)}
	for _, s := range o.Sockets {
		d.passed = append(d.passed, &passed{Socket: s})
	}
	if err := c.check(); err != nil {
		d.closePassed()
		return nil, err
	}
	d.now, d.reset = context.WithCancel(context.Background())
	if d.log == nil {
		d.log = slog.Default()
	}
	if d.leases == nil || c.Leases.Off {
		d.leases = lease.NewMemory()
	}
	names, err := port.System()
	if err != nil {
		d.log.Warn("the names of services are IANA's only", "error", err)
	}
	d.names = names
	if err := d.openHistory(ctx, c.History, o.HistoryPath); err != nil {
		d.closePassed()
		return nil, err
	}
	d.sink = stats.Tee(&d.counters, stats.SinkFunc(d.logEvent))
	if d.writer != nil {
		d.sink = stats.Tee(d.sink, d.writer)
	}
	if err := d.startAll(ctx, c, o.Handoff); err != nil {
		d.Stop(canceled())
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// startAll starts every service, or takes it over from the daemon at a path.
func (d *Daemon) startAll(ctx context.Context, c Config, path string) (err error) {
	d.config = c
	var ln *handoff.Listener
	if path != "" {
		from, err := service.TakeOver(ctx, path)
		if err == nil {
			return d.takeOver(ctx, c, from)
		}
		if !errors.Is(err, handoff.ErrNobody) {
			return err
		}
		if ln, err = handoff.Listen(path); err != nil {
			return err
		}
	}
	for _, s := range c.Services {
		if err = d.start(ctx, s); err != nil {
			break
		}
	}
	if err == nil {
		err = d.checkPassed()
	}
	if ln == nil {
		return err
	}
	if err != nil {
		return errors.Join(err, ln.Close())
	}
	d.control = d.group().Await(ln)
	return nil
}

// canceled is a context for stopping what has just begun: nothing to drain.
func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

func (d *Daemon) openHistory(ctx context.Context, h History, path string) error {
	if h.Path != "" {
		path = h.Path
	}
	if h.Off || path == "" {
		return nil
	}
	o := history.Options{MaxAge: h.Keep.Duration, MaxBytes: h.MaxSize.Bytes, Log: d.log}
	if h.Keep.isOff() {
		o.MaxAge = -1
	}
	db, err := history.Open(ctx, path, o)
	if err != nil {
		return fmt.Errorf("%w (history: {off: true} in the configuration keeps none)", err)
	}
	if d.writer, err = db.Writer(); err != nil {
		return errors.Join(err, db.Close())
	}
	d.history = db
	return nil
}

// idsOf is where the connection ids of a service come from.
func (d *Daemon) idsOf(service string) *atomic.Uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ids[service] == nil {
		d.ids[service] = new(atomic.Uint64)
	}
	return d.ids[service]
}

// isOwnUDP says whether a datagram may come from a UDP service of this
// configuration, on this host or on another.
func (d *Daemon) isOwnUDP(from netip.AddrPort) bool {
	_, ok := d.udpPorts.Load(from.Port())
	return ok
}

// start starts one service and enters it among those running.
func (d *Daemon) start(ctx context.Context, s Service) error {
	r, err := d.open(ctx, s, nil)
	if err != nil {
		return fmt.Errorf("service %s: %w", s.Name, err)
	}
	d.enter(r)
	return nil
}

func (d *Daemon) enter(r *running) {
	s := &r.config
	d.mu.Lock()
	d.running[s.Name] = r
	d.mu.Unlock()
	d.log.Info("listening", "service", s.Name, "kind", s.Kind, "address", r.address)
}

// Reload goes over to another configuration. Services whose socket stays the
// same keep it and their connections and get the new limits and rule; those gone, or
// with another socket, stop listening and drain; new ones start. What fails is
// in the error, and the rest of the configuration is in force all the same.
// The settings of the history stay those of the start.
func (d *Daemon) Reload(ctx context.Context, c Config) error {
	if err := c.check(); err != nil {
		return err
	}
	d.change.Lock()
	defer d.change.Unlock()
	if d.stopped {
		return ErrStopped
	}
	gone, errs := d.adopt(c)
	for _, r := range gone {
		d.retire(r, c.DrainTime())
	}
	for _, s := range c.Services {
		if !d.runs(s.Name) {
			errs = append(errs, d.start(ctx, s))
		}
	}
	return errors.Join(errs...)
}

// adopt makes c the configuration, gives the services that stay their new
// limits and rules, and takes out and returns those that do not.
func (d *Daemon) adopt(c Config) (gone []*running, errs []error) {
	wanted := make(map[string]Service)
	for _, s := range c.Services {
		wanted[s.Name] = s
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.config.History != c.History {
		d.log.Warn("the new settings of the history take effect at the next start")
	}
	d.config = c
	for name, r := range d.running {
		if s, ok := wanted[name]; !ok || !r.config.sameSocket(s) {
			gone = append(gone, r)
			delete(d.running, name)
		} else if err := r.set(s); err != nil {
			errs = append(errs, err)
		}
	}
	return gone, errs
}

func (d *Daemon) runs(name string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.running[name] != nil
}

// DrainTime is how long connections may go on after the order to stop, by the
// configuration that is in force.
func (d *Daemon) DrainTime() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.config.DrainTime()
}

// retire drains a service in the background, and returns when it does not
// listen any more, so that its port is free.
func (d *Daemon) retire(r *running, drain time.Duration) {
	d.log.Info("stopped listening, draining", "service", r.config.Name)
	d.retired.Add(1)
	d.draining.Go(func() {
		defer d.retired.Add(-1)
		ctx, cancel := context.WithTimeout(d.now, drain)
		defer cancel()
		d.shutdown(ctx, r)
	})
	r.release(d)
}

// Stop stops every service: none accepts any more, and connections may come to
// rest until ctx ends, those of services retired before too. It returns when
// all are gone and the history is written.
func (d *Daemon) Stop(ctx context.Context) {
	defer context.AfterFunc(ctx, d.reset)()
	if d.control != nil {
		if err := d.control.Close(); err != nil {
			d.log.Warn("control socket", "error", err)
		}
	}
	d.change.Lock()
	d.stopped = true
	d.mu.Lock()
	all := d.running
	d.running = make(map[string]*running)
	d.mu.Unlock()
	for _, r := range all {
		d.draining.Go(func() {
			d.shutdown(d.now, r)
			r.release(d)
		})
	}
	d.change.Unlock()
	d.draining.Wait()
	d.watching.Wait()
	d.closePassed()
	d.reset()
	if d.writer == nil {
		return
	}
	// What went wrong was logged when it did; it is no reason to call the stop a failure.
	if err := d.writer.Close(); err != nil || d.writer.Lost() > 0 {
		d.log.Warn("the history is not complete", "lost", d.writer.Lost())
	}
}
