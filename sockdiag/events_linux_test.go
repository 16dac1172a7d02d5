package sockdiag

import (
	"context"
	"encoding/binary"
	"errors"
	"iter"
	"net"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
)

// events collects in the background, so that a test can wait for some.
func events(t *testing.T, all iter.Seq2[Socket, error]) <-chan Socket {
	c := make(chan Socket, 1000)
	go func() {
		defer close(c)
		for s, err := range all {
			if err != nil {
				t.Errorf("got error %v", err)
			}
			c <- s
		}
	}()
	return c
}

// await gives the first event that matches.
func await(t *testing.T, c <-chan Socket, match func(Socket) bool) Socket {
	t.Helper()
	late := time.After(5 * time.Second)
	for {
		select {
		case s, more := <-c:
			if !more {
				t.Fatal("the events ended")
			}
			if match(s) {
				return s
			}
		case <-late:
			t.Fatal("no event after 5 s")
		}
	}
}

func TestDestroyedTellsTheEndOfSockets(t *testing.T) {
	if !alone(t) {
		return
	}
	ctx, cancel := context.WithCancel(t.Context())
	all := must(Destroyed(ctx))
	c := events(t, all)
	for _, address := range []string{"127.0.0.1:0", "[::1]:0", "[fe80::1%void]:0"} {
		l := listen(t, "tcp", address)
		client := connect(t, l.Addr())
		server := accept(t, l)
		must(client.Write(make([]byte, 1000)))
		must(server.Read(make([]byte, 1000)))
		u := packets(t, "udp", address)
		for _, end := range []interface {
			LocalAddr() net.Addr
			Close() error
		}{client, server, u} {
			want := byInode(t, end)
			ok(end.Close())
			got := await(t, c, func(s Socket) bool { return s.Cookie == want.Cookie })
			if got.Protocol != want.Protocol || got.Local != want.Local || got.Remote != want.Remote || got.Interface != want.Interface || got.Number != 0 {
				t.Errorf("got %+v\nwant %+v", got, want)
			}
			if want.Protocol == fivetuple.UDP {
				if got.Info != nil {
					t.Errorf("udp: got %v", got.Info)
				}
				continue
			}
			if got.Info == nil || got.Info.BytesAcked+got.Info.BytesReceived < 1000 || got.State != fivetuple.StateClose {
				t.Errorf("got %v, %v, want CLOSE and the 1000 bytes", got.State, got.Info)
			}
		}
	}
	cancel()
	for range c {
	}
}

func TestTheInfoOfAnEventIsKept(t *testing.T) {
	d := &decoder{details: WithInfo, zones: zoneNames{1: "lo"}}
	var events [2]Socket
	for i := range events {
		info := make([]byte, 280)
		binary.NativeEndian.PutUint32(info[68:], uint32(i+1)) // tcpi_rtt, µs
		ok(d.event(&events[i], append(inetBody(), attribute(inetDiagInfo, info)...)))
	}
	for i, s := range events {
		if want := time.Duration(i+1) * time.Microsecond; s.Info.RTT != want {
			t.Errorf("event %d: got round trip %v, want %v", i, s.Info.RTT, want)
		}
	}
}

func TestDestroyedNeedsNoRight(t *testing.T) {
	if !alone(t) {
		return
	}
	subscribed := make(chan error)
	go func() { // on a thread that ends with it
		runtime.LockOSThread()
		ok(unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &new([2]unix.CapUserData)[0]))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		_, err := Destroyed(ctx)
		subscribed <- err
	}()
	if err := <-subscribed; err != nil {
		t.Errorf("got error %v", err)
	}
}

func TestDestroyedEndsAndLeaksNothing(t *testing.T) {
	if !alone(t) {
		return
	}
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // which would close files
	descriptors := func() int { return len(must(os.ReadDir("/proc/self/fd"))) }
	must(net.Listen("tcp", "127.0.0.1:0")).Close() // the poller has descriptors of its own
	before, goroutines := descriptors(), runtime.NumGoroutine()
	for name, use := range map[string]func(context.Context, context.CancelFunc, iter.Seq2[Socket, error]){
		"ctx done before the loop": func(_ context.Context, cancel context.CancelFunc, all iter.Seq2[Socket, error]) {
			cancel()
			for range all {
			}
		},
		"ctx done in the loop": func(_ context.Context, cancel context.CancelFunc, all iter.Seq2[Socket, error]) {
			time.AfterFunc(10*time.Millisecond, cancel)
			for range all {
			}
		},
		"the loop is left": func(_ context.Context, cancel context.CancelFunc, all iter.Seq2[Socket, error]) {
			ok(packets(t, "udp", "127.0.0.1:0").Close())
			for range all {
				break
			}
		},
		"no loop": func(_ context.Context, cancel context.CancelFunc, _ iter.Seq2[Socket, error]) { cancel() },
	} {
		ctx, cancel := context.WithCancel(t.Context())
		use(ctx, cancel, must(Destroyed(ctx)))
		deadline := time.Now().Add(5 * time.Second)
		for (descriptors() > before || runtime.NumGoroutine() > goroutines) && time.Now().Before(deadline) {
			runtime.Gosched()
		}
		if d, g := descriptors(), runtime.NumGoroutine(); d > before || g > goroutines {
			t.Errorf("%s: %d descriptors and %d goroutines, before %d and %d", name, d, g, before, goroutines)
		}
		cancel()
	}
}

func TestDestroyedReportsLostEventsAndGoesOn(t *testing.T) {
	if !alone(t) {
		return
	}
	f := must(subscribe())
	defer f.Close()
	var inode uint32
	control(f, func(fd int) {
		inode = fdInode(fd)
		ok(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4096))
	})
	for range 100 {
		ok(packets(t, "udp", "127.0.0.1:0").Close())
	}
	find(t, Query{Protocols: []fivetuple.Network{fivetuple.Netlink}, Details: WithMemory}, func(s Socket) bool { return s.Inode == inode && s.Memory.Drops > 0 })
	// Until its buffer is empty the kernel drops more, so later ones are made until one comes through.
	lost, after, done := 0, 0, make(chan struct{})
	var later sync.WaitGroup
	ok(readEvents(f, func(s Socket, err error) bool {
		switch {
		case errors.Is(err, ErrEventsLost) && lost == 0:
			lost++
			later.Go(func() {
				for {
					select {
					case <-done:
						return
					case <-time.After(time.Millisecond):
						ok(must(net.ListenPacket("udp", "127.0.0.2:0")).Close())
					}
				}
			})
		case err != nil && !errors.Is(err, ErrEventsLost):
			t.Error(err)
		case s.Local.Addr() == netip.AddrFrom4([4]byte{127, 0, 0, 2}):
			after++
		}
		return after == 0
	}))
	close(done)
	later.Wait()
	if lost == 0 || after != 1 {
		t.Errorf("got %d times lost, %d events after that, want both", lost, after)
	}
}
