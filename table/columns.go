package table

import (
	"cmp"
	"net/netip"
	"strconv"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/owner"
	"github.com/fivetuple/fivetuple/sockdiag"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stats"
)

var columns = []Column{
	{
		Name: "proto", Head: "PROTO", Doc: "protocol", Key: "protocol",
		Text:    func(b []byte, r *Row) []byte { return append(b, r.Protocol.String()...) },
		Value:   func(b []byte, r *Row) []byte { return appendJSONString(b, r.Protocol.String()) },
		Compare: func(a, b *Row) int { return cmp.Compare(a.Protocol.String(), b.Protocol.String()) },
	},
	{
		Name: "state", Head: "STATE", Doc: "state, as the kernel names it", Key: "state",
		Text:    func(b []byte, r *Row) []byte { return append(b, r.State.String()...) },
		Value:   func(b []byte, r *Row) []byte { return appendJSONString(b, r.State.String()) },
		Compare: func(a, b *Row) int { return cmp.Compare(a.State, b.State) },
	},
	numberColumn("recvq", "RECV-Q", "bytes to be read; of a listener, connections to be accepted", "recv_queue",
		func(r *Row) (uint64, bool) { return uint64(r.RecvQueue), true }),
	numberColumn("sendq", "SEND-Q", "bytes not yet acknowledged; of a listener, its backlog", "send_queue",
		func(r *Row) (uint64, bool) { return uint64(r.SendQueue), true }),
	{
		Name: "local", Head: "LOCAL", Doc: "local address and port, or path", Key: "local",
		Text:    appendLocal,
		Value:   func(b []byte, r *Row) []byte { return appendJSONText(b, r, appendLocalEnd) },
		Compare: func(a, b *Row) int { return compareEnds(a.LocalEnd(), b.LocalEnd()) },
	},
	{
		Name: "remote", Head: "REMOTE", Doc: "address and port of the peer, or its path", Key: "remote",
		Text:    appendRemote,
		Value:   func(b []byte, r *Row) []byte { return appendJSONText(b, r, appendRemoteEnd) },
		Compare: func(a, b *Row) int { return compareEnds(a.RemoteEnd(), b.RemoteEnd()) },
	},
	{
		Name: "process", Head: "PROCESS", Doc: "the processes that hold the socket", Key: "owners", Owners: true,
		Text:    appendOwners,
		Value:   func(b []byte, r *Row) []byte { return appendOwnersJSON(b, r.Owners) },
		Compare: func(a, b *Row) int { return compareHolders(a.Owners, b.Owners) },
	},
	{
		Name: "pid", Head: "PID", Doc: "process id of the first holder", Right: true, Key: "pid", Owners: true,
		Text:    numberText(firstPID),
		Value:   numberValue(firstPID),
		Compare: compareNumbers(firstPID),
	},
	textOwners("user", "USER", "user of the first holder", "user", func(r *Row) string {
		if len(r.Owners) == 0 {
			return ""
		}
		return r.Owners[0].User
	}),
	textOwners("unit", "UNIT", "systemd unit", "unit", func(r *Row) string { return r.Unit }),
	textOwners("container", "CONTAINER", "container, by the first 12 digits of its id", "container", func(r *Row) string { return r.Container }),
	{
		Name: "peer", Head: "PEER", Doc: "the processes that hold the other end, on this machine", Key: "peers", Owners: true, Peers: true,
		Text:    func(b []byte, r *Row) []byte { return appendHolders(b, r.Peers) },
		Value:   func(b []byte, r *Row) []byte { return appendOwnersJSON(b, r.Peers) },
		Compare: func(a, b *Row) int { return compareHolders(a.Peers, b.Peers) },
	},
	{
		Name: "queue", Head: "QUEUE", Doc: "of a listener: connections to be accepted, of how many at most", Right: true, Key: "queue",
		Text: func(b []byte, r *Row) []byte {
			if r.State != fivetuple.StateListen {
				return b
			}
			b = strconv.AppendUint(b, uint64(r.RecvQueue), 10)
			return strconv.AppendUint(append(b, '/'), uint64(r.SendQueue), 10)
		},
		Value: func(b []byte, r *Row) []byte {
			if r.State != fivetuple.StateListen {
				return append(b, "null"...)
			}
			b = append(b, `{"waiting":`...)
			b = strconv.AppendUint(b, uint64(r.RecvQueue), 10)
			b = append(b, `,"backlog":`...)
			return append(strconv.AppendUint(b, uint64(r.SendQueue), 10), '}')
		},
		Compare: compareNumbers(func(r *Row) (uint64, bool) { return uint64(r.RecvQueue), r.State == fivetuple.StateListen }),
	},
	needs(sockdiag.WithMemory, numberColumn("drops", "DROPS", "packets or connections dropped for want of room", "drops",
		func(r *Row) (uint64, bool) { return uint64(r.Memory.Drops), true })),
	{
		Name: "timer", Head: "TIMER", Doc: "what a TCP socket waits for, and how long yet", Key: "timer",
		Text:    appendTimer,
		Value:   appendTimerJSON,
		Compare: func(a, b *Row) int { return cmp.Compare(a.Timer.Expires, b.Timer.Expires) },
	},
	numberColumn("uid", "UID", "user that made the socket", "uid", func(r *Row) (uint64, bool) {
		return uint64(r.UID), r.UIDKnown()
	}),
	numberColumn("inode", "INODE", "as /proc/PID/fd shows it", "inode", func(r *Row) (uint64, bool) { return uint64(r.Inode), r.Inode != 0 }),
	{
		Name: "cookie", Head: "COOKIE", Doc: "names the socket for ever: cookie:HEX", Right: true, Key: "cookie",
		Text: func(b []byte, r *Row) []byte {
			if r.Cookie == 0 {
				return b
			}
			return strconv.AppendUint(b, r.Cookie, 16)
		},
		Value:   appendCookieJSON,
		Compare: func(a, b *Row) int { return cmp.Compare(a.Cookie, b.Cookie) },
	},
	{
		Name: "netns", Head: "NETNS", Doc: "network namespace", Key: "netns",
		Text: func(b []byte, r *Row) []byte {
			if r.Namespace != nil && r.Namespace.Name != "" {
				return append(b, r.Namespace.Name...)
			}
			return strconv.AppendUint(b, r.netns(), 10)
		},
		Value:   func(b []byte, r *Row) []byte { return strconv.AppendUint(b, r.netns(), 10) },
		Compare: func(a, b *Row) int { return cmp.Compare(a.netns(), b.netns()) },
	},
	numberColumn("number", "NUMBER", "IP protocol of a raw socket, EtherType of a packet socket, netlink family", "number",
		func(r *Row) (uint64, bool) {
			return uint64(r.Number), r.Protocol == fivetuple.Raw || r.Protocol == fivetuple.ICMP || !r.Protocol.IsInet() && !r.Protocol.IsUnix()
		}),
	needs(sockdiag.WithMark, numberColumn("mark", "MARK", "SO_MARK", "mark", func(r *Row) (uint64, bool) { return uint64(r.Mark), r.Mark != 0 })),
	needs(sockdiag.WithTOS, numberColumn("tos", "TOS", "IP_TOS or IPV6_TCLASS", "tos", func(r *Row) (uint64, bool) { return uint64(max(r.TOS, r.TClass)), r.Protocol.IsInet() })),
	needs(sockdiag.WithCongestion, textColumn("cc", "CC", "congestion control", "congestion", func(b []byte, r *Row) []byte { return append(b, r.Congestion...) })),
	durationColumn("rtt", "RTT", "smoothed round-trip time", "rtt_s", func(i *sockopt.TCPInfo) time.Duration { return i.RTT }),
	durationColumn("rttvar", "RTTVAR", "how much the round-trip time varies", "rttvar_s", func(i *sockopt.TCPInfo) time.Duration { return i.RTTVar }),
	durationColumn("minrtt", "MIN-RTT", "least round-trip time", "min_rtt_s", func(i *sockopt.TCPInfo) time.Duration { return i.MinRTT }),
	durationColumn("rto", "RTO", "retransmission timeout", "rto_s", func(i *sockopt.TCPInfo) time.Duration { return i.RTO }),
	infoColumn("cwnd", "CWND", "congestion window, segments", "snd_cwnd", func(i *sockopt.TCPInfo) uint64 { return uint64(i.SndCwnd) }),
	infoColumn("unacked", "UNACKED", "segments in flight", "unacked", func(i *sockopt.TCPInfo) uint64 { return uint64(i.Unacked) }),
	infoColumn("retrans", "RETRANS", "segments sent again, in all", "total_retrans", func(i *sockopt.TCPInfo) uint64 { return uint64(i.TotalRetrans) }),
	infoColumn("lost", "LOST", "segments believed lost now", "lost", func(i *sockopt.TCPInfo) uint64 { return uint64(i.Lost) }),
	bytesColumn("delivery", "DELIVERY", "delivery rate last measured, bytes per second", "delivery_rate", "/s", func(i *sockopt.TCPInfo) uint64 { return i.DeliveryRate }),
	bytesColumn("sent", "SENT", "bytes sent and acknowledged", "bytes_acked", "", func(i *sockopt.TCPInfo) uint64 { return i.BytesAcked }),
	bytesColumn("received", "RECEIVED", "bytes received", "bytes_received", "", func(i *sockopt.TCPInfo) uint64 { return i.BytesReceived }),
	bytesColumn("notsent", "NOT-SENT", "bytes queued and not yet sent", "notsent_bytes", "", func(i *sockopt.TCPInfo) uint64 { return uint64(i.NotSentBytes) }),
	infoColumn("mss", "MSS", "largest segment sent, bytes", "snd_mss", func(i *sockopt.TCPInfo) uint64 { return uint64(i.SndMSS) }),
	rateColumn("in", "IN", "bytes received per second", "in_rate", func(r Rate) uint64 { return r.In }),
	rateColumn("out", "OUT", "bytes sent and acknowledged per second", "out_rate", func(r Rate) uint64 { return r.Out }),
	{
		Name: "age", Head: "AGE", Doc: "how long ago the socket was first seen, by what watches", Right: true, Key: "age_s",
		Text: func(b []byte, r *Row) []byte {
			if r.Opened.IsZero() {
				return b
			}
			return append(b, stats.FormatDuration(time.Since(r.Opened).Round(time.Second))...)
		},
		Value: func(b []byte, r *Row) []byte {
			if r.Opened.IsZero() {
				return append(b, "null"...)
			}
			return strconv.AppendFloat(b, time.Since(r.Opened).Seconds(), 'f', -1, 64)
		},
		Compare: func(a, b *Row) int { return b.Opened.Compare(a.Opened) },
	},
}

func needs(d sockdiag.Details, c Column) Column {
	c.Needs |= d
	return c
}

func textColumn(name, head, doc, key string, text func(b []byte, r *Row) []byte) Column {
	return Column{
		Name: name, Head: head, Doc: doc, Key: key, Text: text,
		Value: func(b []byte, r *Row) []byte { return appendJSONText(b, r, text) },
		Compare: func(a, b *Row) int {
			return cmp.Compare(string(text(nil, a)), string(text(nil, b)))
		},
	}
}

func textOwners(name, head, doc, key string, text func(r *Row) string) Column {
	c := textColumn(name, head, doc, key, func(b []byte, r *Row) []byte { return append(b, text(r)...) })
	c.Compare = func(a, b *Row) int { return cmp.Compare(text(a), text(b)) }
	c.Owners = true
	return c
}

// number gets a number of a row; false if it has none.
type number func(r *Row) (n uint64, known bool)

func numberText(of number) func([]byte, *Row) []byte {
	return func(b []byte, r *Row) []byte {
		if n, ok := of(r); ok {
			return strconv.AppendUint(b, n, 10)
		}
		return b
	}
}

func numberValue(of number) func([]byte, *Row) []byte {
	return func(b []byte, r *Row) []byte {
		if n, ok := of(r); ok {
			return strconv.AppendUint(b, n, 10)
		}
		return append(b, "null"...)
	}
}

func compareNumbers(of number) func(a, b *Row) int {
	return func(a, b *Row) int {
		x, knowX := of(a)
		y, knowY := of(b)
		switch {
		case knowX && knowY:
			return cmp.Compare(x, y)
		case knowX:
			return 1
		case knowY:
			return -1
		}
		return 0
	}
}

func numberColumn(name, head, doc, key string, of number) Column {
	return Column{Name: name, Head: head, Doc: doc, Right: true, Key: key, Text: numberText(of), Value: numberValue(of), Compare: compareNumbers(of)}
}

func ofInfo(of func(*sockopt.TCPInfo) uint64) number {
	return func(r *Row) (uint64, bool) {
		if r.Info == nil || r.State == fivetuple.StateListen {
			return 0, false // TCP_INFO of a listener gives the fields other meanings
		}
		return of(r.Info), true
	}
}

func infoColumn(name, head, doc, key string, of func(*sockopt.TCPInfo) uint64) Column {
	return needs(sockdiag.WithInfo, numberColumn(name, head, doc, key, ofInfo(of)))
}

func bytesColumn(name, head, doc, key, suffix string, of func(*sockopt.TCPInfo) uint64) Column {
	c := infoColumn(name, head, doc, key, of)
	c.Text = func(b []byte, r *Row) []byte {
		if n, ok := ofInfo(of)(r); ok {
			return append(append(b, stats.FormatBytes(n)...), suffix...)
		}
		return b
	}
	return c
}

func durationColumn(name, head, doc, key string, of func(*sockopt.TCPInfo) time.Duration) Column {
	c := infoColumn(name, head, doc, key, func(i *sockopt.TCPInfo) uint64 { return uint64(of(i)) })
	known := func(r *Row) bool { return r.Info != nil && r.State != fivetuple.StateListen && of(r.Info) != 0 } // 0: not yet measured
	c.Text = func(b []byte, r *Row) []byte {
		if !known(r) {
			return b
		}
		return append(b, stats.FormatDuration(of(r.Info))...)
	}
	c.Value = func(b []byte, r *Row) []byte {
		if !known(r) {
			return append(b, "null"...)
		}
		return strconv.AppendFloat(b, of(r.Info).Seconds(), 'f', -1, 64)
	}
	return c
}

func rateColumn(name, head, doc, key string, of func(Rate) uint64) Column {
	c := numberColumn(name, head, doc, key, func(r *Row) (uint64, bool) { return of(r.Rate), r.Rate.Known })
	c.Needs = sockdiag.WithInfo
	c.Text = func(b []byte, r *Row) []byte {
		if !r.Rate.Known {
			return b
		}
		return append(append(b, stats.FormatBytes(of(r.Rate))...), "/s"...)
	}
	return c
}

func firstPID(r *Row) (uint64, bool) {
	if len(r.Owners) == 0 {
		return 0, false
	}
	return uint64(r.Owners[0].PID), true
}

// appendLocal writes the local end for people, with "*" for what is not narrowed.
func appendLocal(b []byte, r *Row) []byte { return appendPeopleEnd(b, r, r.Local, appendLocalEnd) }

func appendRemote(b []byte, r *Row) []byte {
	if !r.Remote.IsValid() && r.Protocol.IsInet() {
		return append(b, "*:*"...)
	}
	return appendPeopleEnd(b, r, r.Remote, appendRemoteEnd)
}

// appendPeopleEnd writes "*:80" for a socket that takes IPv4 and IPv6.
func appendPeopleEnd(b []byte, r *Row, a netip.AddrPort, end func([]byte, *Row) []byte) []byte {
	dual := a.IsValid() && a.Addr().Is6() && a.Addr().IsUnspecified() && !r.V6Only && r.hasPorts() &&
		(r.State == fivetuple.StateListen || r.State == fivetuple.StateClose)
	if !dual {
		return end(b, r)
	}
	b = append(b, "*:"...)
	if a.Port() == 0 {
		return append(b, '*')
	}
	return strconv.AppendUint(b, uint64(a.Port()), 10)
}

func appendLocalEnd(b []byte, r *Row) []byte {
	if r.Local.IsValid() {
		return r.Local.AppendTo(b)
	}
	return append(b, r.Name...)
}

func appendRemoteEnd(b []byte, r *Row) []byte {
	if r.Remote.IsValid() {
		return r.Remote.AppendTo(b)
	}
	return append(b, r.PeerName...)
}

func compareEnds(a, b fivetuple.Address) int {
	if x := a.AddrPort.Compare(b.AddrPort); x != 0 {
		return x
	}
	return cmp.Compare(a.Name, b.Name)
}

// appendOwners writes the holders, or in parentheses why there are none.
func appendOwners(b []byte, r *Row) []byte {
	if len(r.Owners) == 0 && r.NoOwner != Owned && r.NoOwner != TimeWait { // which the state says
		return append(append(append(b, '('), r.NoOwner.String()...), ')')
	}
	return appendHolders(b, r.Owners)
}

// appendHolders writes "nginx/123,124 sh/7": each command once, its processes behind it.
func appendHolders(b []byte, holders []owner.Holder) []byte {
	for i, h := range holders {
		switch {
		case i > 0 && holders[i-1].PID == h.PID:
			continue // another descriptor of the same process
		case i > 0 && holders[i-1].Command == h.Command:
			b = append(b, ',')
		default:
			if i > 0 {
				b = append(b, ' ')
			}
			b = append(append(b, h.Command...), '/')
		}
		b = strconv.AppendInt(b, int64(h.PID), 10)
	}
	return b
}

func compareHolders(a, b []owner.Holder) int {
	if len(a) == 0 || len(b) == 0 {
		return cmp.Compare(len(a), len(b))
	}
	if x := cmp.Compare(a[0].Command, b[0].Command); x != 0 {
		return x
	}
	return cmp.Compare(a[0].PID, b[0].PID)
}

var timerNames = [...]string{"", "retransmit", "keepalive", "timewait", "probe"}

// timerName names the timer, "" for none.
func timerName(k sockdiag.TimerKind) string {
	if int(k) < len(timerNames) {
		return timerNames[k]
	}
	return "timer " + strconv.Itoa(int(k))
}

// appendTimer writes "retransmit 1.2 s (3)": the third one.
func appendTimer(b []byte, r *Row) []byte {
	if r.Timer.Kind == sockdiag.TimerOff {
		return b
	}
	b = append(append(b, timerName(r.Timer.Kind)...), ' ')
	b = append(b, stats.FormatDuration(r.Timer.Expires)...)
	if r.Timer.Retransmits > 0 {
		b = append(strconv.AppendUint(append(b, " ("...), uint64(r.Timer.Retransmits), 10), ')')
	}
	return b
}
