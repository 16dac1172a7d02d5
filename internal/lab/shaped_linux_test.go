package lab

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// makes are the two ways to make a shaped link: the one for users who may open
// /dev/net/tun, and the one for all.
var makes = map[string]func(a, b *Host, mtu int) ([2]wire, error){
	"as the user may": newWires,
	"by veth pairs":   newPacketWires,
}

// onEachMake runs a test on a link of each make, between the hosts a and b.
func onEachMake(t *testing.T, c Conditions, test func(t *testing.T, link *Shaped, a, b *Host)) {
	for name, newWires := range makes {
		t.Run(name, func(t *testing.T) {
			a, b := NewHost(t, "a"), NewHost(t, "b")
			link := shapedLink(t, a, b, c, newWires, []string{"10.0.0.0/24", "fd00::/64"})
			test(t, link, a, b)
			for _, d := range []*Direction{link.AtoB, link.BtoA} {
				if stats := d.Stats(); stats.Overrun != 0 {
					t.Errorf("packets that were not read in time: got %d, want 0", stats.Overrun)
				}
			}
		})
	}
}

func TestShapedLinkCarriesAllProtocols(t *testing.T) {
	onEachMake(t, Conditions{}, func(t *testing.T, link *Shaped, a, b *Host) {
		for _, tt := range []struct{ network, address string }{
			{"tcp", "10.0.0.2:7"},
			{"tcp", "[fd00::2]:7"},
			{"udp", "10.0.0.2:7"},
			{"udp", "[fd00::2]:7"},
		} {
			serveEcho(t, b, tt.network, tt.address)
			wantEcho(t, a, tt.network, tt.address)
		}
	})
}

// The packet numbers of a seed are worth nothing if the kernel takes some of them.
func TestShapedLinkIsSilentOfItself(t *testing.T) {
	onEachMake(t, Conditions{}, func(t *testing.T, link *Shaped, a, b *Host) {
		conn, peer := udpPair(t, a, b, "[fd00::2]:0")
		send(t, conn, 0)
		receive(t, peer, 1)
		waitStill(t, link.AtoB)
		if forth, back := link.AtoB.Stats().Packets, link.BtoA.Stats().Packets; forth != 1 || back != 0 {
			t.Errorf("packets: got %d forth, %d back, want the one sent", forth, back)
		}
	})
}

func TestShapedLinkDelays(t *testing.T) {
	const delay, patience = 20 * time.Millisecond, 100 * time.Millisecond // the machine may be busy
	onEachMake(t, Conditions{Delay: delay}, func(t *testing.T, link *Shaped, a, b *Host) {
		link.BtoA.Set(Conditions{Delay: 2 * delay})
		for _, address := range []string{"10.0.0.2:7", "[fd00::2]:7"} {
			serveEcho(t, b, "udp", address)
			start := time.Now()
			wantEcho(t, a, "udp", address)
			if got := time.Since(start); got < 3*delay || got > 3*delay+patience {
				t.Errorf("round trip of %s: got %v, want %v to %v", address, got, 3*delay, 3*delay+patience)
			}
		}
	})
}

func TestShapedLinkLosesTheSamePacketsAgain(t *testing.T) {
	c := Conditions{Loss: 0.2, Seed: 42}
	const count = 250 // a socket's receive buffer holds them all
	// What the shaper loses by itself; the test of it knows how many are right.
	s := newShaper(c)
	var want []uint32
	for i := range uint32(count) {
		if s.admit(nil, 0) {
			want = append(want, i)
		}
	}
	onEachMake(t, c, func(t *testing.T, link *Shaped, a, b *Host) {
		if link.AtoB.shaper.direction == link.BtoA.shaper.direction {
			t.Error("both directions have the same luck")
		}
		conn, peer := udpPair(t, a, b, "10.0.0.2:0")
		for range 2 {
			before := link.AtoB.Stats().Lost
			for i := range uint32(count) {
				send(t, conn, i)
			}
			if got := receive(t, peer, len(want)); !slices.Equal(got, want) {
				t.Errorf("packets that arrived: got %v, want %v", got, want)
			}
			eventually(t, "the link has counted all", func() bool {
				return link.AtoB.Stats().Lost-before == int64(count-len(want))
			})
			link.Set(c)
		}
	})
}

func TestShapedLinkReorders(t *testing.T) {
	onEachMake(t, Conditions{Delay: 50 * time.Millisecond, Reorder: 0.3, Seed: 5}, func(t *testing.T, link *Shaped, a, b *Host) {
		conn, peer := udpPair(t, a, b, "10.0.0.2:0")
		const count = 30
		for i := range uint32(count) {
			send(t, conn, i)
		}
		got := receive(t, peer, count)
		if slices.IsSorted(got) || link.AtoB.Stats().Reordered == 0 {
			t.Errorf("order of arrival: got %v, %d reordered, want some ahead", got, link.AtoB.Stats().Reordered)
		}
		if slices.Sort(got); len(slices.Compact(got)) != count {
			t.Errorf("got %v, want each packet once", got)
		}
	})
}

func TestShapedLinkKeepsToTheRate(t *testing.T) {
	const rate, size = 4e6, 200_000
	onEachMake(t, Conditions{Rate: rate, Queue: 100_000}, func(t *testing.T, link *Shaped, a, b *Host) {
		conn, peer := tcpPair(t, a, b, "10.0.0.2:0")
		start := time.Now()
		go conn.Write(make([]byte, size))
		if _, err := io.CopyN(io.Discard, peer, size); err != nil {
			t.Fatal(err)
		}
		least := time.Duration(size * 8 / rate * float64(time.Second))
		if got := time.Since(start); got < least || got > 3*least {
			t.Errorf("transfer of %d bytes: took %v, want %v or little more", size, got, least)
		}
	})
}

func TestShapedLinkDropsWhatTheQueueCannotHold(t *testing.T) {
	// A packet of 1000 bytes is sent for 0.8 s. It takes the sender far less to send the rest.
	onEachMake(t, Conditions{Rate: 10_000, Queue: 3000}, func(t *testing.T, link *Shaped, a, b *Host) {
		conn, peer := udpPair(t, a, b, "10.0.0.2:0")
		message := make([]byte, 1000-28) // less the headers of IPv4 and UDP
		for range 10 {
			if _, err := conn.Write(message); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "six packets are dropped", func() bool { return link.AtoB.Stats().Dropped == 6 })
		link.Set(Conditions{}) // those that wait need not wait for so long
		for range 4 {
			receive(t, peer, 1)
		}
		want := Stats{Packets: 4, Bytes: 4000, Dropped: 6}
		eventually(t, "four packets are delivered", func() bool { return link.AtoB.Stats() == want })
	})
}

func TestShapedLinkCountsWhatItCannotCarry(t *testing.T) {
	for name, newWires := range makes {
		a, b := NewHost(t, "a"), NewHost(t, "b")
		link := shapedLink(t, a, b, Conditions{}, newWires, []string{"10.0.0.0/24"})
		conn, _ := udpPair(t, a, b, "10.0.0.2:0")
		const sent = 4 * wireQueue
		link.AtoB.mu.Lock() // nobody reads
		for i := range uint32(sent) {
			send(t, conn, i)
		}
		link.AtoB.mu.Unlock()
		eventually(t, "each packet is delivered or counted", func() bool {
			stats := link.AtoB.Stats()
			return stats.Packets+stats.Overrun == sent
		})
		if stats := link.AtoB.Stats(); stats.Packets == 0 || stats.Overrun == 0 {
			t.Errorf("%s: got %+v, want some delivered and some not", name, stats)
		}
	}
}

func TestShapedLinkHasItsMTU(t *testing.T) {
	const mtu = 1300
	onEachMake(t, Conditions{MTU: mtu}, func(t *testing.T, link *Shaped, a, b *Host) {
		conn, peer := udpPair(t, a, b, "10.0.0.2:0")
		message := make([]byte, 5000)
		if _, err := conn.Write(message); err != nil {
			t.Fatal(err)
		}
		peer.SetReadDeadline(time.Now().Add(10 * time.Second))
		if n, err := peer.Read(make([]byte, 9000)); n != len(message) || err != nil {
			t.Errorf("message in fragments: got %d bytes, %v, want %d", n, err, len(message))
		}
		if got := link.AtoB.Stats().Packets; got != 4 {
			t.Errorf("fragments: got %d, want 4", got)
		}
		setDontFragment(t, conn)
		if _, err := conn.Write(message[:mtu-28]); err != nil {
			t.Errorf("message of the MTU: %v", err)
		}
		if _, err := conn.Write(message[:mtu-28+1]); !errors.Is(err, syscall.EMSGSIZE) {
			t.Errorf("message above the MTU: got %v, want %v", err, syscall.EMSGSIZE)
		}
		a.Do(t, func() {
			if device, err := net.InterfaceByName("b"); err != nil || device.MTU != mtu {
				t.Errorf("device: got %+v, %v, want MTU %d", device, err, mtu)
			}
		})
	})
}

func TestShapedLinkOfAnyMTU(t *testing.T) {
	for _, mtu := range []int{68, 576, 9000, 65535} {
		for name, newWires := range makes {
			a, b := NewHost(t, "a"), NewHost(t, "b")
			link := shapedLink(t, a, b, Conditions{MTU: mtu}, newWires, []string{"10.0.0.0/24"})
			conn, peer := udpPair(t, a, b, "10.0.0.2:0")
			setDontFragment(t, conn)
			message := make([]byte, mtu-28)
			if _, err := conn.Write(message); err != nil {
				t.Fatalf("MTU %d, %s: %v", mtu, name, err)
			}
			peer.SetReadDeadline(time.Now().Add(10 * time.Second))
			if n, err := peer.Read(make([]byte, 70000)); n != len(message) || err != nil {
				t.Errorf("MTU %d, %s: got %d bytes, %v, want %d", mtu, name, n, err, len(message))
			}
			if got, want := link.AtoB.Stats(), (Stats{Packets: 1, Bytes: int64(mtu)}); got != want {
				t.Errorf("MTU %d, %s: got %+v, want %+v", mtu, name, got, want)
			}
		}
	}
}

func TestShapedLinkSurvivesADeviceThatIsDown(t *testing.T) {
	onEachMake(t, Conditions{}, func(t *testing.T, link *Shaped, a, b *Host) {
		conn, peer := udpPair(t, a, b, "10.0.0.2:0")
		send(t, conn, 1)
		receive(t, peer, 1)
		// The packet comes when the device is down, and is gone when it is up again.
		link.Set(Conditions{Delay: 50 * time.Millisecond})
		ip(t, b, "link", "set", "dev", "a", "down")
		send(t, conn, 2)
		eventually(t, "both packets have been carried", func() bool {
			link.AtoB.mu.Lock()
			defer link.AtoB.mu.Unlock()
			return link.AtoB.shaper.number == 2 && link.AtoB.shaper.held() == 0 && !link.AtoB.awake
		})
		ip(t, b, "link", "set", "dev", "a", "up")
		b.waitReady(t, "a")
		send(t, conn, 3)
		if got := receive(t, peer, 1); got[0] != 3 {
			t.Errorf("got packet %d, want 3", got[0])
		}
	})
}

func ip(t *testing.T, h *Host, args ...string) {
	t.Helper()
	h.Do(t, func() {
		cmd := exec.Command("ip", args...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v %s", cmd, withAdvice(cmd, err), out)
		}
	})
}

func TestTCPGetsThroughABadShapedLink(t *testing.T) {
	bad := Conditions{Delay: 2 * time.Millisecond, Jitter: time.Millisecond, Loss: 0.02, Reorder: 0.05, Rate: 50e6, Seed: 9}
	for _, address := range []string{"10.0.0.2:0", "[fd00::2]:0"} {
		onEachMake(t, bad, func(t *testing.T, link *Shaped, a, b *Host) {
			conn, peer := tcpPair(t, a, b, address)
			sent := make([]byte, 1<<20)
			rand.NewChaCha8([32]byte{}).Read(sent)
			go func() {
				conn.Write(sent)
				conn.(*net.TCPConn).CloseWrite()
			}()
			peer.SetReadDeadline(time.Now().Add(time.Minute))
			if got, err := io.ReadAll(peer); err != nil || !bytes.Equal(got, sent) {
				t.Errorf("got %d bytes, %v, want the %d sent", len(got), err, len(sent))
			}
			if stats := link.AtoB.Stats(); stats.Lost == 0 || stats.Reordered == 0 || stats.Bytes < 1<<20 {
				t.Errorf("stats: got %+v, want losses and reordering", stats)
			}
		})
	}
}

func TestConditionsChangeWhileTheLinkIsUsed(t *testing.T) {
	onEachMake(t, Conditions{Loss: 1}, func(t *testing.T, link *Shaped, a, b *Host) {
		conn, peer := udpPair(t, a, b, "10.0.0.2:0")
		send(t, conn, 1)
		eventually(t, "the packet is lost", func() bool { return link.AtoB.Stats().Lost == 1 })
		link.Set(Conditions{Delay: time.Hour})
		send(t, conn, 2)
		eventually(t, "the packet is on its way", func() bool {
			link.AtoB.mu.Lock()
			defer link.AtoB.mu.Unlock()
			return link.AtoB.shaper.held() == 1
		})
		// A packet overtakes the one that takes an hour only if that is asked for.
		link.AtoB.Set(Conditions{Reorder: 1})
		send(t, conn, 3)
		if got := receive(t, peer, 1); got[0] != 3 {
			t.Errorf("got packet %d, want 3", got[0])
		}
		if got := link.AtoB.Stats().Reordered; got != 1 {
			t.Errorf("reordered: got %d, want 1", got)
		}
	})
}

func TestConditionsOutOfRangeAreRefused(t *testing.T) {
	a, b := NewHost(t, "a"), NewHost(t, "b")
	for want, c := range map[string]Conditions{
		"delay -1ns":  {Delay: -1},
		"jitter -1ns": {Jitter: -1},
		"loss 1.1":    {Loss: 1.1},
		"reorder -1":  {Reorder: -1},
		"rate -1":     {Rate: -1},
		"queue -1":    {Queue: -1},
		"MTU 67":      {MTU: 67},
		"MTU 65536":   {MTU: 65536},
	} {
		if got := failure(t, func(tb testing.TB) { ShapedLink(tb, a, b, c) }); !strings.Contains(got, want) {
			t.Errorf("got failure %q, want %q in it", got, want)
		}
	}
	long := NewHost(t, "a-name-longer-than-devices")
	for name, newWires := range makes {
		got := failure(t, func(tb testing.TB) { shapedLink(tb, a, long, Conditions{}, newWires, nil) })
		if want := "host a: link to host a-name-longer-than-devices"; !strings.Contains(got, want) {
			t.Errorf("%s: got failure %q, want %q in it", name, got, want)
		}
	}
	link := ShapedLink(t, a, b, Conditions{Delay: time.Hour})
	tb := &failingTB{TB: t}
	link.AtoB.t = tb
	link.AtoB.Set(Conditions{Loss: 2})
	if want := "loss 2"; !strings.Contains(tb.message, want) || link.AtoB.shaper.Delay != time.Hour {
		t.Errorf("got failure %q, want %q in it and the conditions as they were", tb.message, want)
	}
}

func TestNothingIsLeftOfAShapedLink(t *testing.T) {
	for name, newWires := range makes {
		t.Run(name, func(t *testing.T) {
			defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
			a, b := NewHost(t, "a"), NewHost(t, "b")
			before := descriptors(t)
			t.Run("lifetime", func(t *testing.T) {
				// It ends in full use, with packets on their way and in the queue.
				shapedLink(t, a, b, Conditions{Delay: time.Hour, Rate: 1e6}, newWires, []string{"10.0.0.0/24"})
				conn, _ := udpPair(t, a, b, "10.0.0.2:0")
				for i := range uint32(100) {
					send(t, conn, i)
				}
			})
			if after := descriptors(t); after > before { // older ones may be collected meanwhile
				t.Errorf("open descriptors: got %d, want %d as before", after, before)
			}
			for _, h := range []*Host{a, b} {
				eventually(t, "only the loopback is left", func() (only bool) {
					h.Do(t, func() {
						devices, err := net.Interfaces()
						only = err == nil && len(devices) == 1
					})
					return only
				})
			}
			t.Run("again", func(t *testing.T) { shapedLink(t, a, b, Conditions{}, newWires, nil) })
		})
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// send sends a numbered packet.
func send(t *testing.T, conn net.Conn, number uint32) {
	t.Helper()
	if _, err := conn.Write(binary.BigEndian.AppendUint32(nil, number)); err != nil {
		t.Fatal(err)
	}
}

// receive returns the numbers of the next packets.
func receive(t *testing.T, conn net.PacketConn, count int) []uint32 {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	var numbers []uint32
	buf := make([]byte, 2000)
	for range count {
		if _, _, err := conn.ReadFrom(buf); err != nil {
			t.Fatalf("after packets %v: %v", numbers, err)
		}
		numbers = append(numbers, binary.BigEndian.Uint32(buf))
	}
	return numbers
}

func setDontFragment(t *testing.T, conn *net.UDPConn) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	errControl := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	})
	if err := errors.Join(errControl, err); err != nil {
		t.Fatal(err)
	}
}
