package sockopt

import (
	"encoding/binary"
	"encoding/json"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// ramp is a struct tcp_info with another byte in every place, none over 127 so that nothing overflows.
func ramp() []byte {
	b := make([]byte, tcpInfoSize)
	for i := range b {
		b[i] = byte(i*37%127 + 1)
	}
	return b
}

func TestDecodeTCPInfoReadsEveryFieldFromItsOffset(t *testing.T) {
	b := ramp()
	v := reflect.ValueOf(DecodeTCPInfo(b))
	native := binary.NativeEndian
	// The unit of the kernel for each duration: microseconds but for these.
	milliseconds := []string{"last_data_sent_s", "last_ack_sent_s", "last_data_recv_s", "last_ack_recv_s", "total_rto_time_s"}
	last := 0
	for i := range v.NumField() {
		tag := v.Type().Field(i).Tag
		end, _ := strconv.Atoi(tag.Get("end"))
		name := tag.Get("json")
		if end == 0 || 6 < end && end <= 8 { // Size, and the bit fields
			continue
		}
		var want uint64
		size := end - last
		if last == 6 {
			size = end - 8
		}
		switch size {
		case 1:
			want = uint64(b[end-1])
		case 2:
			want = uint64(native.Uint16(b[end-2:]))
		case 4:
			want = uint64(native.Uint32(b[end-4:]))
		case 8:
			want = native.Uint64(b[end-8:])
		default:
			t.Fatalf("%s: %d bytes", name, size)
		}
		last = end
		var got uint64
		switch field := v.Field(i).Interface().(type) {
		case time.Duration:
			unit := time.Microsecond
			if slices.Contains(milliseconds, name) {
				unit = time.Millisecond
			}
			if size == 8 {
				want = min(want, math.MaxInt64/1000)
			}
			got = uint64(field / unit)
		default:
			got = v.Field(i).Uint()
		}
		if got != want {
			t.Errorf("%s: got %d, want %d", name, got, want)
		}
	}
	if last != tcpInfoSize {
		t.Errorf("the fields end at %d, want %d", last, tcpInfoSize)
	}
}

func TestDecodeTCPInfoBitFields(t *testing.T) {
	b := make([]byte, 8)
	b[6], b[7] = 0x97, 0b101
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		b[6], b[7] = 0x79, 0b11000000
	}
	info := DecodeTCPInfo(b)
	if info.SndWScale != 7 || info.RcvWScale != 9 || !info.DeliveryRateAppLimited || info.FastOpenClientFail != 2 {
		t.Errorf("got %d,%d,%v,%d, want 7,9,true,2", info.SndWScale, info.RcvWScale, info.DeliveryRateAppLimited, info.FastOpenClientFail)
	}
}

func TestDecodeTCPInfoOfOtherKernels(t *testing.T) {
	whole := DecodeTCPInfo(ramp())
	longer := DecodeTCPInfo(append(ramp(), 1, 2, 3, 4))
	if longer.Size != tcpInfoSize+4 {
		t.Errorf("Size %d", longer.Size)
	}
	if longer.Size = whole.Size; longer != whole {
		t.Errorf("a longer struct changes the fields")
	}
	short := DecodeTCPInfo(ramp()[:104]) // Linux 2.6
	if short.TotalRetrans != whole.TotalRetrans || short.PacingRate != 0 || short.Size != 104 {
		t.Errorf("short: %+v", short)
	}
	var names []string
	for name := range short.Fields() {
		names = append(names, name)
	}
	if last := names[len(names)-1]; last != "total_retrans" {
		t.Errorf("the last field of 104 bytes is %s", last)
	}
	if got := (DecodeTCPInfo(nil)); got != (TCPInfo{}) {
		t.Errorf("nothing decodes to %+v", got)
	}
}

func TestTCPInfoJSON(t *testing.T) {
	b := make([]byte, 152)
	b[0], b[1] = 1, 3
	binary.NativeEndian.PutUint32(b[68:], 1500)
	binary.NativeEndian.PutUint32(b[148:], math.MaxUint32)
	text, err := json.Marshal(DecodeTCPInfo(b))
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{"state": 1.0, "ca_state": "recovery", "rtt_s": 0.0015, "min_rtt_s": 0.0, "delivery_rate": nil} {
		if got[key] != want {
			t.Errorf("%s = %v, want %v", key, got[key], want)
		}
	}
}

// Of what a kernel of each size gave, everything comes back, Size too.
func TestTCPInfoJSONRoundTrip(t *testing.T) {
	for size := range tcpInfoSize + 1 {
		if size > 0 && !fieldEnd(size) {
			continue
		}
		want := DecodeTCPInfo(ramp()[:size])
		text, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var got TCPInfo
		if err := json.Unmarshal(text, &got); err != nil || got != want {
			t.Errorf("size %d: got %+v, %v, want %+v", size, got, err, want)
		}
	}
}

func fieldEnd(size int) bool {
	return slices.ContainsFunc(tcpInfoFields, func(f tcpInfoField) bool { return f.end == size })
}

func TestTCPInfoJSONSaysWhatIsWrong(t *testing.T) {
	for text, want := range map[string]string{
		`[]`:                      "cannot unmarshal array",
		`{"rtt_s":"x"}`:           `rtt_s: "x" is no number of seconds`,
		`{"rtt_s":1e300}`:         "rtt_s: 1e300 is no number of seconds",
		`{"snd_cwnd":-1}`:         "snd_cwnd: ",
		`{"snd_cwnd":4294967296}`: "snd_cwnd: ",
		`{"ca_state":"odd"}`:      `ca_state: unknown congestion state "odd"`,
		`{"ca_state":"256"}`:      `ca_state: unknown congestion state "256"`,
	} {
		var i TCPInfo
		if err := json.Unmarshal([]byte(text), &i); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
	var i TCPInfo
	if err := json.Unmarshal([]byte(`{"rtt_s":1.5e-3,"later_field":[1]}`), &i); err != nil || i.RTT != 1500*time.Microsecond || i.Size != 72 {
		t.Errorf("got %v, %v of size %d", err, i.RTT, i.Size)
	}
}

func TestAppendSecondsIsExact(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0", 1: "0.000000001", 1500 * time.Microsecond: "0.0015", -time.Second: "-1", 10 * time.Second: "10",
		math.MaxInt64: "9223372036.854775807", math.MinInt64: "-9223372036.854775808",
	} {
		got := string(appendSeconds(nil, d))
		back, err := parseSeconds(got)
		if got != want || back != d || err != nil {
			t.Errorf("%d: got %s, want %s; back %d, %v", d, got, want, back, err)
		}
	}
}

func TestDecodeTCPInfoDoesNotAllocate(t *testing.T) {
	b := ramp()
	if n := testing.AllocsPerRun(100, func() { sink = DecodeTCPInfo(b) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

var sink TCPInfo

func BenchmarkDecodeTCPInfo(b *testing.B) {
	raw := ramp()
	b.ReportAllocs()
	for b.Loop() {
		sink = DecodeTCPInfo(raw)
	}
}

func BenchmarkTCPInfoAppendJSON(b *testing.B) {
	info := DecodeTCPInfo(ramp())
	buf := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		buf = info.AppendJSON(buf[:0])
	}
}

func FuzzDecodeTCPInfo(f *testing.F) {
	f.Add([]byte{})
	f.Add(ramp())
	f.Add(ramp()[:104])
	f.Add(slices.Repeat([]byte{0xff}, 300))
	f.Fuzz(func(t *testing.T, b []byte) {
		info := DecodeTCPInfo(b)
		padded := DecodeTCPInfo(append(slices.Clone(b), make([]byte, tcpInfoSize)...))
		if padded.Size = info.Size; padded != info {
			t.Errorf("the fields missing are not zero: %+v", info)
		}
		for name, value := range info.Fields() {
			if d, ok := value.(time.Duration); ok && d < 0 {
				t.Errorf("%s is %v", name, d)
			}
		}
		text, err := json.Marshal(info)
		if err != nil || !json.Valid(text) {
			t.Errorf("%s, %v", text, err)
		}
		var back TCPInfo
		if err := json.Unmarshal(text, &back); err != nil {
			t.Errorf("%s: %v", text, err)
		}
		if back.Size = info.Size; fieldEnd(len(b)) && back != info {
			t.Errorf("back from JSON: got %+v, want %+v", back, info)
		}
	})
}
