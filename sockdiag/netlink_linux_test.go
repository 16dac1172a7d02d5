package sockdiag

import (
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
)

// netlinkMessage builds one message as the kernel does, padded.
func netlinkMessage(kind, flags uint16, seq uint32, body []byte) []byte {
	var b []byte
	b = binary.NativeEndian.AppendUint32(b, uint32(unix.NLMSG_HDRLEN+len(body)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, body...)
	return append(b, make([]byte, align(len(b))-len(b))...)
}

func attribute(kind uint16, value []byte) []byte {
	var b []byte
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofNlAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	return append(b, make([]byte, align(len(b))-len(b))...)
}

func errorNumber(n int32) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(n)) }

// inetBody is a struct inet_diag_msg of an IPv6 listener, with attributes.
func inetBody() []byte {
	b := make([]byte, inetMessageSize)
	b[0], b[1] = unix.AF_INET6, uint8(fivetuple.StateListen)
	binary.BigEndian.PutUint16(b[4:], 8080)
	a := netip.MustParseAddr("fe80::1").As16()
	copy(b[8:], a[:])
	binary.NativeEndian.PutUint32(b[40:], 1)
	binary.NativeEndian.PutUint32(b[44:], 0x55667788)
	binary.NativeEndian.PutUint32(b[48:], 0x11223344)
	binary.NativeEndian.PutUint32(b[56:], 3)
	binary.NativeEndian.PutUint32(b[60:], 128)
	binary.NativeEndian.PutUint32(b[64:], 1000)
	binary.NativeEndian.PutUint32(b[68:], 4242)
	b = append(b, attribute(8, []byte{0})...)
	return append(b, attribute(inetDiagV6Only, []byte{1})...)
}

// unixBody is a struct unix_diag_msg of a connected stream socket with every attribute.
func unixBody(name string) []byte {
	b := make([]byte, unixMessageSize)
	b[0], b[1], b[2] = unix.AF_UNIX, unix.SOCK_STREAM, uint8(fivetuple.StateEstablished)
	binary.NativeEndian.PutUint32(b[4:], 4242)
	binary.NativeEndian.PutUint32(b[8:], 9)
	b = append(b, attribute(unixDiagName, []byte(name))...)
	b = append(b, attribute(unixDiagPeer, errorNumber(4243))...)
	b = append(b, attribute(unixDiagQueues, append(errorNumber(5), errorNumber(6)...))...)
	return append(b, attribute(unixDiagUID, errorNumber(1000))...)
}

func TestDecodesEveryField(t *testing.T) {
	got := Socket{Protocol: fivetuple.TCP}
	want := Socket{
		Protocol: fivetuple.TCP, State: fivetuple.StateListen, V6Only: true, Interface: 1,
		Local: netip.MustParseAddrPort("[fe80::1%lo]:8080"), Cookie: 0x1122334455667788,
		Inode: 4242, UID: 1000, RecvQueue: 3, SendQueue: 128,
	}
	if err := (&decoder{zones: zoneNames{1: "lo"}}).inet(&got, inetBody()); err != nil || got != want {
		t.Errorf("inet: got %+v, %v\nwant %+v", got, err, want)
	}
	got = Socket{}
	want = Socket{
		Protocol: fivetuple.Unix, State: fivetuple.StateEstablished, Name: "/run/a", PeerInode: 4243,
		Cookie: 9, Inode: 4242, UID: 1000, RecvQueue: 5, SendQueue: 6,
	}
	if err := decodeUnix(&got, unixBody("/run/a\x00")); err != nil || got != want {
		t.Errorf("unix: got %+v, %v\nwant %+v", got, err, want)
	}
}

func TestTruncatedMessagesAreErrors(t *testing.T) {
	var s Socket
	inet, local := inetBody(), unixBody("/run/a\x00")
	whole := []int{72, 77, 78, 79, 80, 85, 86, 87} // between attributes, and in their padding
	for n := range inet {
		if err := (&decoder{zones: zoneNames{}}).inet(&s, inet[:n]); (err == nil) != slices.Contains(whole, n) {
			t.Errorf("inet: first %d of %d bytes: got error %v", n, len(inet), err)
		}
	}
	whole = []int{16, 27, 28, 36, 48}
	for n := range local {
		if err := decodeUnix(&s, local[:n]); (err == nil) != slices.Contains(whole, n) {
			t.Errorf("unix: first %d of %d bytes: got error %v", n, len(local), err)
		}
	}
	message := netlinkMessage(unix.SOCK_DIAG_BY_FAMILY, 0, 1, inet)
	for n := 1; n < len(message); n++ {
		a := answers{kind: unix.SOCK_DIAG_BY_FAMILY, seq: 1, each: func([]byte) (bool, error) { return true, nil }}
		if _, err := a.take(message[:n]); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("netlink: first %d of %d bytes: got error %v, want %v", n, len(message), err, io.ErrUnexpectedEOF)
		}
	}
}

func TestAnswersOfTheKernel(t *testing.T) {
	row := netlinkMessage(unix.SOCK_DIAG_BY_FAMILY, unix.NLM_F_MULTI, 7, []byte("row"))
	foreign := netlinkMessage(unix.SOCK_DIAG_BY_FAMILY, unix.NLM_F_MULTI, 6, []byte("not asked for"))
	changed := netlinkMessage(unix.SOCK_DIAG_BY_FAMILY, unix.NLM_F_MULTI|unix.NLM_F_DUMP_INTR, 7, []byte("row"))
	done := netlinkMessage(unix.NLMSG_DONE, unix.NLM_F_MULTI, 7, errorNumber(0))
	for _, c := range []struct {
		name     string
		messages [][]byte
		rows     int
		done     bool
		err      error
	}{
		{"more to come", [][]byte{row, row}, 2, false, nil},
		{"all", [][]byte{row, foreign, row, done, row}, 2, true, nil},
		{"interrupted", [][]byte{row, changed, row, done}, 3, true, ErrInterrupted},
		{"refused", [][]byte{netlinkMessage(unix.NLMSG_ERROR, 0, 7, errorNumber(-int32(unix.ENOENT)))}, 0, true, unix.ENOENT},
		{"failed half way", [][]byte{row, netlinkMessage(unix.NLMSG_DONE, 0, 7, errorNumber(-int32(unix.ENOMEM)))}, 1, true, unix.ENOMEM},
		{"error cut short", [][]byte{netlinkMessage(unix.NLMSG_ERROR, 0, 7, []byte{1})}, 0, true, io.ErrUnexpectedEOF},
		{"acknowledged", [][]byte{row, netlinkMessage(unix.NLMSG_ERROR, 0, 7, errorNumber(0))}, 1, true, nil},
	} {
		rows := 0
		a := answers{kind: unix.SOCK_DIAG_BY_FAMILY, seq: 7, each: func(b []byte) (bool, error) {
			if string(b) != "row" {
				t.Errorf("%s: got row %q", c.name, b)
			}
			rows++
			return true, nil
		}}
		_, err := a.take(slices.Concat(c.messages...))
		if rows != c.rows || a.done != c.done || !errors.Is(err, c.err) {
			t.Errorf("%s: got %d rows, done %v, error %v, want %d, %v, %v", c.name, rows, a.done, err, c.rows, c.done, c.err)
		}
	}
}

func TestMissingDiagnosticsAreUnsupportedAndNameTheModule(t *testing.T) {
	err := request{module: "udp_diag"}.explain(unix.ENOENT)
	if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "modprobe udp_diag") {
		t.Errorf("got error %v", err)
	}
}

func TestUnixNames(t *testing.T) {
	for _, c := range []struct{ raw, want string }{
		{"", ""},
		{"/run/a.sock\x00", "/run/a.sock"},
		{"/run/a.sock", "/run/a.sock"},
		{"relative\x00garbage", "relative"},
		{"\x00name", "@name"},
		{"\x00", "@"},
		{"\x00a\x00b\x00", `@a\x00b\x00`},
		{"/tmp/\x1b[31mred\n\x00", `/tmp/\x1b[31mred\n`},
		{"/tmp/\xffü\u202e\x00", `/tmp/\xffü\u202e`},
		{`/run/a\x2db` + "\x00", `/run/a\x2db`},
	} {
		if got := unixName([]byte(c.raw)); got != c.want {
			t.Errorf("%q: got %q, want %q", c.raw, got, c.want)
		}
	}
}

func TestDecodingAnIPSocketAllocatesNothing(t *testing.T) {
	message, a, s := benchmarkMessage()
	if n := testing.AllocsPerRun(100, func() { a.take(message) }); n != 0 {
		t.Errorf("got %v allocations, want 0", n)
	}
	if s.Inode != 4242 || s.Info.RTT != 5*time.Millisecond || s.Congestion != "cubic" || s.Memory != wordMemory || s.Cgroup != 7 || s.Mark != 8 || s.TOS != 9 || s.TClass != 10 {
		t.Errorf("got %+v with %v", *s, s.Info)
	}
}

// benchmarkMessage is one listener with every detail, what takes it, and the
// Socket it is decoded into.
func benchmarkMessage() ([]byte, *answers, *Socket) {
	s, d := new(Socket), &decoder{details: allDetails, zones: zoneNames{1: "lo"}}
	info := make([]byte, 280)
	binary.NativeEndian.PutUint32(info[68:], 5000) // tcpi_rtt
	body := append(inetBody(), attribute(inetDiagInfo, info)...)
	body = append(body, attribute(inetDiagCongestion, []byte("cubic\x00"))...)
	body = append(body, attribute(inetDiagMemory, words(1, 2, 3, 4, 5, 6, 7, 8, 9))...)
	body = append(body, attribute(inetDiagCgroup, binary.NativeEndian.AppendUint64(nil, 7))...)
	body = append(body, attribute(inetDiagMark, words(8))...)
	body = append(body, attribute(inetDiagTOS, []byte{9})...)
	body = append(body, attribute(inetDiagTClass, []byte{10})...)
	return netlinkMessage(unix.SOCK_DIAG_BY_FAMILY, 0, 1, body), &answers{kind: unix.SOCK_DIAG_BY_FAMILY, seq: 1, each: func(b []byte) (bool, error) {
		*s = Socket{Protocol: fivetuple.TCP}
		return true, d.inet(s, b)
	}}, s
}

func BenchmarkDecodeMessage(b *testing.B) {
	message, a, _ := benchmarkMessage()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.take(message); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzAnswers(f *testing.F) {
	for _, body := range [][]byte{inetBody(), unixBody("\x00a"), packetBody(), netlinkBody(), vsockBody(), rawBody()} {
		f.Add(netlinkMessage(unix.SOCK_DIAG_BY_FAMILY, 0, 1, body))
	}
	all, _, _ := benchmarkMessage()
	f.Add(all)
	f.Add(netlinkMessage(unix.NLMSG_ERROR, 0, 1, errorNumber(-2)))
	f.Add(netlinkMessage(unix.NLMSG_ERROR, 0, 1, errorNumber(0)))
	f.Add(netlinkMessage(unix.NLMSG_DONE, unix.NLM_F_DUMP_INTR, 1, errorNumber(0)))
	f.Fuzz(func(t *testing.T, b []byte) {
		var s Socket
		d := &decoder{details: allDetails, zones: zoneNames{}}
		decoders := []struct {
			name   string
			least  int
			decode func(*Socket, []byte) error
		}{
			{"inet", inetMessageSize, d.inet}, {"unix", unixMessageSize, decodeUnix}, {"packet", packetMessageSize, d.packet},
			{"netlink", netlinkMessageSize, d.netlink}, {"vsock", vsockMessageSize, decodeVsock}, {"event", inetMessageSize, d.event},
		}
		a := answers{kind: unix.SOCK_DIAG_BY_FAMILY, seq: 1, each: func(body []byte) (bool, error) {
			for _, c := range decoders {
				s = Socket{Protocol: fivetuple.TCP}
				if err := c.decode(&s, body); err == nil && len(body) < c.least {
					t.Errorf("%s: no error for %d bytes", c.name, len(body))
				}
				if strings.ContainsFunc(s.Name+s.Congestion, func(r rune) bool { return r < ' ' || r == 0x7f }) {
					t.Errorf("%s: control character in name %q or %q", c.name, s.Name, s.Congestion)
				}
			}
			return true, nil
		}}
		if more, err := a.take(b); err == nil && !more {
			t.Error("stopped without an error")
		}
	})
}
