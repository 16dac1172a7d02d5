package tui

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/sockdiag"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stats"
)

// details describes the selected socket in lines, the most telling first: a small
// screen shows as many as fit.
func (m *model) details() []string {
	if m.last == nil {
		return []string{"No socket is selected: choose one with the arrow keys."}
	}
	r := m.last
	s := r.Socket
	if m.detail.serial == r.serial && m.detail.err == nil {
		s = m.detail.socket
	}
	lines := []string{m.titleOf(r)}
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	add("%s", holders(r)+placeOf(r))
	if room := min(len(m.history), m.width-len("  in 99.9K, out 99.9K per second")); r.Rate.Known && room > 0 {
		add("%s  in %s, out %s per second", spark(m.history[len(m.history)-room:], m.ascii), short(r.Rate.In), short(r.Rate.Out))
	}
	add("%s", queues(&s))
	if i := s.Info; i != nil && s.State != fivetuple.StateListen {
		lines = append(lines, infoLines(i)...)
	}
	if m.detail.err != nil && m.detail.serial == r.serial && !m.gone {
		add("not all is known: %s", firstLine(m.detail.err))
	}
	lines = append(lines, rest(&s, r, m.begun)...)
	return lines
}

func (m *model) titleOf(r *pageRow) string {
	t := describe(r)
	switch {
	case m.gone:
		t = "closed: " + t
	case m.page.picked == nil:
		t = "not in the filter any more: " + t
	}
	return t
}

func placeOf(r *pageRow) string {
	s := ""
	if r.Unit != "" {
		s += "  unit " + r.Unit
	}
	if r.Container != "" {
		s += "  container " + r.Container
	}
	return s
}

func queues(s *sockdiag.Socket) string {
	if s.State == fivetuple.StateListen {
		t := fmt.Sprintf("accept queue %d of %d", s.RecvQueue, s.SendQueue)
		if s.Memory.Drops > 0 {
			t += fmt.Sprintf("  dropped %d", s.Memory.Drops)
		}
		return t
	}
	t := fmt.Sprintf("to be read %s  not acknowledged %s", stats.FormatBytes(uint64(s.RecvQueue)), stats.FormatBytes(uint64(s.SendQueue)))
	if s.Protocol != fivetuple.TCP {
		t = fmt.Sprintf("receive queue %s  send queue %s", stats.FormatBytes(uint64(s.RecvQueue)), stats.FormatBytes(uint64(s.SendQueue)))
	}
	if m := s.Memory; m.RecvBuffer > 0 || m.SendBuffer > 0 {
		t += fmt.Sprintf("  buffers: receive %s of %s, send %s of %s", stats.FormatBytes(uint64(m.RecvAlloc)), stats.FormatBytes(uint64(m.RecvBuffer)),
			stats.FormatBytes(uint64(m.SendQueued)), stats.FormatBytes(uint64(m.SendBuffer)))
	}
	if s.Memory.Drops > 0 {
		t += fmt.Sprintf("  dropped %d", s.Memory.Drops)
	}
	return t
}

func infoLines(i *sockopt.TCPInfo) []string {
	var lines []string
	line := "round trip not measured yet"
	if i.RTT > 0 {
		line = fmt.Sprintf("round trip %s (varies %s", stats.FormatDuration(i.RTT), stats.FormatDuration(i.RTTVar))
		if i.MinRTT > 0 {
			line += ", least " + stats.FormatDuration(i.MinRTT)
		}
		line += ")"
	}
	lines = append(lines, line+"  retransmission timeout "+stats.FormatDuration(i.RTO))
	lines = append(lines,
		fmt.Sprintf("received %s  sent %s acknowledged  not sent yet %s", stats.FormatBytes(i.BytesReceived), stats.FormatBytes(i.BytesAcked), stats.FormatBytes(uint64(i.NotSentBytes))),
		fmt.Sprintf("window: congestion %d segments of %d B, %d in flight, %d lost  peer's %s", i.SndCwnd, i.SndMSS, i.Unacked, i.Lost, stats.FormatBytes(uint64(i.SndWnd))),
		fmt.Sprintf("sent again %d segments  delivery rate %s per second  congestion state %s", i.TotalRetrans, stats.FormatBytes(i.DeliveryRate), i.CAState))
	if i.BusyTime > 0 {
		lines = append(lines, fmt.Sprintf("busy sending %s, of that held up by the peer's window %s, by the send buffer %s",
			stats.FormatDuration(i.BusyTime), stats.FormatDuration(i.RwndLimited), stats.FormatDuration(i.SndbufLimited)))
	}
	return append(lines, fmt.Sprintf("last data sent %s ago, received %s ago", stats.FormatDuration(i.LastDataSent), stats.FormatDuration(i.LastDataRecv)))
}

// rest are the facts that are looked at least.
func rest(s *sockdiag.Socket, r *pageRow, begun time.Time) []string {
	var words []string
	add := func(format string, args ...any) { words = append(words, fmt.Sprintf(format, args...)) }
	if r.Opened.IsZero() {
		add("open since before %s", begun.Format("15:04:05"))
	} else {
		add("first seen %s", r.Opened.Format("15:04:05"))
	}
	if t := text("timer", r); t != "" {
		add("timer %s", t)
	}
	if s.Congestion != "" {
		add("congestion control %s", s.Congestion)
	}
	if s.State != fivetuple.StateTimeWait {
		add("uid %d", s.UID)
	}
	if s.Inode != 0 {
		add("inode %d", s.Inode)
	}
	if s.Cookie != 0 {
		add("cookie:%s", strconv.FormatUint(s.Cookie, 16))
	}
	if s.Interface != 0 {
		add("bound to interface %d", s.Interface)
	}
	if s.Mark != 0 {
		add("mark %#x", s.Mark)
	}
	if t := max(s.TOS, s.TClass); t != 0 {
		add("tos %#x", t)
	}
	if s.V6Only {
		add("IPv6 only")
	}
	return []string{strings.Join(words, "  ")}
}
