package sockopt

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestTCPInfoOffsets compares the layout with the struct that x/sys generates from the kernel headers.
func TestTCPInfoOffsets(t *testing.T) {
	kernel := reflect.TypeFor[unix.TCPInfo]()
	ours := map[string]string{}
	for f := range fieldsOf(reflect.TypeFor[TCPInfo]()) {
		ours[strings.TrimSuffix(f.Tag.Get("json"), "_s")] = f.Tag.Get("end")
	}
	checked := 0
	for f := range fieldsOf(kernel) {
		name := strings.ToLower(f.Name)
		if name == "_" {
			continue
		}
		if got, want := ours[name], fmt.Sprint(f.Offset+f.Type.Size()); got != want {
			t.Errorf("%s ends at %s, want %s", name, got, want)
		}
		checked++
	}
	if checked < 60 {
		t.Errorf("only %d fields compared", checked)
	}
}

func fieldsOf(typ reflect.Type) func(yield func(reflect.StructField) bool) {
	return func(yield func(reflect.StructField) bool) {
		for i := range typ.NumField() {
			if !yield(typ.Field(i)) {
				return
			}
		}
	}
}

// TestTCPInfoAgreesWithSS compares a live connection with what ss(8) prints of it.
func TestTCPInfoAgreesWithSS(t *testing.T) {
	server, client := pair(t, net.ListenConfig{Control: settings(t, "rcvbuf=1MiB").Control}, net.Dialer{})
	const up, down = 300_000, 1234
	written := make(chan error, 1)
	go func() {
		_, err := client.Write(make([]byte, up))
		written <- err
	}()
	if _, err := io.ReadFull(server, make([]byte, up)); err != nil {
		t.Fatal(err)
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	if _, err := server.Write(make([]byte, down)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(client, make([]byte, down)); err != nil {
		t.Fatal(err)
	}
	for {
		before, err := TCPInfoOf(client)
		if err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("ss", "-tinH", "src", client.LocalAddr().String(), "dst", client.RemoteAddr().String()).CombinedOutput()
		if err != nil {
			t.Fatalf("ss (apt-get install iproute2): %v %s", err, out)
		}
		after, err := TCPInfoOf(client)
		if err != nil {
			t.Fatal(err)
		}
		if stable(before) != stable(after) {
			continue // an acknowledgement came in between
		}
		fields := map[string]string{}
		for _, m := range regexp.MustCompile(`(\w+):(\S+)`).FindAllStringSubmatch(string(out), -1) {
			fields[m[1]] = m[2]
		}
		for key, want := range stable(after).fields() {
			if got := fields[key]; got != want {
				t.Errorf("ss has %s:%s, TCP_INFO %s\n%s", key, got, want, out)
			}
		}
		if after.State != 1 || after.BytesReceived != down || after.BytesAcked != up+1 || after.Options&(OptTimestamps|OptSACK|OptWScale) != OptTimestamps|OptSACK|OptWScale {
			t.Errorf("got %+v", after)
		}
		if after.RTT <= 0 || after.RTO < after.RTT || after.MinRTT > after.RTT || after.SegsIn == 0 || after.Size < 232 {
			t.Errorf("got %+v", after)
		}
		return
	}
}

// stableInfo is what does not change on a quiet connection.
type stableInfo struct {
	SndMSS, AdvMSS, RcvMSS, PMTU, SndCwnd, SegsOut, SegsIn, DataSegsIn, DataSegsOut, RcvSpace, SndWnd uint32
	BytesAcked, BytesReceived, BytesSent                                                              uint64
	SndWScale, RcvWScale                                                                              uint8
	RTT, RTTVar, MinRTT, RTO                                                                          float64 // milliseconds
}

func stable(t TCPInfo) stableInfo {
	return stableInfo{t.SndMSS, t.AdvMSS, t.RcvMSS, t.PMTU, t.SndCwnd, t.SegsOut, t.SegsIn, t.DataSegsIn, t.DataSegsOut, t.RcvSpace, t.SndWnd,
		t.BytesAcked, t.BytesReceived, t.BytesSent, t.SndWScale, t.RcvWScale,
		ms(t.RTT), ms(t.RTTVar), ms(t.MinRTT), ms(t.RTO)}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func (s stableInfo) fields() map[string]string {
	return map[string]string{
		"mss": fmt.Sprint(s.SndMSS), "advmss": fmt.Sprint(s.AdvMSS), "rcvmss": fmt.Sprint(s.RcvMSS), "pmtu": fmt.Sprint(s.PMTU),
		"cwnd": fmt.Sprint(s.SndCwnd), "segs_out": fmt.Sprint(s.SegsOut), "segs_in": fmt.Sprint(s.SegsIn),
		"data_segs_in": fmt.Sprint(s.DataSegsIn), "data_segs_out": fmt.Sprint(s.DataSegsOut), "rcv_space": fmt.Sprint(s.RcvSpace),
		"snd_wnd": fmt.Sprint(s.SndWnd), "bytes_acked": fmt.Sprint(s.BytesAcked), "bytes_received": fmt.Sprint(s.BytesReceived), "bytes_sent": fmt.Sprint(s.BytesSent),
		"wscale": fmt.Sprintf("%d,%d", s.SndWScale, s.RcvWScale), "rtt": fmt.Sprintf("%g/%g", s.RTT, s.RTTVar),
		"minrtt": fmt.Sprintf("%g", s.MinRTT), "rto": fmt.Sprintf("%g", s.RTO),
	}
}

func TestTCPInfoOfAListenerAndOfOtherSockets(t *testing.T) {
	fd := tcpSocket(t)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 17)); err != nil {
		t.Fatal(err)
	}
	info, err := GetTCPInfo(fd)
	if err != nil || info.State != 10 || info.Sacked != 17 || info.Unacked != 0 {
		t.Errorf("listener: state %d, backlog %d, waiting %d, %v", info.State, info.Sacked, info.Unacked, err)
	}
	if _, err := GetTCPInfo(open(t, testSockets[2])); !errors.Is(err, ErrSocket) {
		t.Errorf("UDP: %v, want %v", err, ErrSocket)
	}
	if _, err := GetTCPInfo(-1); !errors.Is(err, unix.EBADF) {
		t.Errorf("no descriptor: %v, want %v", err, unix.EBADF)
	}
}

func BenchmarkGetTCPInfo(b *testing.B) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(fd)
	b.ReportAllocs()
	for b.Loop() {
		if sink, err = GetTCPInfo(fd); err != nil {
			b.Fatal(err)
		}
	}
}
