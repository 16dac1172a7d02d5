package cli

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
)

// TestForwardHoldsManySessions holds FT_SESSIONS UDP sessions, each of a client address of
// its own, until they expire, and looks at the memory of the relay before, with
// them, and after. 50,000 need four processes of 20,000 descriptors.
func TestForwardHoldsManySessions(t *testing.T) {
	ownRegistry(t)
	n, workers := fromEnv("FT_SESSIONS", 2000), 2
	if n > 10_000 {
		workers = 4
	}
	if n > 20_000 { // each has a port of its own, of which the usual range has 28,000
		setPortRange(t, "1024 65535")
		t.Cleanup(func() { setPortRange(t, "32768 60999") })
	}
	target := echoPackets(t)
	life := 4*time.Second + time.Duration(n)*400*time.Microsecond // longer than it takes to begin all
	f := startForward(t, "udp://127.0.0.1:0", target, "--workers", strconv.Itoa(workers), "--idle", life.String(), "--max", strconv.Itoa(2*n))
	at, err := netip.ParseAddrPort(f.address)
	if err != nil {
		t.Fatal(err)
	}
	pids := childrenOf(t, f.Process.Pid)
	for late := time.Now().Add(patience); len(pids) < workers && time.Now().Before(late); time.Sleep(5 * time.Millisecond) {
		pids = childrenOf(t, f.Process.Pid)
	}
	askAll(t, at, 64) // what a first session makes, all have
	awaitSessions(t, pids)
	before := residentOf(t, pids)

	askAll(t, at, n)
	held := descriptorsOf(t, pids)
	with := residentOf(t, pids)
	if held < n {
		t.Errorf("the relay holds %d sockets to targets, want %d", held, n)
	}
	awaitSessions(t, pids)
	after := residentOf(t, pids)
	t.Logf("%d sessions in %d processes: resident %.1f MiB before, %.1f with them, %.1f after: %.0f bytes a session", n, workers,
		mebi(before), mebi(with), mebi(after), float64(with-before)/float64(n))
	if grown := after - before; n > 20_000 && grown > (with-before)/4+int64(workers)*2<<20 {
		t.Errorf("%.1f of %.1f MiB stay when all sessions have expired", mebi(grown), mebi(with-before))
	}
	if code := f.stop(t); code != exitDone {
		t.Errorf("exit code %d:\n%.1000s", code, &f.said)
	}
}

func setPortRange(t *testing.T, ports string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte(ports), 0); err != nil {
		t.Fatal(err)
	}
}

func mebi(n int64) float64 { return float64(n) / (1 << 20) }

// askAll asks once from each of n client addresses of one socket, and again for what was
// lost.
func askAll(t *testing.T, at netip.AddrPort, n int) {
	t.Helper()
	c, err := net.ListenPacket("udp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.(*net.UDPConn).SetReadBuffer(4 << 20)
	p := ipv4.NewPacketConn(c)
	if err := p.SetControlMessage(ipv4.FlagDst, true); err != nil {
		t.Fatal(err)
	}
	came := make([]bool, n)
	missing := n
	to := net.UDPAddrFromAddrPort(at)
	b := make([]byte, 64)
	for round := 0; missing > 0; round++ {
		if round == 20 {
			t.Fatalf("%d of %d clients got no answer", missing, n)
		}
		for first := 0; first < n; first += 128 { // no more at once than buffers hold
			sent := 0
			for i := first; i < min(first+128, n); i++ {
				if came[i] {
					continue
				}
				if _, err := p.WriteTo([]byte(strconv.Itoa(i)), &ipv4.ControlMessage{Src: clientAddr(i)}, to); err != nil {
					t.Fatal(err)
				}
				sent++
			}
			c.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
			for range sent {
				size, cm, _, err := p.ReadFrom(b)
				if err != nil {
					break
				}
				i, err := strconv.Atoi(string(b[:size]))
				if err != nil || i >= n || !cm.Dst.Equal(clientAddr(i)) {
					t.Fatalf("%q came to %v", b[:size], cm.Dst)
				}
				if !came[i] {
					came[i] = true
					missing--
				}
			}
		}
	}
}

// clientAddr is the ith address of 127.1.0.0/16 and on.
func clientAddr(i int) net.IP { return net.IPv4(127, byte(1+i>>16), byte(i>>8), byte(i)) }

// residentOf is the memory of processes, in bytes.
func residentOf(t *testing.T, pids []int) (sum int64) {
	t.Helper()
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(b), "RssAnon:")
		n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += n << 10
	}
	return sum
}

// descriptorsOf is how many descriptors processes have beyond a few.
func descriptorsOf(t *testing.T, pids []int) (sum int) {
	t.Helper()
	for _, pid := range pids {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			t.Fatal(err)
		}
		sum += len(entries)
	}
	return sum
}

// awaitSessions waits until the processes have no sessions.
func awaitSessions(t *testing.T, pids []int) {
	t.Helper()
	for late := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) { // nothing else tells
		left := descriptorsOf(t, pids)
		if left <= 40*len(pids) {
			return
		}
		if time.Now().After(late) {
			t.Fatalf("%d descriptors are left", left)
		}
	}
}
