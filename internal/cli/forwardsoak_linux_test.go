package cli

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestForwardSoak passes FT_SOAK_MIB of random bytes through ft forward, over each pair
// of transports, in sessions of 1 byte to 1 GiB of which -test.parallel run at once.
// Which side sends how much, ends first, stands still or resets the connection is
// random, by FT_SOAK_SEED.
func TestForwardSoak(t *testing.T) {
	ownRegistry(t)
	amount := int64(fromEnv("FT_SOAK_MIB", 64)) << 20
	seed := uint64(fromEnv("FT_SOAK_SEED", rand.IntN(1e9)))
	t.Logf("FT_SOAK_SEED=%d", seed)
	for i, p := range []struct {
		name         string
		listen, dial string // networks
		flags        []string
	}{
		{"tcp to tcp", "tcp", "tcp", nil},
		{"tcp to unix", "tcp", "unix", nil},
		{"unix to tcp", "unix", "tcp", nil},
		{"unix to unix", "unix", "unix", nil},
		{"with goroutines", "tcp", "tcp", []string{"--delay", "1ms"}},
	} {
		t.Run(p.name, func(t *testing.T) {
			share := amount
			if p.flags != nil { // a line with a delay has a bound
				share = min(amount, 256<<20)
			}
			random := rand.New(rand.NewPCG(seed, uint64(i)))
			s := &relaySoak{target: listenRandom(t, p.dial), sessions: make(map[uint64]*relaySession)}
			listen := "127.0.0.1:0"
			if p.listen == "unix" {
				listen = "unix://" + socketPath(t)
			}
			to := s.target.Addr().String()
			if p.dial == "unix" {
				to = "unix://" + to
			}
			l := startForward(t, append([]string{listen, to}, p.flags...)...)
			s.network, s.address = p.listen, l.address
			go s.accept()
			s.run(t, share, random)
			if code := l.stop(t); code != exitDone {
				t.Errorf("exit code %d:\n%.1000s", code, &l.said)
			}
		})
	}
}

func listenRandom(t *testing.T, network string) net.Listener {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(filepath.Dir(socketPath(t)), "target")
	}
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// relaySoak is one rule under test.
type relaySoak struct {
	target           net.Listener
	network, address string // of the relay

	mu       sync.Mutex
	sessions map[uint64]*relaySession
}

// relaySession is one connection through the relay.
type relaySession struct {
	id          uint64
	there, back int64
	late        bool // the answer begins when the client has ended
	reset       int  // 0: nobody resets; 1: the client does, 2: the target
	accepted    chan net.Conn
}

// accept hands each connection to the session that it names first.
func (s *relaySoak) accept() {
	for {
		c, err := s.target.Accept()
		if err != nil {
			return
		}
		go func() {
			var b [8]byte
			if _, err := io.ReadFull(c, b[:]); err != nil {
				c.Close()
				return
			}
			s.mu.Lock()
			session := s.sessions[binary.BigEndian.Uint64(b[:])]
			s.mu.Unlock()
			session.accepted <- c
		}()
	}
}

func (s *relaySoak) run(t *testing.T, amount int64, random *rand.Rand) {
	largest := math.Log(float64(min(amount, 1<<30)))
	total, began := amount, time.Now()
	t.Run("session", func(t *testing.T) {
		for amount > 0 {
			size := min(amount, int64(math.Exp(random.Float64()*largest)))
			amount -= size
			session := &relaySession{id: random.Uint64(), late: random.IntN(4) == 0, accepted: make(chan net.Conn, 1)}
			session.there = random.Int64N(size + 1)
			session.back = size - session.there
			if s.network == "tcp" && s.target.Addr().Network() == "tcp" {
				session.reset = max(random.IntN(8)-5, 0)
			}
			s.mu.Lock()
			s.sessions[session.id] = session
			s.mu.Unlock()
			t.Run(fmt.Sprint(len(s.sessions)), func(t *testing.T) {
				t.Parallel()
				if err := session.run(s.network, s.address); err != nil {
					t.Errorf("%d bytes there, %d back, late %v, reset %d, seed %#x: %v", session.there, session.back, session.late, session.reset, session.id, err)
				}
			})
		}
	})
	t.Logf("%d MiB in %d sessions: %.0f MiB/s", total>>20, len(s.sessions), float64(total>>20)/time.Since(began).Seconds())
}

// run sends and receives on both sides.
func (s *relaySession) run(network, address string) error {
	client, err := net.Dial(network, address)
	if err != nil {
		return err
	}
	defer client.Close()
	if _, err := client.Write(binary.BigEndian.AppendUint64(nil, s.id)); err != nil {
		return err
	}
	var target net.Conn
	select {
	case target = <-s.accepted:
	case <-time.After(patience):
		return errors.New("it did not reach the target")
	}
	defer target.Close()
	deadline := time.Now().Add(patience + time.Duration((s.there+s.back)>>20)*100*time.Millisecond)
	client.SetDeadline(deadline)
	target.SetDeadline(deadline)

	switch s.reset {
	case 1:
		return s.runReset(client, target, s.there, s.id)
	case 2:
		return s.runReset(target, client, s.back, s.id+1)
	}
	ended := make(chan struct{}) // when the target has all from the client
	errs := make(chan error, 4)
	go func() { errs <- s.send("there", client, s.id, s.there) }()
	go func() {
		errs <- s.receive("there", target, s.id, s.there)
		close(ended)
	}()
	go func() {
		if s.late {
			<-ended
		}
		errs <- s.send("back", target, s.id+1, s.back)
	}()
	go func() { errs <- s.receive("back", client, s.id+1, s.back) }()
	for range cap(errs) {
		if e := <-errs; e != nil && err == nil {
			err = e
			client.Close()
			target.Close()
		}
	}
	return err
}

// runReset sends a part and resets the connection: the other side gets a beginning of
// it, and then the reset.
func (s *relaySession) runReset(from, to net.Conn, size int64, seed uint64) error {
	go func() {
		io.CopyN(from, newNoise(seed, size, false), size)
		from.(*net.TCPConn).SetLinger(0)
		from.Close()
	}()
	err := newNoise(seed, size+1, false).receive(to, newStalls(seed, size)) // one more than comes
	if !errors.Is(err, syscall.ECONNRESET) {
		return fmt.Errorf("got %v, want the reset of the other side", err)
	}
	return nil
}

func (s *relaySession) send(name string, c net.Conn, seed uint64, size int64) error {
	if err := newNoise(seed, size, false).send(half{c}, newStalls(seed, size)); err != nil {
		return fmt.Errorf("send %s: %w", name, err)
	}
	return nil
}

func (s *relaySession) receive(name string, c net.Conn, seed uint64, size int64) error {
	if err := newNoise(seed, size, false).receive(c, newStalls(seed+1, size)); err != nil {
		return fmt.Errorf("receive %s: %w", name, err)
	}
	return nil
}

// half is a connection whose Close is the end of what it sends.
type half struct{ net.Conn }

func (h half) Close() error { return h.Conn.(interface{ CloseWrite() error }).CloseWrite() }
