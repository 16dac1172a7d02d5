package cli

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/printable"
	"github.com/fivetuple/fivetuple/owner"
	"github.com/fivetuple/fivetuple/port"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/table"
	"github.com/fivetuple/fivetuple/table/who"
)

// showWho prints a screen for each port.
func (a *app) showWho(r *who.Report) error {
	w := bufio.NewWriter(a.out)
	names := a.serviceNames()
	for i := range r.Ports {
		if i > 0 {
			fmt.Fprintln(w)
		}
		s := whoScreen{w: w, width: cmp.Or(terminalWidth(a.out), 80), bold: useColor(a.out), all: a.format == formatWide}
		s.port(&r.Ports[i], names)
	}
	return w.Flush()
}

// whoScreen prints lines with a label before the first of each part.
type whoScreen struct {
	w     io.Writer
	width int
	bold  bool
	all   bool // -o wide: nothing is cut short
	label string
}

// labelWidth is how wide the column of labels is.
const labelWidth = 12

func (s *whoScreen) part(label string) { s.label = label }

// line prints one line of a part, folded to the width.
func (s *whoScreen) line(format string, args ...any) { s.pair("", fmt.Sprintf(format, args...)) }

// pair prints text, folded under itself beside what stands on its left.
func (s *whoScreen) pair(left, text string) {
	left = printable.Escape(left)
	indent := utf8.RuneCountInString(left)
	for i, part := range fold(printable.Escape(text), s.width-labelWidth-indent) {
		pad := strings.Repeat(" ", labelWidth-1-utf8.RuneCountInString(s.label))
		label := s.label
		if s.bold && label != "" {
			label = "\x1b[1m" + label + "\x1b[0m"
		}
		if i > 0 {
			left = strings.Repeat(" ", indent)
		}
		fmt.Fprintln(s.w, strings.TrimRight(" "+label+pad+left+part, " "))
		s.label = ""
	}
}

// cut prints one line that ends where the screen does.
func (s *whoScreen) cut(text string) {
	text = printable.Escape(text)
	if room := s.width - labelWidth; !s.all && room > 15 && utf8.RuneCountInString(text) > room {
		text = string([]rune(text)[:room-3]) + "..."
	}
	s.pair("", text)
}

func (s *whoScreen) port(p *who.Port, names *port.Names) {
	s.title(p, names)
	s.holders(p)
	s.listeners(p)
	s.connections(p)
	s.forwards(p)
	s.bindable(p)
	s.leases(p)
	s.advice(p)
}

func (s *whoScreen) title(p *who.Port, names *port.Names) {
	title := strings.ToUpper(p.Protocol.String())
	switch {
	case p.Port > 0:
		title += fmt.Sprintf(" port %d", p.Port)
		if name := names.Name(p.Port, p.Protocol.String()); name != "" {
			title += " (" + name + ")"
		}
	case p.Name != "":
		title = "Unix socket " + p.Name
	default:
		title += " connections"
	}
	switch {
	case !p.Held():
		title += ": nobody holds it"
	case len(p.Listeners) == 0 && p.Port > 0:
		title += ": nobody listens"
	}
	title = printable.Escape(title)
	if s.bold {
		title = "\x1b[1m" + title + "\x1b[0m"
	}
	fmt.Fprintln(s.w, title)
}

// shownHolders is how many processes are shown with all there is to say.
const shownHolders = 3

// holders shows each process with those below it that it started.
func (s *whoScreen) holders(p *who.Port) {
	s.part("held by")
	var others []who.Holder
	shown := 0
	for _, h := range p.Holders {
		switch {
		case slices.ContainsFunc(p.Holders, func(o who.Holder) bool { return descends(h, o) }) && !s.all: // shown with that one
		case shown == shownHolders && !s.all:
			others = append(others, h)
		default:
			shown++
			s.holder(p, h)
		}
	}
	if len(others) > 0 || p.MoreHolders > 0 {
		text := plural(len(others)+p.MoreHolders, "more holder")
		if len(others) > 0 {
			text += ": " + holderNames(others)
		}
		s.cut("and " + text)
	}
	if n := p.Hidden(); n > 0 {
		s.line("somebody else: %s whose processes are not seen from here", plural(n, "socket"))
	}
}

func descends(h, from who.Holder) bool {
	return slices.ContainsFunc(h.Ancestors, func(p owner.Process) bool { return p.PID == from.PID && p.Start == from.Start })
}

func (s *whoScreen) holder(p *who.Port, h who.Holder) {
	s.cut(cmp.Or(quoted(h.CommandLine), h.Command))
	facts := []string{fmt.Sprintf("pid %d", h.PID), "user " + h.User}
	if !h.Started.IsZero() {
		facts = append(facts, "since "+since(h.Started, time.Now()))
	}
	s.line("%s", strings.Join(append(facts, descriptors(h)), ", "))
	if line := ancestry(h); line != h.Command {
		s.cut(line)
	}
	switch {
	case h.Container != "":
		s.line("container %s", shortID(h.Container))
	case h.Unit != "":
		s.line("unit %s", h.Unit)
	}
	below := slices.DeleteFunc(slices.Clone(p.Holders), func(o who.Holder) bool { return !descends(o, h) })
	if len(below) > 0 && !s.all {
		s.cut(fmt.Sprintf("with %d below it: %s", len(below), holderNames(below)))
	}
}

// holderNames writes "nginx/12,13 sh/7".
func holderNames(holders []who.Holder) string {
	var b strings.Builder
	for i, h := range holders {
		switch {
		case i > 0 && h.Command == holders[i-1].Command:
			fmt.Fprintf(&b, ",%d", h.PID)
			continue
		case i > 0:
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%s/%d", h.Command, h.PID)
	}
	return b.String()
}

// quoted writes a command line as a shell would take it.
func quoted(line []string) string {
	var words []string
	for _, w := range line {
		if w == "" || strings.ContainsAny(w, " \t\n'\"\\$`&|;<>()*?") && len(line) > 1 {
			w = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
		words = append(words, w)
	}
	return strings.TrimRight(strings.Join(words, " "), " ")
}

// since writes a time, and how long ago it was.
func since(t, now time.Time) string {
	layout := "2006-01-02 15:04"
	if y, m, d := t.Date(); y == now.Year() && m == now.Month() && d == now.Day() {
		layout = "15:04:05"
	}
	return fmt.Sprintf("%s (%s)", t.Format(layout), stats.FormatDuration(now.Sub(t).Round(time.Second)))
}

func descriptors(h who.Holder) string {
	var parts []string
	if n := len(h.Listening); n > 0 {
		parts = append(parts, "fd "+strings.Trim(strings.ReplaceAll(fmt.Sprint(h.Listening[:min(n, 4)]), " ", ","), "[]"))
		if n > 4 {
			parts[0] += fmt.Sprintf(" and %d more", n-4)
		}
	}
	if h.Connections > 0 {
		parts = append(parts, plural(h.Connections, "connection"))
	}
	return strings.Join(parts, ", ")
}

// ancestry writes "nginx <- systemd", each name once in a row.
func ancestry(h who.Holder) string {
	names := []string{h.Command}
	for _, p := range h.Ancestors {
		names = append(names, p.Command)
	}
	return strings.Join(slices.Compact(names), " <- ")
}

func shortID(id string) string {
	if len(id) == 64 {
		return id[:12]
	}
	return id
}

var reaches = map[who.Reach]string{
	who.Loopback: "this machine only", who.OneAddress: "one address of this machine", who.AllIPv4: "all IPv4 addresses",
	who.AllIPv6: "all IPv6 addresses", who.Dual: "all addresses, IPv4 and IPv6", who.Group: "a multicast group", who.Local: "this machine only",
}

// shownListeners is how many sockets are shown.
const shownListeners = 8

func (s *whoScreen) listeners(p *who.Port) {
	s.part("listens")
	type kind struct{ at, text string }
	counts := map[kind]int{}
	var kinds []kind
	width := 0
	for _, l := range p.Listeners {
		k := kind{printable.Escape(l.LocalEnd().String()), listenerText(l)}
		if counts[k]++; counts[k] == 1 {
			kinds = append(kinds, k)
			width = max(width, utf8.RuneCountInString(k.at))
		}
	}
	for i, k := range kinds {
		if i == shownListeners && !s.all {
			s.line("and %d more", len(kinds)-i)
			break
		}
		if n := counts[k]; n > 1 {
			k.text += fmt.Sprintf("; %d sockets share it", n)
		}
		if width > s.width/2 {
			s.line("%s", k.at)
			s.pair("  ", k.text)
			continue
		}
		s.pair(fmt.Sprintf("%-*s  ", width, k.at), k.text)
	}
}

// listenerText says from where a socket can be reached, how full its queue is, and
// what it has lost.
func listenerText(l who.Listener) string {
	text := reaches[l.Reach]
	if l.Protocol == fivetuple.MPTCP {
		text += ", Multipath TCP"
	}
	switch {
	case l.State == fivetuple.StateListen:
		text += fmt.Sprintf("; queue %d of %d", l.RecvQueue, l.SendQueue)
		if l.QueueFull() {
			text += ", FULL: connections are not accepted fast enough"
		}
	case l.Protocol == fivetuple.TCP:
		return text + "; bound, but not listening"
	case l.Protocol.IsIP() && l.Memory.RecvBuffer > 0:
		text += fmt.Sprintf("; queue %s of %s", stats.FormatBytes(uint64(l.RecvQueue)), stats.FormatBytes(uint64(l.Memory.RecvBuffer)))
	}
	if n := l.Memory.Drops; n > 0 {
		text += fmt.Sprintf("; %d dropped", n)
	}
	return text
}

func connections(p who.Port) (n int) {
	for _, s := range p.States {
		n += s.Count
	}
	return n
}

func (s *whoScreen) connections(p *who.Port) {
	if len(p.States) == 0 {
		return
	}
	var states []string
	for _, c := range p.States {
		states = append(states, fmt.Sprintf("%d %s", c.Count, c.State))
	}
	text := strings.Join(states, ", ")
	if n := p.Ownerless[table.NotAccepted.String()]; n > 0 {
		text += fmt.Sprintf("; %d of them not yet accepted", n)
	}
	s.part("connected")
	s.line("%s", text)
	s.part("peers")
	s.columns(peerCells(p.Clients))
	if p.MoreClients > 0 {
		s.line("and %s from %s", plural(p.MoreConnections, "connection"), plural(p.MoreClients, "other peer"))
	}
}

// peerCells writes "10.0.0.1  12  curl/7" for each, aligned.
func peerCells(clients []who.Client) (cells []string) {
	width := 0
	for _, c := range clients {
		width = max(width, utf8.RuneCountInString(printable.Escape(c.Address)))
	}
	for _, c := range clients {
		text := fmt.Sprintf("%-*s %5d", width, printable.Escape(c.Address), c.Connections)
		for i, p := range c.Processes {
			text += fmt.Sprintf("%*s%s/%d", max(1, 2-i), "", p.Command, p.PID)
		}
		cells = append(cells, text)
	}
	return cells
}

// columns prints the cells in two columns, read downwards, if they are many and fit.
func (s *whoScreen) columns(cells []string) {
	half := (s.width - labelWidth) / 2
	wide := slices.ContainsFunc(cells, func(c string) bool { return utf8.RuneCountInString(printable.Escape(c)) >= half })
	if len(cells) <= 4 || wide || s.all {
		for _, c := range cells {
			s.cut(c)
		}
		return
	}
	rows := (len(cells) + 1) / 2
	for i := range rows {
		left, right := printable.Escape(cells[i]), ""
		if i+rows < len(cells) {
			right = cells[i+rows]
		}
		s.pair(left+strings.Repeat(" ", half-utf8.RuneCountInString(left)), right)
	}
}

func (s *whoScreen) forwards(p *who.Port) {
	s.part("goes to")
	for _, f := range p.Forwards {
		to := cmp.Or(f.To, "somewhere else")
		var facts []string
		if f.Kind == who.ByRule {
			facts = append(facts, "before any socket sees it: "+f.By)
			if !f.Local {
				facts = append(facts, "not for connections from this machine")
			}
			if !f.Incoming {
				facts = append(facts, "only for connections from this machine")
			}
			if f.Only != "" {
				facts = append(facts, "at address "+f.Only)
			}
		} else {
			facts = append(facts, "by "+f.By)
		}
		if f.Note != "" {
			facts = append(facts, f.Note)
		}
		s.line("%s, %s", to, strings.Join(facts, "; "))
	}
}

func (s *whoScreen) bindable(p *who.Port) {
	b := p.Bind
	if b == nil {
		return
	}
	s.part("now")
	switch {
	case b.Free:
		s.line("free: you could listen on it%s", onAddress(b.Address.String()))
	case b.Reason != "":
		s.line("you cannot listen on it: %s", b.Reason)
	}
	if b.Ephemeral {
		s.line("the kernel may take it as the source port of a connection (net.ipv4.ip_local_port_range)")
	}
	if b.Reserved {
		s.line("kept from automatic use (net.ipv4.ip_local_reserved_ports)")
	}
}

func onAddress(addr string) string {
	switch addr {
	case "::":
		return ", on all addresses"
	case "0.0.0.0":
		return ", on all IPv4 addresses"
	}
	return ", on " + addr
}

func (s *whoScreen) leases(p *who.Port) {
	s.part("leased")
	for _, l := range p.Leases {
		s.line("%s", strings.TrimPrefix(leasedTo(l, l.Address), "leased "))
	}
}

func (s *whoScreen) advice(p *who.Port) {
	s.part("to free it")
	for _, a := range p.Advice {
		if a.Command == "" {
			s.line("%s", a.Text)
			continue
		}
		if n := utf8.RuneCountInString(a.Command); n < 24 && s.width-labelWidth-n > 40 {
			s.pair(a.Command+"   ", a.Text)
			continue
		}
		s.cutNever(a.Command)
		s.pair("  ", a.Text)
	}
}

// cutNever prints a command on one line, however long, to be copied.
func (s *whoScreen) cutNever(text string) {
	wide := *s
	wide.width = 1 << 20
	wide.pair("", text)
	s.label = ""
}

func portOrName(p who.Port) string {
	switch {
	case p.Port > 0:
		return fmt.Sprint(p.Port)
	case p.Name != "":
		return p.Name
	}
	return "several"
}

func listensOn(p who.Port) string {
	var all []string
	for _, l := range p.Listeners {
		if text := l.LocalEnd().String(); !slices.Contains(all, text) {
			all = append(all, text)
		}
	}
	return strings.Join(all, " ")
}

func heldBy(p who.Port) string {
	var all []string
	for _, h := range p.Holders {
		all = append(all, fmt.Sprintf("%s/%d", h.Command, h.PID))
	}
	if n := p.MoreHolders; n > 0 {
		all = append(all, fmt.Sprintf("and %d more", n))
	}
	return strings.Join(all, " ")
}

func firstHolder(p who.Port) who.Holder {
	if len(p.Holders) == 0 {
		return who.Holder{}
	}
	return p.Holders[0]
}
