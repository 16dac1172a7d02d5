package sockopt

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"iter"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// TCPInfo is struct tcp_info of include/uapi/linux/tcp.h as of Linux 6.18: what the kernel knows of a TCP connection.
// Fields that an older kernel does not have are zero; Size tells. The end tag is the offset behind the field in the
// kernel's struct.
type TCPInfo struct {
	// Size is the number of bytes the kernel gave: 104 before Linux 3.15, 280 since 6.18.
	Size int `json:"-"`

	State       uint8   `json:"state" end:"1"`       // enum of include/net/tcp_states.h: 1 ESTABLISHED ... 10 LISTEN
	CAState     CAState `json:"ca_state" end:"2"`    // congestion state of the sender
	Retransmits uint8   `json:"retransmits" end:"3"` // retransmission timeouts in a row without an answer
	Probes      uint8   `json:"probes" end:"4"`      // zero window or keep-alive probes unanswered
	Backoff     uint8   `json:"backoff" end:"5"`     // how often the timeout was doubled
	Options     uint8   `json:"options" end:"6"`     // OptTimestamps ...

	SndWScale              uint8 `json:"snd_wscale" end:"7"`                // shift of the windows the peer announces
	RcvWScale              uint8 `json:"rcv_wscale" end:"7"`                // shift of the windows announced to the peer
	DeliveryRateAppLimited bool  `json:"delivery_rate_app_limited" end:"8"` // DeliveryRate was held down by the application
	FastOpenClientFail     uint8 `json:"fastopen_client_fail" end:"8"`      // 0 none, 1 no cookie, 2 data not acknowledged, 3 SYN sent again

	RTO    time.Duration `json:"rto_s" end:"12"`   // retransmission timeout
	ATO    time.Duration `json:"ato_s" end:"16"`   // delayed acknowledgement timeout
	SndMSS uint32        `json:"snd_mss" end:"20"` // bytes
	RcvMSS uint32        `json:"rcv_mss" end:"24"` // bytes, estimated

	Unacked uint32 `json:"unacked" end:"28"` // segments in flight; of a listener: connections waiting for accept
	Sacked  uint32 `json:"sacked" end:"32"`  // segments acknowledged out of order; of a listener: its backlog
	Lost    uint32 `json:"lost" end:"36"`    // segments believed lost
	Retrans uint32 `json:"retrans" end:"40"` // retransmitted segments in flight
	Fackets uint32 `json:"fackets" end:"44"` // no longer used by the kernel

	LastDataSent time.Duration `json:"last_data_sent_s" end:"48"` // how long ago, to the millisecond
	LastAckSent  time.Duration `json:"last_ack_sent_s" end:"52"`  // not kept by the kernel
	LastDataRecv time.Duration `json:"last_data_recv_s" end:"56"`
	LastAckRecv  time.Duration `json:"last_ack_recv_s" end:"60"`

	PMTU        uint32        `json:"pmtu" end:"64"`         // bytes
	RcvSSThresh uint32        `json:"rcv_ssthresh" end:"68"` // bytes
	RTT         time.Duration `json:"rtt_s" end:"72"`        // smoothed
	RTTVar      time.Duration `json:"rttvar_s" end:"76"`     // its mean deviation
	SndSSThresh uint32        `json:"snd_ssthresh" end:"80"` // segments; InfiniteSSThresh until the first loss
	SndCwnd     uint32        `json:"snd_cwnd" end:"84"`     // segments
	AdvMSS      uint32        `json:"advmss" end:"88"`       // bytes
	Reordering  uint32        `json:"reordering" end:"92"`   // segments

	RcvRTT       time.Duration `json:"rcv_rtt_s" end:"96"`      // as the receiver sees it
	RcvSpace     uint32        `json:"rcv_space" end:"100"`     // bytes the application reads per round trip
	TotalRetrans uint32        `json:"total_retrans" end:"104"` // segments retransmitted in all

	PacingRate    uint64 `json:"pacing_rate" end:"112"`     // bytes per second; all ones for unlimited
	MaxPacingRate uint64 `json:"max_pacing_rate" end:"120"` // the max-pacing-rate option
	BytesAcked    uint64 `json:"bytes_acked" end:"128"`     // sent and acknowledged, the SYN counts as one
	BytesReceived uint64 `json:"bytes_received" end:"136"`
	SegsOut       uint32 `json:"segs_out" end:"140"`
	SegsIn        uint32 `json:"segs_in" end:"144"`

	NotSentBytes uint32        `json:"notsent_bytes" end:"148"` // queued and not yet sent
	MinRTT       time.Duration `json:"min_rtt_s" end:"152"`     // 0 before the first measurement
	DataSegsIn   uint32        `json:"data_segs_in" end:"156"`
	DataSegsOut  uint32        `json:"data_segs_out" end:"160"`

	DeliveryRate  uint64        `json:"delivery_rate" end:"168"`    // bytes per second, latest measurement
	BusyTime      time.Duration `json:"busy_time_s" end:"176"`      // time with data to send
	RwndLimited   time.Duration `json:"rwnd_limited_s" end:"184"`   // part of it waiting for the peer's window
	SndbufLimited time.Duration `json:"sndbuf_limited_s" end:"192"` // part of it waiting for a larger send buffer

	Delivered    uint32 `json:"delivered" end:"196"`     // data segments delivered
	DeliveredCE  uint32 `json:"delivered_ce" end:"200"`  // of these, with an ECN mark
	BytesSent    uint64 `json:"bytes_sent" end:"208"`    // retransmissions included
	BytesRetrans uint64 `json:"bytes_retrans" end:"216"` // retransmitted
	DSACKDups    uint32 `json:"dsack_dups" end:"220"`    // segments the peer got twice
	ReordSeen    uint32 `json:"reord_seen" end:"224"`    // reordering events
	RcvOOOPack   uint32 `json:"rcv_ooopack" end:"228"`   // segments received out of order
	SndWnd       uint32 `json:"snd_wnd" end:"232"`       // window the peer announces, bytes, scaled
	RcvWnd       uint32 `json:"rcv_wnd" end:"236"`       // window announced to the peer, bytes, scaled
	Rehash       uint32 `json:"rehash" end:"240"`        // times another path was tried

	TotalRTO           uint16        `json:"total_rto" end:"242"`            // retransmission timeouts
	TotalRTORecoveries uint16        `json:"total_rto_recoveries" end:"244"` // times recovered from them
	TotalRTOTime       time.Duration `json:"total_rto_time_s" end:"248"`     // time spent in them

	// Accurate ECN (RFC 9768), since 6.18.
	ReceivedCE       uint32 `json:"received_ce" end:"252"` // segments received with a congestion mark
	DeliveredE1Bytes uint32 `json:"delivered_e1_bytes" end:"256"`
	DeliveredE0Bytes uint32 `json:"delivered_e0_bytes" end:"260"`
	DeliveredCEBytes uint32 `json:"delivered_ce_bytes" end:"264"`
	ReceivedE1Bytes  uint32 `json:"received_e1_bytes" end:"268"`
	ReceivedE0Bytes  uint32 `json:"received_e0_bytes" end:"272"`
	ReceivedCEBytes  uint32 `json:"received_ce_bytes" end:"276"`

	// AccECNFailMode and AccECNOptSeen are two 16 bit fields in 6.18 and 6.19. Linux 7.0 has other bit fields in the same
	// four bytes, and nothing in the struct tells: ecn_mode (2 bits), accecn_opt_seen (2), accecn_fail_mode (4) and
	// options2 (24). There, on a little-endian machine, the first three are in the low byte of AccECNFailMode.
	AccECNFailMode uint16 `json:"accecn_fail_mode" end:"278"`
	AccECNOptSeen  uint16 `json:"accecn_opt_seen" end:"280"`
}

// Bits of TCPInfo.Options.
const (
	OptTimestamps = 1 << iota // RFC 7323 time stamps
	OptSACK                   // selective acknowledgements
	OptWScale                 // window scaling
	OptECN                    // explicit congestion notification
	OptECNSeen                // and a marked packet was seen
	OptSynData                // fast open: data in the SYN was acknowledged
	OptUsecTS                 // time stamps count microseconds
	OptTFOChild               // the connection came by fast open
)

// InfiniteSSThresh is the SndSSThresh of a connection that has not lost anything yet.
const InfiniteSSThresh = 0x7fffffff

// CAState is the congestion state of a sender.
type CAState uint8

var caStates = [...]string{"open", "disorder", "cwr", "recovery", "loss"}

func (s CAState) String() string {
	if int(s) < len(caStates) {
		return caStates[s]
	}
	return strconv.Itoa(int(s))
}

const tcpInfoSize = 280

// DecodeTCPInfo reads struct tcp_info in the byte order of this machine. A shorter buffer leaves the fields behind it
// zero, a longer one has its end ignored. It does not allocate.
func DecodeTCPInfo(b []byte) TCPInfo {
	var r tcpInfoBytes
	copy(r[:], b)
	scales, flags := r[6], r[7]
	t := TCPInfo{
		Size:  len(b),
		State: r[0], CAState: CAState(r[1]), Retransmits: r[2], Probes: r[3], Backoff: r[4], Options: r[5],
		SndWScale: scales & 0xf, RcvWScale: scales >> 4,
		DeliveryRateAppLimited: flags&1 != 0, FastOpenClientFail: flags >> 1 & 3,

		RTO: r.usec(8), ATO: r.usec(12), SndMSS: r.u32(16), RcvMSS: r.u32(20),
		Unacked: r.u32(24), Sacked: r.u32(28), Lost: r.u32(32), Retrans: r.u32(36), Fackets: r.u32(40),
		LastDataSent: r.msec(44), LastAckSent: r.msec(48), LastDataRecv: r.msec(52), LastAckRecv: r.msec(56),
		PMTU: r.u32(60), RcvSSThresh: r.u32(64), RTT: r.usec(68), RTTVar: r.usec(72), SndSSThresh: r.u32(76),
		SndCwnd: r.u32(80), AdvMSS: r.u32(84), Reordering: r.u32(88),
		RcvRTT: r.usec(92), RcvSpace: r.u32(96), TotalRetrans: r.u32(100),
		PacingRate: r.u64(104), MaxPacingRate: r.u64(112), BytesAcked: r.u64(120), BytesReceived: r.u64(128),
		SegsOut: r.u32(136), SegsIn: r.u32(140),
		NotSentBytes: r.u32(144), MinRTT: r.usec(148), DataSegsIn: r.u32(152), DataSegsOut: r.u32(156),
		DeliveryRate: r.u64(160), BusyTime: r.usec64(168), RwndLimited: r.usec64(176), SndbufLimited: r.usec64(184),
		Delivered: r.u32(192), DeliveredCE: r.u32(196), BytesSent: r.u64(200), BytesRetrans: r.u64(208),
		DSACKDups: r.u32(216), ReordSeen: r.u32(220), RcvOOOPack: r.u32(224), SndWnd: r.u32(228),
		RcvWnd: r.u32(232), Rehash: r.u32(236),
		TotalRTO: r.u16(240), TotalRTORecoveries: r.u16(242), TotalRTOTime: r.msec(244),
		ReceivedCE: r.u32(248), DeliveredE1Bytes: r.u32(252), DeliveredE0Bytes: r.u32(256), DeliveredCEBytes: r.u32(260),
		ReceivedE1Bytes: r.u32(264), ReceivedE0Bytes: r.u32(268), ReceivedCEBytes: r.u32(272),
		AccECNFailMode: r.u16(276), AccECNOptSeen: r.u16(278),
	}
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 { // C puts the first bit field on top there
		t.SndWScale, t.RcvWScale = scales>>4, scales&0xf
		t.DeliveryRateAppLimited, t.FastOpenClientFail = flags>>7 != 0, flags>>5&3
	}
	if r.u32(148) == math.MaxUint32 { // the kernel's mark for no sample yet
		t.MinRTT = 0
	}
	return t
}

// tcpInfoBytes is struct tcp_info.
type tcpInfoBytes [tcpInfoSize]byte

func (r *tcpInfoBytes) u16(at int) uint16         { return binary.NativeEndian.Uint16(r[at:]) }
func (r *tcpInfoBytes) u32(at int) uint32         { return binary.NativeEndian.Uint32(r[at:]) }
func (r *tcpInfoBytes) u64(at int) uint64         { return binary.NativeEndian.Uint64(r[at:]) }
func (r *tcpInfoBytes) usec(at int) time.Duration { return time.Duration(r.u32(at)) * time.Microsecond }
func (r *tcpInfoBytes) msec(at int) time.Duration { return time.Duration(r.u32(at)) * time.Millisecond }
func (r *tcpInfoBytes) usec64(at int) time.Duration {
	return time.Duration(min(r.u64(at), math.MaxInt64/1000)) * time.Microsecond
}

// TCPInfoOf reads TCP_INFO of a connection or listener, such as a *net.TCPConn.
func TCPInfoOf(c syscall.Conn) (t TCPInfo, err error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return t, fmt.Errorf("get TCP_INFO: %w", err)
	}
	var getErr error
	if err := rc.Control(func(fd uintptr) { t, getErr = GetTCPInfo(int(fd)) }); err != nil {
		return t, fmt.Errorf("get TCP_INFO: %w", err)
	}
	return t, getErr
}

// Fields goes through the fields that the kernel gave, in its order, by their JSON names. Durations stay durations.
func (t TCPInfo) Fields() iter.Seq2[string, any] {
	return func(yield func(name string, value any) bool) {
		v := reflect.ValueOf(t)
		for i := range v.NumField() {
			tag := v.Type().Field(i).Tag
			if end, _ := strconv.Atoi(tag.Get("end")); end == 0 || end > t.Size {
				continue
			}
			if !yield(tag.Get("json"), v.Field(i).Interface()) {
				return
			}
		}
	}
}

// MarshalJSON writes the fields that the kernel gave, durations in seconds, the congestion state as text.
func (t TCPInfo) MarshalJSON() ([]byte, error) { return t.AppendJSON(make([]byte, 0, 1536)), nil }

// AppendJSON is [TCPInfo.MarshalJSON] that allocates nothing.
func (t *TCPInfo) AppendJSON(b []byte) []byte {
	v := reflect.ValueOf(t).Elem()
	b = append(b, '{')
	for i := range tcpInfoFields {
		f := &tcpInfoFields[i]
		if f.end > t.Size {
			continue
		}
		b = append(b, f.key...)
		switch field := v.Field(f.index); {
		case f.duration:
			b = appendSeconds(b, time.Duration(field.Int()))
		case f.index == caStateField:
			b = append(append(append(b, '"'), t.CAState.String()...), '"')
		case field.Kind() == reflect.Bool:
			b = strconv.AppendBool(b, field.Bool())
		default:
			b = strconv.AppendUint(b, field.Uint(), 10)
		}
		b = append(b, ',')
	}
	if b[len(b)-1] == ',' {
		b = b[:len(b)-1]
	}
	return append(b, '}')
}

// UnmarshalJSON is the inverse of [TCPInfo.MarshalJSON]. Size is that of a kernel whose last field is the last one there.
func (t *TCPInfo) UnmarshalJSON(b []byte) error {
	*t = TCPInfo{}
	v := reflect.ValueOf(t).Elem()
	next := 0 // the field that most likely comes next
	return eachMember(b, func(name, text []byte) error {
		if next == len(tcpInfoFields) || string(name) != tcpInfoFields[next].name {
			if next = slices.IndexFunc(tcpInfoFields, func(f tcpInfoField) bool { return f.name == string(name) }); next < 0 {
				next = 0
				return nil
			}
		}
		f := &tcpInfoFields[next]
		next++
		t.Size = max(t.Size, f.end)
		if err := t.parseField(f, v.Field(f.index), text); err != nil {
			return fmt.Errorf("read TCP_INFO: %s: %w", f.name, err)
		}
		return nil
	})
}

func (t *TCPInfo) parseField(f *tcpInfoField, field reflect.Value, text []byte) (err error) {
	switch {
	case f.duration:
		var d time.Duration
		d, err = parseSeconds(string(text))
		field.SetInt(int64(d))
	case f.index == caStateField:
		t.CAState, err = parseCAState(text)
	case field.CanUint():
		var n uint64
		n, err = strconv.ParseUint(string(text), 10, field.Type().Bits())
		field.SetUint(n)
	default:
		err = json.Unmarshal(text, field.Addr().Interface())
	}
	return err
}

// eachMember calls f with the name and the value of each member of a JSON object,
// which is valid, as what encoding/json gives to an UnmarshalJSON is.
func eachMember(b []byte, f func(name, value []byte) error) error {
	if b = bytes.TrimSpace(b); len(b) == 0 || b[0] != '{' {
		return json.Unmarshal(b, &map[string]json.RawMessage{}) // null is none, all else an error
	}
	var name []byte
	depth, value := 0, 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			start := i + 1
			for i = start; i < len(b) && b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
			if depth == 1 && value == 0 {
				name = b[start:min(i, len(b))]
			}
		case ':':
			if depth == 1 {
				value = i + 1
			}
		case '{', '[':
			depth++
		case '}', ']', ',':
			if depth == 1 && value > 0 {
				if err := f(name, bytes.TrimSpace(b[value:i])); err != nil {
					return err
				}
				value = 0
			}
			if b[i] != ',' {
				depth--
			}
		}
	}
	return nil
}

// tcpInfoField is what the tags of a field of TCPInfo say.
type tcpInfoField struct {
	index, end int
	name, key  string // the key is the name as it stands in JSON
	duration   bool
}

const caStateField = 2 // the index of CAState

var tcpInfoFields = func() (all []tcpInfoField) {
	t := reflect.TypeFor[TCPInfo]()
	for i := range t.NumField() {
		f := t.Field(i)
		if end, _ := strconv.Atoi(f.Tag.Get("end")); end > 0 {
			name := f.Tag.Get("json")
			all = append(all, tcpInfoField{i, end, name, strconv.Quote(name) + ":", f.Type == reflect.TypeFor[time.Duration]()})
		}
	}
	return all
}()

// appendSeconds writes a duration in seconds, exactly.
func appendSeconds(b []byte, d time.Duration) []byte {
	n := uint64(d)
	if d < 0 {
		b, n = append(b, '-'), -n
	}
	b = strconv.AppendUint(b, n/1e9, 10)
	rest := n % 1e9
	if rest == 0 {
		return b
	}
	digits := strconv.AppendUint(make([]byte, 0, 10), 1e9+rest, 10) // the 1 keeps the zeros
	digits[0] = '.'
	return append(b, bytes.TrimRight(digits, "0")...)
}

// parseSeconds is the inverse of [appendSeconds]; it takes any other number of JSON to the nanosecond, too.
func parseSeconds(text string) (time.Duration, error) {
	if d, err := time.ParseDuration(text + "s"); err == nil { // it reads decimals exactly
		return d, nil
	}
	s, err := strconv.ParseFloat(text, 64)
	if err != nil || math.Abs(s) >= math.MaxInt64/1e9 {
		return 0, fmt.Errorf("%.40s is no number of seconds", text)
	}
	return time.Duration(math.Round(s * 1e9)), nil
}

func parseCAState(text []byte) (CAState, error) {
	var name string
	if err := json.Unmarshal(text, &name); err != nil {
		return 0, err
	}
	if i := slices.Index(caStates[:], name); i >= 0 {
		return CAState(i), nil
	}
	n, err := strconv.ParseUint(name, 10, 8)
	if err != nil {
		return 0, fmt.Errorf("unknown congestion state %q", name)
	}
	return CAState(n), nil
}

// String is the short form of the info option: the fields one looks at first.
func (t TCPInfo) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "state=%d ca=%s rtt=%v/%v rto=%v mss=%d pmtu=%d cwnd=%d wscale=%d,%d acked=%d received=%d retrans=%d/%d",
		t.State, t.CAState, t.RTT, t.RTTVar, t.RTO, t.SndMSS, t.PMTU, t.SndCwnd, t.SndWScale, t.RcvWScale,
		t.BytesAcked, t.BytesReceived, t.Retrans, t.TotalRetrans)
	return b.String()
}
