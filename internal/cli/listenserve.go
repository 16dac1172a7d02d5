package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/activation"
	"github.com/fivetuple/fivetuple/secure"
	"github.com/fivetuple/fivetuple/service"
	"github.com/fivetuple/fivetuple/stats"
)

// listenServe runs a service until ctx ends, it fails, or a successor takes it.
func (a *app) listenServe(ctx context.Context, p listenPlan) error {
	counters, err := a.prepare(&p)
	if err != nil {
		return err
	}
	began := time.Now()
	var s *service.Service
	var control *service.Control
	if p.handoff != "" {
		s, control, err = service.Succeed(ctx, p.config, p.handoff)
	} else {
		s, err = service.Start(ctx, p.config)
	}
	if err != nil {
		return err
	}
	a.announce(p, s)
	select {
	case <-ctx.Done():
	case err = <-s.Failed():
	case <-control.HandedOver():
		a.note("handed over to a successor; connections that it cannot take stay here until they end")
		s.Drain(ctx)
	}
	if control != nil {
		control.Close()
	}
	err = errors.Join(err, a.stopServing(p, s))
	a.noteTotals(counters, time.Since(began))
	return err
}

// prepare completes the configuration: sockets of systemd, and who is told.
func (a *app) prepare(p *listenPlan) (*stats.Counters, error) {
	passed, err := activation.Inherited()
	if err != nil {
		return nil, err
	}
	for _, s := range passed {
		socket, err := service.SocketOf(s.File)
		if err != nil {
			return nil, fmt.Errorf("socket %s that was passed: %w", s.Name, err)
		}
		if p.config.TLS != nil && socket.Endpoint.Network.Protocol() == fivetuple.TCP {
			socket.Endpoint.Network = fivetuple.TLS
		}
		p.config.Sockets = append(p.config.Sockets, socket)
	}
	if len(p.config.Endpoints)+len(p.config.Sockets) == 0 {
		return nil, usage("name an endpoint to listen on: ft listen 8080; see `ft listen --help`")
	}
	counters := &stats.Counters{}
	p.config.Sink = stats.Tee(counters, stats.SinkFunc(func(e stats.Event) { a.noteEvent(e, p.verbose) }))
	p.config.Stderr = a.err
	if p.verbose {
		p.config.Report = a.noteGranted
	}
	return counters, nil
}

func (a *app) announce(p listenPlan, s *service.Service) {
	for _, address := range s.Addresses() {
		a.note("listening on %s: %s", address, p.kind)
	}
	a.noteCertificate(p)
}

// noteCertificate prints by what clients can know a certificate made for this run.
func (a *app) noteCertificate(p listenPlan) {
	if !p.tls.SelfSigned {
		return
	}
	if leaf := p.config.TLS.Certificates[0].Leaf; leaf != nil {
		pin := secure.Fingerprint(leaf)
		a.note("certificate %s", pin)
		a.note("clients trust it by: ft connect --pin %s tls://...", pin)
	}
}

func (a *app) stopServing(p listenPlan, s *service.Service) error {
	bound := stopContext
	if p.worker {
		bound = workerStopContext
	}
	ctx, stop := bound(p.drain)
	defer stop()
	switch err := s.Shutdown(ctx); {
	case errors.Is(err, context.DeadlineExceeded):
		a.note("connections were reset, as they did not come to rest within %s", stats.FormatDuration(p.drain))
	case errors.Is(err, context.Canceled):
		a.note("connections were reset, as a second signal came")
	default:
		return err
	}
	return nil
}

// noteEvent tells of errors, and of every connection if verbose.
func (a *app) noteEvent(e stats.Event, verbose bool) {
	at := e.Time.Format("15:04:05.000")
	switch {
	case e.Kind == stats.Error:
		a.note("%s error%s: %s", at, socketOf(e), e.Err)
	case !verbose:
	case e.Kind == stats.Accept:
		who := ""
		if e.Peer != nil {
			who = " by " + e.Peer.String()
		}
		a.note("%s accept #%d%s%s", at, e.Conn, socketOf(e), who)
	case e.Kind == stats.Disconnect:
		text := fmt.Sprintf("%s end #%d%s: %s after %s, %s in, %s out", at, e.Conn, socketOf(e), e.Cause, stats.FormatDuration(e.Duration),
			stats.FormatBytes(e.BytesIn), stats.FormatBytes(e.BytesOut))
		if e.Err != "" && e.Err != e.Cause {
			text += ": " + e.Err
		}
		a.note("%s", text)
	}
}

func socketOf(e stats.Event) string {
	if e.Tuple == (fivetuple.Tuple{}) {
		return ""
	}
	return " " + e.Tuple.String()
}

// noteTotals sums up what was served.
func (a *app) noteTotals(c *stats.Counters, took time.Duration) {
	t := stats.Total(c.Snapshot())
	parts := []string{plural(int(t.Accepted), "connection"), stats.FormatBytes(t.BytesIn) + " in", stats.FormatBytes(t.BytesOut) + " out"}
	if t.Errors > 0 {
		parts = append(parts, plural(int(t.Errors), "error"))
	}
	a.note("served %s, in %s", strings.Join(parts, ", "), stats.FormatDuration(took))
}
