package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/daemon"
	"github.com/fivetuple/fivetuple/internal/printable"
	"github.com/fivetuple/fivetuple/relay/sessions"
	"github.com/fivetuple/fivetuple/relay/splice"
	"github.com/fivetuple/fivetuple/relay/upstream"
	"github.com/fivetuple/fivetuple/service"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stats"
)

func (a *app) forwardExplain() *cobra.Command {
	return &cobra.Command{
		Use:   "explain [CONN]",
		Short: "What running relays do, and which side is slow",
		Long: `explain asks the relays of this user, or for root of everybody, what they do: the
state of every target, the connections and UDP sessions, which engine serves each
and why, and who is waited for. With CONN, a number or an address, it tells of that
one alone, with both legs' round-trip times, retransmissions and limits.`,
		Example: `  ft forward explain
  ft forward explain 7
  ft forward explain 192.0.2.7 -o json`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usage("ft forward explain takes one connection, or none for all, not %d arguments", len(args))
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			which := ""
			if len(args) > 0 {
				which = args[0]
			}
			return a.runExplain(c.Context(), which)
		},
	}
}

// explained are the relays that answered.
type explained struct {
	Schema int                  `json:"schema"`
	Relays []daemon.Explanation `json:"relays"`
}

func (a *app) runExplain(ctx context.Context, which string) error {
	all, err := askRelays(ctx)
	if err != nil {
		return err
	}
	found := len(all.Relays) > 0
	if which != "" {
		found = all.keep(which)
	}
	switch a.format {
	case formatJSON:
		err = writeJSON(a.out, all, "\n")
	case formatNDJSON:
		for _, r := range all.Relays {
			err = errors.Join(err, writeJSON(a.out, r, "\n"))
		}
	case formatCSV:
		_, err = printRows(a, "", each(all.connections()), relayedColumns)
	default:
		err = a.printRelays(all, which != "")
	}
	switch {
	case err != nil:
		return err
	case !found && which != "":
		a.note("no relay has a connection %s", which)
		return answerIsNo
	case !found:
		a.note("no relay of this user runs; those with --workers cannot be asked")
		return answerIsNo
	}
	return nil
}

// askRelays asks every relay that has a control socket below the runtime directory.
// systemd gives each unit a directory of its own there.
func askRelays(ctx context.Context) (all explained, err error) {
	all = explained{Schema: schema, Relays: []daemon.Explanation{}}
	var dirs []string
	for _, pattern := range controlDirs() {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return all, err
		}
		dirs = append(dirs, found...)
	}
	var errs []error
	for _, dir := range dirs {
		paths, err := daemon.Controls(ctx, dir)
		if err != nil && dir == runtimeDir() {
			return all, err
		}
		for _, path := range paths {
			b, err := daemon.AskControl(ctx, path)
			var e daemon.Explanation
			if err == nil {
				err = json.Unmarshal(b, &e)
			}
			if err != nil {
				errs = append(errs, err)
				continue
			}
			if len(e.Services) > 0 {
				all.Relays = append(all.Relays, e)
			}
		}
	}
	return all, errors.Join(errs...)
}

// controlDirs are patterns of the directories with control sockets.
func controlDirs() []string {
	all := []string{runtimeDir(), filepath.Join(runtimeDir(), "*")}
	if os.Geteuid() == 0 {
		all = append(all, filepath.Join(os.TempDir(), "fivetuple-*"), "/run/user/*/fivetuple")
	}
	return all
}

// keep leaves the connections that are called so: by their number, the address of the
// client, or both addresses.
func (all *explained) keep(which string) (found bool) {
	id, _ := strconv.ParseUint(strings.TrimPrefix(which, "#"), 10, 64)
	is := func(n uint64, addresses ...string) bool {
		return n == id && id > 0 || slices.ContainsFunc(addresses, func(a string) bool {
			return a == which || strings.HasPrefix(a, which+":") || strings.HasPrefix(a, "["+which+"]:")
		})
	}
	for i := range all.Relays {
		for j := range all.Relays[i].Services {
			s := &all.Relays[i].Services[j]
			s.Pairs = slices.DeleteFunc(s.Pairs, func(p splice.Pair) bool { return !is(p.ID, p.Client.Remote.String()) })
			s.Flows = slices.DeleteFunc(s.Flows, func(p splice.Pair) bool { return !is(p.ID, p.Client.Remote.String()) })
			s.Sessions = slices.DeleteFunc(s.Sessions, func(s sessions.Session) bool { return !is(s.ID, s.Client.String()) })
			found = found || len(s.Pairs)+len(s.Flows)+len(s.Sessions) > 0
		}
	}
	return found
}

// relayed is a connection or session in a table.
type relayed struct {
	service, client, target, engine, state, slow string
	id                                           uint64
	up, down                                     uint64
	age, idle                                    time.Duration
}

func (all *explained) connections() (rows []relayed) {
	for _, r := range all.Relays {
		for i := range r.Services {
			rows = append(rows, connectionsOf(&r.Services[i])...)
		}
	}
	return rows
}

func connectionsOf(s *service.Relayed) (rows []relayed) {
	for _, p := range slices.Concat(s.Pairs, s.Flows) {
		rows = append(rows, relayed{
			service: s.Service, id: p.ID, client: p.Client.Remote.String(), target: p.Target, engine: enginesOf(&p), state: p.State,
			slow: p.Slow, up: p.Up.Bytes, down: p.Down.Bytes, age: seconds(p.Age), idle: seconds(p.Idle),
		})
	}
	for _, p := range s.Sessions {
		state := "awaits reply"
		if p.Replied {
			state = "replied"
		}
		rows = append(rows, relayed{
			service: s.Service, id: p.ID, client: p.Client.String(), target: p.Target, engine: "sessions", state: state,
			up: p.BytesIn, down: p.BytesOut, age: p.Age, idle: p.Quiet,
		})
	}
	slices.SortFunc(rows, func(a, b relayed) int { return cmp.Compare(a.id, b.id) })
	return rows
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func enginesOf(p *splice.Pair) string {
	if p.Up.Engine == p.Down.Engine {
		return p.Up.Engine
	}
	return p.Up.Engine + "/" + p.Down.Engine
}

var relayedColumns = []column[relayed]{
	{head: "id", right: true, text: func(r relayed) string { return strconv.FormatUint(r.id, 10) }},
	{head: "service", wide: true, text: func(r relayed) string { return r.service }},
	{head: "client", text: func(r relayed) string { return r.client }},
	{head: "target", text: func(r relayed) string { return r.target }},
	{head: "engine", text: func(r relayed) string { return r.engine }},
	{head: "state", text: func(r relayed) string { return r.state }},
	{head: "up", right: true, text: func(r relayed) string { return stats.FormatBytes(r.up) }, key: "bytes_up", value: func(r relayed) string { return strconv.FormatUint(r.up, 10) }},
	{head: "down", right: true, text: func(r relayed) string { return stats.FormatBytes(r.down) }, key: "bytes_down", value: func(r relayed) string { return strconv.FormatUint(r.down, 10) }},
	{head: "age", right: true, text: func(r relayed) string { return stats.FormatDuration(r.age) }, key: "age_s", value: func(r relayed) string { return strconv.FormatFloat(r.age.Seconds(), 'f', 3, 64) }},
	{head: "idle", right: true, text: func(r relayed) string { return stats.FormatDuration(r.idle) }, key: "idle_s", value: func(r relayed) string { return strconv.FormatFloat(r.idle.Seconds(), 'f', 3, 64) }},
	{head: "slow", text: func(r relayed) string { return r.slow }},
}

// printRelays prints each rule with its targets and connections, or all there is to
// know of the connections that are left.
func (a *app) printRelays(all explained, details bool) error {
	first := true
	for _, r := range all.Relays {
		for i := range r.Services {
			s := &r.Services[i]
			if details && len(s.Pairs)+len(s.Flows)+len(s.Sessions) == 0 {
				continue
			}
			if !first {
				fmt.Fprintln(a.out)
			}
			first = false
			var b strings.Builder
			writeService(&b, r.PID, s)
			if details {
				for _, p := range slices.Concat(s.Pairs, s.Flows) {
					writePair(&b, &p)
				}
			}
			for line := range strings.Lines(b.String()) { // a socket may not be a relay's
				if _, err := fmt.Fprintln(a.out, printable.Escape(strings.TrimSuffix(line, "\n"))); err != nil {
					return err
				}
			}
			rows := connectionsOf(s)
			if len(rows) == 0 {
				continue
			}
			if _, err := printRows(a, "", each(rows), relayedColumns); err != nil {
				return err
			}
		}
	}
	return nil
}

// writeService writes what there is to know of a rule.
func writeService(b *strings.Builder, pid int, s *service.Relayed) {
	fmt.Fprintf(b, "%s (pid %d)\n", s.Service, pid)
	for _, l := range s.Listeners {
		fmt.Fprintf(b, "  listens on %s with %s, engine %s\n", l.Address, plural(l.Sockets, "socket"), l.Engine)
	}
	for _, name := range slices.Sorted(maps.Keys(s.Upstreams)) {
		for _, t := range s.Upstreams[name] {
			fmt.Fprintf(b, "  target %s\n", describeTarget(name, &t))
		}
	}
	if p := s.Pipes; p != nil && p.PipeSize > 0 {
		fmt.Fprintf(b, "  pipes %d of at most %d, %s each", p.Pipes, p.PipesMost, stats.FormatBytes(uint64(p.PipeSize)))
		if p.Fallbacks > 0 {
			fmt.Fprintf(b, "; copied %d times for want of one", p.Fallbacks)
		}
		b.WriteString("\n")
	}
	if d := s.Datagrams; d != nil {
		fmt.Fprintf(b, "  %s of at most %d; GSO %s; GRO %s\n", plural(d.Sessions, "session"), d.MaxSessions, d.GSO, d.GRO)
		if d.Dropped+d.Refused+d.Cut > 0 {
			fmt.Fprintf(b, "  datagrams not passed on %d, refused %d, too long %d\n", d.Dropped, d.Refused, d.Cut)
		}
		for _, socket := range d.Sockets {
			if socket.KernelDropped > 0 {
				fmt.Fprintf(b, "  the kernel dropped %d datagrams at %s, as its buffer of %s was full\n", socket.KernelDropped, socket.Local, stats.FormatBytes(uint64(socket.ReceiveBuffer)))
			}
		}
	}
}

// describeTarget says how an address of a target stands.
func describeTarget(name string, t *upstream.Status) string {
	text := t.Target.String()
	if address := t.Address.String(); t.Address != (fivetuple.Address{}) && !strings.HasSuffix(text, address) {
		text += " at " + address
	}
	if name != "" {
		text = name + ": " + text
	}
	text += ": " + string(t.State)
	if t.Reason != "" {
		text += ", " + t.Reason
	}
	if !t.Until.IsZero() {
		text += fmt.Sprintf(", until %s", t.Until.Local().Format("15:04:05"))
	}
	text += fmt.Sprintf("; %s, %d opened", plural(t.Connections, "connection"), t.Opened)
	if t.Failed > 0 {
		text += fmt.Sprintf(", %d failed", t.Failed)
	}
	if t.LookupError != "" {
		text += "; lookup: " + t.LookupError
	}
	return text
}

// writePair writes the legs of a connection.
func writePair(b *strings.Builder, p *splice.Pair) {
	fmt.Fprintf(b, "connection %d: %s", p.ID, p.State)
	if p.Slow != "" {
		fmt.Fprintf(b, ", waiting for: %s", p.Slow)
	}
	b.WriteString("\n")
	for _, d := range []struct {
		name string
		flow splice.Flow
	}{{"up", p.Up}, {"down", p.Down}} {
		fmt.Fprintf(b, "  %-4s  %s, by %s: %s", d.name, stats.FormatBytes(d.flow.Bytes), d.flow.Engine, d.flow.Why)
		if d.flow.PipeSize > 0 {
			fmt.Fprintf(b, "; %s of a pipe of %s", stats.FormatBytes(uint64(d.flow.InPipe)), stats.FormatBytes(uint64(d.flow.PipeSize)))
		}
		if d.flow.InBuffer > 0 {
			fmt.Fprintf(b, "; %s in memory", stats.FormatBytes(uint64(d.flow.InBuffer)))
		}
		if d.flow.Ended {
			b.WriteString("; ended")
		}
		b.WriteString("\n")
	}
	writeLeg(b, "client", p.Client.String(), p.ClientTCP)
	if p.Leg != nil {
		writeLeg(b, "target", p.Leg.String(), p.TargetTCP)
	}
}

func writeLeg(b *strings.Builder, name, tuple string, i *sockopt.TCPInfo) {
	fmt.Fprintf(b, "  %s  %s", name, tuple)
	if i != nil {
		fmt.Fprintf(b, ": rtt %s, %d retransmitted, %s not sent, %d segments unacknowledged, congestion window %d, busy %s, limited by the receiver %s, by the send buffer %s",
			stats.FormatDuration(i.RTT), i.TotalRetrans, stats.FormatBytes(uint64(i.NotSentBytes)), i.Unacked, i.SndCwnd,
			stats.FormatDuration(i.BusyTime), stats.FormatDuration(i.RwndLimited), stats.FormatDuration(i.SndbufLimited))
	}
	b.WriteString("\n")
}
