package table

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/netns"
	"github.com/fivetuple/fivetuple/owner"
	"github.com/fivetuple/fivetuple/sockdiag"
	"github.com/fivetuple/fivetuple/sockopt"
)

// MarshalJSON implements [json.Marshaler]. See [Row.AppendJSON].
func (r *Row) MarshalJSON() ([]byte, error) { return r.AppendJSON(nil), nil }

// AppendJSON appends the row as one line of JSON, with the keys that every
// command has for a socket. What was not asked for is left out.
func (r *Row) AppendJSON(b []byte) []byte {
	key := func(name string) { b = append(append(append(b, `,"`...), name...), `":`...) }
	number := func(name string, n uint64) {
		key(name)
		b = strconv.AppendUint(b, n, 10)
	}
	some := func(name string, n uint64) {
		if n != 0 {
			number(name, n)
		}
	}
	text := func(name, value string) {
		if value != "" {
			key(name)
			b = appendJSONString(b, value)
		}
	}
	b = append(append(b, `{"protocol":"`...), r.Protocol.String()...)
	b = append(append(b, `","state":"`...), r.State.String()...)
	b = append(b, `","local":`...)
	b = appendJSONText(b, r, appendLocalEnd)
	key("remote")
	b = appendJSONText(b, r, appendRemoteEnd)
	number("recv_queue", uint64(r.RecvQueue))
	number("send_queue", uint64(r.SendQueue))
	number("inode", uint64(r.Inode))
	key("cookie")
	b = appendCookieJSON(b, r)
	if r.UIDKnown() {
		number("uid", uint64(r.UID))
	}
	number("netns", r.netns())
	if len(r.Owners) > 0 {
		key("owners")
		b = appendOwnersJSON(b, r.Owners)
	}
	text("no_owner", r.NoOwner.String())
	text("unit", r.Unit)
	text("container", r.Container)
	if len(r.Peers) > 0 {
		key("peers")
		b = appendOwnersJSON(b, r.Peers)
	}
	some("peer_inode", uint64(r.PeerInode))
	some("interface", uint64(r.Interface))
	if r.V6Only {
		key("v6only")
		b = append(b, "true"...)
	}
	some("number", uint64(r.Number))
	if r.Timer.Kind != sockdiag.TimerOff {
		key("timer")
		b = appendTimerJSON(b, r)
	}
	text("congestion", r.Congestion)
	some("cgroup", r.Cgroup)
	some("mark", uint64(r.Mark))
	some("tos", uint64(r.TOS))
	some("tclass", uint64(r.TClass))
	if r.Memory != (sockdiag.Memory{}) {
		key("memory")
		b = appendMarshalled(b, jsonMemory(r.Memory))
	}
	if r.Info != nil && r.State != fivetuple.StateListen { // where TCP_INFO means other things
		key("tcp_info")
		b = r.Info.AppendJSON(b)
	}
	if !r.Opened.IsZero() {
		key("opened")
		b = appendMarshalled(b, r.Opened)
	}
	if r.Rate.Known {
		number("in_rate", r.Rate.In)
		number("out_rate", r.Rate.Out)
	}
	return append(b, '}')
}

// jsonMemory is [sockdiag.Memory] with its keys.
type jsonMemory struct {
	RecvAlloc  uint32 `json:"recv_alloc"`
	RecvBuffer uint32 `json:"recv_buffer"`
	SendAlloc  uint32 `json:"send_alloc"`
	SendBuffer uint32 `json:"send_buffer"`
	SendQueued uint32 `json:"send_queued"`
	Forward    uint32 `json:"forward"`
	Option     uint32 `json:"option"`
	Backlog    uint32 `json:"backlog"`
	Drops      uint32 `json:"drops"`
}

type jsonTimer struct {
	Kind        string  `json:"kind"`
	Expires     float64 `json:"expires_s"`
	Retransmits uint8   `json:"retransmits"`
}

// UnmarshalJSON implements [json.Unmarshaler]: it is the inverse of
// [Row.AppendJSON], but for what people alone look at.
func (r *Row) UnmarshalJSON(b []byte) error {
	var j struct {
		Protocol   fivetuple.Network `json:"protocol"`
		State      fivetuple.State   `json:"state"`
		Local      string            `json:"local"`
		Remote     string            `json:"remote"`
		RecvQueue  uint32            `json:"recv_queue"`
		SendQueue  uint32            `json:"send_queue"`
		Inode      uint32            `json:"inode"`
		Cookie     string            `json:"cookie"`
		UID        uint32            `json:"uid"`
		Netns      uint64            `json:"netns"`
		Owners     []owner.Holder    `json:"owners"`
		NoOwner    string            `json:"no_owner"`
		Peers      []owner.Holder    `json:"peers"`
		Unit       string            `json:"unit"`
		Container  string            `json:"container"`
		PeerInode  uint32            `json:"peer_inode"`
		Interface  uint32            `json:"interface"`
		V6Only     bool              `json:"v6only"`
		Number     uint16            `json:"number"`
		Timer      jsonTimer         `json:"timer"`
		Congestion string            `json:"congestion"`
		Cgroup     uint64            `json:"cgroup"`
		Mark       uint32            `json:"mark"`
		TOS        uint8             `json:"tos"`
		TClass     uint8             `json:"tclass"`
		Memory     jsonMemory        `json:"memory"`
		Info       *sockopt.TCPInfo  `json:"tcp_info"`
		Opened     time.Time         `json:"opened"`
		In         *uint64           `json:"in_rate"`
		Out        *uint64           `json:"out_rate"`
	}
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	*r = Row{
		Owners: j.Owners, NoOwner: unownedNamed(j.NoOwner), Peers: j.Peers, Unit: j.Unit, Container: j.Container, Opened: j.Opened,
		Socket: sockdiag.Socket{
			Protocol: j.Protocol, State: j.State, RecvQueue: j.RecvQueue, SendQueue: j.SendQueue,
			Inode: j.Inode, UID: j.UID, PeerInode: j.PeerInode, Interface: j.Interface, V6Only: j.V6Only,
			Number: j.Number, Congestion: j.Congestion, Cgroup: j.Cgroup, Mark: j.Mark, TOS: j.TOS, TClass: j.TClass,
			Memory: sockdiag.Memory(j.Memory), Info: j.Info,
			Timer: sockdiag.Timer{
				Kind: timerKind(j.Timer.Kind), Retransmits: j.Timer.Retransmits,
				Expires: time.Duration(j.Timer.Expires * float64(time.Second)),
			},
		},
	}
	if j.Netns != 0 {
		r.Namespace = &netns.Namespace{ID: j.Netns}
	}
	if j.In != nil && j.Out != nil {
		r.Rate = Rate{Known: true, In: *j.In, Out: *j.Out}
	}
	local, remote := fivetuple.Address{Name: j.Local}, fivetuple.Address{Name: j.Remote}
	if r.Protocol.IsInet() {
		local, remote = fivetuple.ParseAddress(j.Local), fivetuple.ParseAddress(j.Remote)
	}
	r.Local, r.Name = local.AddrPort, local.Name
	r.Remote, r.PeerName = remote.AddrPort, remote.Name
	if j.Cookie != "" {
		var err error
		if r.Cookie, err = strconv.ParseUint(j.Cookie, 16, 64); err != nil {
			return fmt.Errorf("read cookie %q: want a hexadecimal number", j.Cookie)
		}
	}
	return nil
}

func unownedNamed(name string) Unowned {
	for u, n := range unownedNames {
		if n == name {
			return Unowned(u)
		}
	}
	return Hidden
}

func timerKind(name string) sockdiag.TimerKind {
	for k, n := range timerNames {
		if n == name {
			return sockdiag.TimerKind(k)
		}
	}
	return sockdiag.TimerOff
}

// appendCookieJSON writes the cookie as the target cookie:HEX takes it, and not
// as a number, which many readers of JSON would round.
func appendCookieJSON(b []byte, r *Row) []byte {
	b = append(b, '"')
	if r.Cookie != 0 {
		b = strconv.AppendUint(b, r.Cookie, 16)
	}
	return append(b, '"')
}

func appendOwnersJSON(b []byte, holders []owner.Holder) []byte {
	b = append(b, '[')
	for i := range holders {
		h := &holders[i]
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"pid":`...)
		b = strconv.AppendInt(b, int64(h.PID), 10)
		b = append(b, `,"command":`...)
		b = appendJSONString(b, h.Command)
		b = append(b, `,"user":`...)
		b = appendJSONString(b, h.User)
		b = append(b, `,"fd":`...)
		b = strconv.AppendInt(b, int64(h.FD), 10)
		if h.Thread != 0 {
			b = strconv.AppendInt(append(b, `,"thread":`...), int64(h.Thread), 10)
		}
		b = append(b, '}')
	}
	return append(b, ']')
}

func appendTimerJSON(b []byte, r *Row) []byte {
	if r.Timer.Kind == sockdiag.TimerOff {
		return append(b, "null"...)
	}
	return appendMarshalled(b, jsonTimer{timerName(r.Timer.Kind), r.Timer.Expires.Seconds(), r.Timer.Retransmits})
}

func appendMarshalled(b []byte, v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err) // none of the types here can fail
	}
	return append(b, text...)
}

// appendJSONText writes what text appends as a JSON string.
func appendJSONText(b []byte, r *Row, text func([]byte, *Row) []byte) []byte {
	start := len(b)
	b = text(append(b, '"'), r)
	if plain(b[start+1:]) {
		return append(b, '"')
	}
	return appendJSONString(b[:start], string(b[start+1:]))
}

// appendJSONString writes a string so that a terminal obeys nothing in it.
func appendJSONString(b []byte, s string) []byte {
	if plain(s) {
		return append(append(append(b, '"'), s...), '"')
	}
	start := len(b)
	b = appendMarshalled(b, s)
	for i := start; i < len(b); {
		c, size := utf8.DecodeRune(b[i:])
		if !unicode.IsControl(c) {
			i += size
			continue
		}
		rest := string(b[i+size:])
		b = append(fmt.Appendf(b[:i], `\u%04x`, c), rest...)
		i += len(`\u0000`)
	}
	return b
}

// plain says whether text stands for itself in JSON.
func plain[T string | []byte](s T) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}
