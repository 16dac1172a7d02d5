package inspect

import (
	"context"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/lab"
	"github.com/fivetuple/fivetuple/sockdiag"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/table"
)

const ms = time.Millisecond

// flow is a connection over a link: a sender of many or few bytes, and a reader
// that reads all, or one piece each 10 ms, or nothing.
type flow struct {
	link         lab.Conditions
	send, recv   string // options of the sender and, from its listener, of the receiver
	trickle      bool
	piece        int // bytes
	deaf         bool
	fromReceiver bool // whose socket is judged
}

// TestNamesWhatStarvesAConnection starves a connection in each way, under several
// kinds of congestion control, and asks for the verdict.
func TestNamesWhatStarvesAConnection(t *testing.T) {
	near, far := lab.Conditions{Delay: 10 * ms}, lab.Conditions{Delay: 50 * ms}
	cubic, all := []string{"cubic"}, []string{"cubic", "bbr", "reno"}
	for _, tt := range []struct {
		name      string
		flow      flow
		controls  []string
		cause     Cause
		direction Direction
		summary   string // must be in it
	}{
		{"a sender that trickles", flow{link: near, trickle: true}, all, Application, Sending, "writes less"},
		{"a peer that does not read", flow{link: near, recv: "rcvbuf=8KiB", deaf: true}, all, ReceiveWindow, Sending, "does not read"},
		{"a peer that reads slowly", flow{link: near, recv: "rcvbuf=16KiB", piece: 1000}, cubic, ReceiveWindow, Sending, "peer's window"},
		{"a small window on a long path", flow{link: far, recv: "rcvbuf=16KiB"}, all, ReceiveWindow, Sending, "rcvbuf is small"},
		{"a small send buffer on a long path", flow{link: far, send: "sndbuf=4KiB"}, all, SendBuffer, Sending, "send buffer"},
		{"2% loss", flow{link: lab.Conditions{Delay: 10 * ms, Loss: 0.02}}, []string{"cubic", "reno"}, Loss, Sending, "lost"},
		{"5% loss", flow{link: lab.Conditions{Delay: 10 * ms, Loss: 0.05}}, []string{"cubic", "reno"}, Loss, Sending, "lost"},
		{"3% loss on a long path", flow{link: lab.Conditions{Delay: 50 * ms, Loss: 0.03}}, cubic, Loss, Sending, "loss"},
		{"3% loss and jitter", flow{link: lab.Conditions{Delay: 10 * ms, Jitter: 10 * ms, Loss: 0.03}}, cubic, Loss, Sending, "lost"},
		{"a rate with a deep queue", flow{link: lab.Conditions{Delay: 10 * ms, Rate: 10e6, Queue: 256 << 10}}, all, Congestion, Sending, "path"},
		{"a rate with a queue of one round trip", flow{link: lab.Conditions{Delay: 10 * ms, Rate: 20e6, Queue: 50 << 10}}, cubic, Congestion, Sending, "path"},
		{"a rate with a short queue", flow{link: lab.Conditions{Delay: 10 * ms, Rate: 10e6, Queue: 20 << 10}}, []string{"cubic", "reno"}, Congestion, Sending, "path"},
		{"a receiver that does not read", flow{link: near, recv: "rcvbuf=8KiB", deaf: true, fromReceiver: true}, cubic, Application, Receiving, "does not read"},
		{"a receiver that reads slowly", flow{link: near, recv: "rcvbuf=16KiB", piece: 1000, fromReceiver: true}, cubic, Application, Receiving, "does not read"},
		{"a receiver with a small window", flow{link: far, recv: "rcvbuf=16KiB", fromReceiver: true}, cubic, ReceiveWindow, Receiving, "receive window"},
		{"a receiver of little", flow{link: near, trickle: true, fromReceiver: true}, cubic, Unknown, Receiving, "inspect the peer's socket"},
	} {
		for _, control := range tt.controls {
			t.Run(tt.name+"/"+control, func(t *testing.T) {
				t.Parallel()
				f := tt.flow
				f.send = strings.TrimPrefix(f.send+",congestion="+control, ",")
				v, samples := f.judge(t)
				if v.Cause != tt.cause || v.Direction != tt.direction || !strings.Contains(v.Summary, tt.summary) {
					t.Errorf("got %s %s, %q, want %s %s, %q; shares %+v, evidence:\n%s", v.Direction, v.Cause, v.Summary,
						tt.direction, tt.cause, tt.summary, v.Shares, strings.Join(v.Evidence, "\n"))
					for _, s := range samples {
						t.Logf("queues %d %d %+v", s.RecvQueue, s.SendQueue, *s.Info)
					}
				}
			})
		}
	}
}

// judge lets the connection run until it is past its beginning, and watches it.
func (f flow) judge(t *testing.T) (Verdict, []Sample) {
	sender, receiver, host := f.open(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go f.write(ctx, sender)
	if !f.deaf {
		go f.read(ctx, receiver)
	}
	watched := sender
	if f.fromReceiver {
		watched = receiver
	}
	var samples []Sample
	host.Do(t, func() {
		samples = watch(t, watched, sender)
	})
	return Judge(samples), samples
}

// open connects host a, which sends, to host b.
func (f flow) open(t *testing.T) (sender, receiver *net.TCPConn, watched *lab.Host) {
	a, b := lab.NewHost(t, "a"), lab.NewHost(t, "b")
	f.link.Seed = uint64(time.Now().UnixNano()) // it must be right with any luck
	t.Logf("seed %d", f.link.Seed)
	lab.ShapedLink(t, a, b, f.link, "10.0.0.0/24")
	l, err := b.Listen("tcp4", "10.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	apply(t, l.(syscall.Conn), f.recv)
	c, err := a.Dial(t.Context(), "tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	apply(t, c.(syscall.Conn), f.send)
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	watched = a
	if f.fromReceiver {
		watched = b
	}
	return c.(*net.TCPConn), s.(*net.TCPConn), watched
}

func (f flow) write(ctx context.Context, c net.Conn) {
	buf := make([]byte, 64<<10)
	if !f.trickle {
		for ctx.Err() == nil {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
		return
	}
	each(ctx, 20*ms, func() error {
		_, err := c.Write(buf[:500])
		return err
	})
}

func (f flow) read(ctx context.Context, c net.Conn) {
	if f.piece == 0 {
		io.Copy(io.Discard, struct{ io.Reader }{c})
		return
	}
	buf := make([]byte, f.piece)
	each(ctx, 10*ms, func() error {
		_, err := c.Read(buf)
		return err
	})
}

// each is the pace of a program, until it fails or ctx is done.
func each(ctx context.Context, interval time.Duration, do func() error) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for do() == nil {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// watch takes samples for a second, once the sender has been busy for a while.
func watch(t *testing.T, c, sender *net.TCPConn) []Sample {
	row := rowOf(t, c)
	deadline := time.Now().Add(20 * time.Second)
	for range time.Tick(5 * ms) {
		info, err := sockopt.TCPInfoOf(sender)
		if err != nil {
			t.Error(err)
			return nil
		}
		if info.BusyTime >= max(500*ms, 15*info.RTT) { // past slow start
			break
		}
		if time.Now().After(deadline) {
			t.Errorf("the sender was busy for %v only", info.BusyTime)
			return nil
		}
	}
	var samples []Sample
	for s, err := range Samples(t.Context(), row, 100*ms) {
		if err != nil {
			t.Error(err)
			return nil
		}
		if samples = append(samples, s); len(samples) == 11 {
			break
		}
	}
	return samples
}

// rowOf finds a connection in the table of the host that this thread is in.
func rowOf(t *testing.T, c *net.TCPConn) table.Row {
	local, remote := fivetuple.AddressOf(c.LocalAddr()).AddrPort, fivetuple.AddressOf(c.RemoteAddr()).AddrPort
	all, err := sockdiag.List(context.Background(), sockdiag.Query{Protocols: []fivetuple.Network{fivetuple.TCP}})
	if err != nil {
		t.Error(err)
	}
	for _, s := range all {
		if s.Local == local && s.Remote == remote {
			return table.Row{Socket: s}
		}
	}
	t.Errorf("no socket %v -> %v in the table", local, remote)
	return table.Row{}
}

func apply(t *testing.T, c syscall.Conn, options string) {
	t.Helper()
	if options == "" {
		return
	}
	var s sockopt.Settings
	if err := s.Set(options); err != nil {
		t.Fatal(err)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.ApplyConn(raw); err != nil {
		t.Fatal(err)
	}
}
