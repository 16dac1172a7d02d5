package lease

import (
	"strings"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/lab"
)

// endings are the ways in which a lease ends. Each takes a lease and returns
// what ends it.
var endings = map[string]func(t *testing.T, s *Shared, r Request) (l Lease, end func()){
	"released": func(t *testing.T, s *Shared, r Request) (Lease, func()) {
		l := acquire(t, s, r)
		return l, func() { release(t, s, l) }
	},
	"expired": func(t *testing.T, s *Shared, r Request) (Lease, func()) {
		r.TTL = time.Hour
		return acquire(t, s, r), func() { pass(t, s, time.Hour) }
	},
	"owner died": func(t *testing.T, s *Shared, r Request) (Lease, func()) {
		owner, process := newOwner(t)
		r.Owner = owner
		return acquire(t, s, r), func() { kill(process) }
	},
}

func TestSharedFreedPortRests(t *testing.T) {
	for name, ending := range endings {
		t.Run(name, func(t *testing.T) {
			s := newShared(t, Options{})
			_, end := ending(t, s, Request{Range: onePort, Name: "api"})
			end()
			for _, other := range []string{"db", ""} {
				err := refused(t, s, Request{Range: onePort, Name: other}, ErrExhausted)
				if err != nil && !strings.Contains(err.Error(), ": 1 freed only now and at rest: ") {
					t.Errorf("for %q: got %v, want it to say that the port is at rest", other, err)
				}
			}
			// UDP ports are others.
			release(t, s, acquire(t, s, Request{Range: onePort, Protocol: fivetuple.UDP}))
			pass(t, s, 59*time.Second)
			refused(t, s, Request{Range: onePort, Name: "db"}, ErrExhausted)
			pass(t, s, 2*time.Second)
			acquire(t, s, Request{Range: onePort, Name: "db"})
		})
	}
}

func TestSharedPortDoesNotRestForItsNameNorByNumber(t *testing.T) {
	for name, ending := range endings {
		t.Run(name, func(t *testing.T) {
			s := newShared(t, Options{})
			_, end := ending(t, s, Request{Range: onePort, Name: "api"})
			end()
			release(t, s, acquire(t, s, Request{Range: onePort, Name: "api"}))
			release(t, s, acquire(t, s, Request{Port: 50000, Name: "db"}))
			refused(t, s, Request{Range: onePort, Name: "api"}, ErrExhausted) // it is db's now
			acquire(t, s, Request{Port: 50000})
		})
	}
}

func TestSharedRestCanBeSet(t *testing.T) {
	for rest, want := range map[time.Duration]time.Duration{0: time.Minute, time.Second: time.Second, time.Hour: time.Hour, -1: 0} {
		s := newShared(t, Options{Rest: rest})
		release(t, s, acquire(t, s, Request{Range: onePort, Name: "api"}))
		if want > 0 {
			pass(t, s, want-500*time.Millisecond)
			refused(t, s, Request{Range: onePort, Name: "db"}, ErrExhausted)
			pass(t, s, 500*time.Millisecond)
		}
		acquire(t, s, Request{Range: onePort, Name: "db"})
	}
}

// The rest begins when a lease ends, not when somebody looks.
func TestSharedPortThatExpiredLongAgoHasRested(t *testing.T) {
	s := newShared(t, Options{})
	acquire(t, s, Request{Range: onePort, Name: "api", TTL: time.Hour})
	pass(t, s, 2*time.Hour)
	acquire(t, s, Request{Range: onePort, Name: "db"})
}

func TestSharedRestIsOnEveryOverlappingAddress(t *testing.T) {
	s := newShared(t, Options{})
	release(t, s, acquire(t, s, Request{Range: onePort, Name: "api"}))
	refused(t, s, Request{Range: onePort, Name: "db", Address: any4}, ErrExhausted)
	refused(t, s, Request{Range: onePort, Name: "db", Address: any6}, ErrExhausted)
}

func TestSharedNameGetsItsOldPortBack(t *testing.T) {
	for name, ending := range endings {
		t.Run(name, func(t *testing.T) {
			s := newShared(t, Options{})
			for range 3 { // more than chance
				tcp, end := ending(t, s, Request{Name: "api"})
				udp, endUDP := ending(t, s, Request{Name: "api", Protocol: fivetuple.UDP})
				end()
				endUDP()
				release(t, s, acquire(t, s, Request{Name: "db"}))
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				s = openAt(t, s.path, Options{})
				if l := acquire(t, s, Request{Name: "api"}); l.Port != tcp.Port {
					t.Errorf("got port %d, want %d, which the name had last", l.Port, tcp.Port)
				}
				if l := acquire(t, s, Request{Name: "api", Protocol: fivetuple.UDP}); l.Port != udp.Port {
					t.Errorf("got UDP port %d, want %d, which the name had last", l.Port, udp.Port)
				}
				edit(t, s, "DELETE FROM leases")
			}
		})
	}
}

func TestSharedOldPortIsTheOneGrantedLast(t *testing.T) {
	s := newShared(t, Options{})
	first := acquire(t, s, Request{Name: "api"})
	second := acquire(t, s, Request{Name: "api"})
	if first.Port == second.Port {
		t.Fatalf("port %d is granted twice", first.Port)
	}
	release(t, s, second)
	release(t, s, first)
	again := acquire(t, s, Request{Name: "api"})
	if again.Port != second.Port {
		t.Errorf("got port %d, want %d, granted last", again.Port, second.Port)
	}
	// The next process of that name gets the other one.
	if l := acquire(t, s, Request{Name: "api"}); l.Port != first.Port {
		t.Errorf("got port %d beside it, want %d", l.Port, first.Port)
	}
	release(t, s, again)
	within := fivetuple.PortRange{First: 1024, Last: 2000}
	if l := acquire(t, s, Request{Name: "api", Range: within}); l.Port < 1024 || l.Port > 2000 {
		t.Errorf("got port %d, want one of the range", l.Port)
	}
}

// A port that another name had in between is free again, and still the last that this one had.
func TestSharedNameGetsItsOldPortAfterAnotherHadIt(t *testing.T) {
	s := newShared(t, Options{})
	api := acquire(t, s, Request{Name: "api"})
	release(t, s, api)
	db := acquire(t, s, Request{Name: "db", Port: api.Port})
	release(t, s, db)
	pass(t, s, time.Hour)
	if l := acquire(t, s, Request{Name: "api"}); l.Port != api.Port {
		t.Errorf("got port %d, want %d, which the name had last", l.Port, api.Port)
	}
}

// Two names can have one port on two addresses, and both come back.
func TestSharedOldPortOnAnotherAddress(t *testing.T) {
	s := newShared(t, Options{})
	elsewhere := loopback.Next()
	api := acquire(t, s, Request{Name: "api"})
	db := acquire(t, s, Request{Name: "db", Address: elsewhere, Port: api.Port})
	release(t, s, api)
	release(t, s, db)
	if l := acquire(t, s, Request{Name: "api"}); l.Port != api.Port {
		t.Errorf("got port %d, want %d, which the name had last", l.Port, api.Port)
	}
}

func TestSharedOldPortIsThatOfTheNetworkNamespace(t *testing.T) {
	s := newShared(t, Options{})
	a, b := lab.NewHost(t, "a"), lab.NewHost(t, "b")
	a.Do(t, func() { release(t, s, acquire(t, s, Request{Name: "api", Port: 50000})) })
	b.Do(t, func() { release(t, s, acquire(t, s, Request{Name: "api", Port: 50001})) })
	a.Do(t, func() {
		if l := acquire(t, s, Request{Name: "api"}); l.Port != 50000 {
			t.Errorf("got port %d, want 50000, which the name had last here", l.Port)
		}
	})
	lab.NewHost(t, "c").Do(t, func() { // where it was never before
		if l := acquire(t, s, Request{Name: "api"}); l.Port != 50000 && l.Port != 50001 {
			t.Errorf("got port %d, want one that the name had elsewhere", l.Port)
		}
	})
}

// Who gives no name is not another one: a port without a name may come back if no other has rested.
func TestPortsWithoutANameDoNotRunOut(t *testing.T) {
	within := fivetuple.PortRange{First: 50000, Last: 50001}
	for name, r := range map[string]Registry{"shared": newShared(t, Options{}), "memory": NewMemory()} {
		for range 10 {
			release(t, r, acquire(t, r, Request{Range: within}))
		}
		if l, err := r.Acquire(t.Context(), Request{Range: within, Name: "api"}); err == nil {
			t.Errorf("%s: a name got %v, which others had just now", name, l)
		}
	}
}
