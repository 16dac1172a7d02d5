package cli

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/inspect"
	"github.com/fivetuple/fivetuple/internal/printable"
	"github.com/fivetuple/fivetuple/stats"
)

// socketScreen is all about a socket, 80 columns wide.
func (a *app) socketScreen(r inspected) string {
	var b screen
	b.title(socketLine(&r.Row))
	r.showWho(&b)
	if v := r.verdict; v != nil {
		b.title("verdict")
		b.text(verdictLine(v))
		for _, e := range v.Evidence {
			b.item(e)
		}
	}
	for _, section := range inspect.Explain(r.Socket.Socket) {
		b.title(section.Title)
		for _, l := range section.Lines {
			b.field(l.Name, l.Text)
		}
		if section.Title == "queues" {
			r.showMoreQueues(&b)
		}
	}
	r.showOptions(&b, a.format == formatWide)
	if useColor(a.out) {
		return b.colored()
	}
	return b.String()
}

func verdictLine(v *inspect.Verdict) string {
	line := v.Summary
	if v.Direction != "" {
		line = string(v.Direction) + ": " + line
	}
	if v.Confidence != "" {
		line += fmt.Sprintf(" (confidence %s)", v.Confidence)
	}
	if v.Delta.Over > 0 {
		line += "; watched for " + stats.FormatDuration(v.Delta.Over.Round(10*time.Millisecond))
	}
	return line
}

func (r inspected) showWho(b *screen) {
	for i, o := range r.Owners {
		b.field(onlyFirst(i, "held by"), fmt.Sprintf("%s, descriptor %d", o.Process, o.FD))
	}
	if len(r.Owners) == 0 {
		b.field("held by", "no process that can be seen")
	}
	for i, o := range r.Peers {
		b.field(onlyFirst(i, "peer"), fmt.Sprintf("%s, descriptor %d", o.Process, o.FD))
	}
	if r.PeerInode != 0 {
		b.field("peer socket", strings.TrimSpace(fmt.Sprintf("inode %d %s", r.PeerInode, r.PeerName)))
	}
	b.field("unit", r.Unit)
	b.field("container", r.Container)
	b.field("cookie", fmt.Sprintf("%x, inode %d, made by uid %d", r.Cookie, r.Inode, r.UID))
	if r.Missing != nil {
		b.field("not shown", "options and exact queues: "+r.Missing.Error())
	}
}

func onlyFirst(i int, name string) string {
	if i > 0 {
		return ""
	}
	return name
}

// showMoreQueues adds what a descriptor tells, and the counters of listeners.
func (r inspected) showMoreQueues(b *screen) {
	if q := r.Queues; q != nil && r.Protocol.IsDatagram() {
		b.field("first datagram", stats.FormatBytes(uint64(q.Recv)))
	}
	if c := r.counters; c != nil {
		b.field("all listeners", fmt.Sprintf("of this network namespace: %d connections dropped as a queue was full, %d for any reason, "+
			"%d answered with SYN cookies, %d requests dropped; which listener's is not counted", c.ListenOverflows, c.ListenDrops, c.SynCookiesSent, c.SynQueueDrops))
	}
}

// showOptions prints those that were changed first, one a line, and then the
// others; in a wide table each has its line and says what it is.
func (r inspected) showOptions(b *screen, wide bool) {
	level := ""
	var rest []string
	flush := func() {
		if len(rest) > 0 {
			b.words(rest)
		}
		rest = nil
	}
	if len(r.Options) > 0 && r.State == fivetuple.StateListen {
		b.title("options")
		b.text("Connections that are accepted take them over, but for " + strings.Join(inspect.NotInherited(), ", ") + ".")
	}
	for i, o := range r.Options {
		if o.Option().LevelName() != level {
			flush()
			level = o.Option().LevelName()
			b.title(level + " options")
			for _, c := range r.Options[i:] {
				if c.Option().LevelName() == level && c.Changed {
					b.field(c.Option().Name, c.Value()+" (default "+cmp.Or(c.Default, "none")+")")
				}
			}
		}
		switch name := o.Option().Name; {
		case name == "info" || name == "meminfo": // the screen is about them
		case wide:
			b.field(name, fmt.Sprintf("%s: %s", o.Value(), o.Option().Doc))
		case !o.Changed:
			rest = append(rest, name+"="+o.Value())
		}
	}
	flush()
}

// screen is text of titles and indented lines.
type screen struct{ lines []string }

const nameWidth = 18

func (b *screen) title(text string) {
	if len(b.lines) > 0 {
		b.lines = append(b.lines, "")
	}
	b.lines = append(b.lines, printable.Escape(text))
}

func (b *screen) text(text string) { b.folded(wrap(printable.Escape(text), "  ")) }

func (b *screen) item(text string) {
	b.folded("  - " + strings.TrimLeft(wrap(printable.Escape(text), "    "), " "))
}

// field prints nothing without a text.
func (b *screen) field(name, text string) {
	if text == "" {
		return
	}
	b.folded(fmt.Sprintf("  %-*s%s", nameWidth, name, strings.TrimLeft(wrap(printable.Escape(text), strings.Repeat(" ", 2+nameWidth)), " ")))
}

func (b *screen) words(words []string) {
	b.folded(wrap(printable.Escape(strings.Join(words, " ")), "  "))
}

func (b *screen) folded(text string) { b.lines = append(b.lines, strings.Split(text, "\n")...) }

func (b *screen) String() string { return strings.Join(b.lines, "\n") + "\n" }

// colored has titles in bold.
func (b *screen) colored() string {
	var s strings.Builder
	for _, l := range b.lines {
		if l != "" && l[0] != ' ' {
			l = "\x1b[1m" + l + "\x1b[0m"
		}
		s.WriteString(l + "\n")
	}
	return s.String()
}
