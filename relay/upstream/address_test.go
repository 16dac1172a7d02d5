package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fivetuple/fivetuple/stats"
)

// two is a pool of two addresses, of which the first is to fail.
func two(t *testing.T, c Config) (*Pool, *Address, *Address) {
	t.Helper()
	if c.Targets == nil {
		c.Targets = endpoints("10.0.0.1:80", "10.0.0.2:80")
	}
	p := newPool(t, c)
	all := p.current.Load().addresses
	return p, all[0], all[1]
}

// share is how often an address is the first choice of ten.
func share(t *testing.T, p *Pool, a *Address) (n int) {
	t.Helper()
	for range 10 {
		if first(t, p, "") == a {
			n++
		}
	}
	return n
}

func wantShare(t *testing.T, when string, p *Pool, a *Address, want int) {
	t.Helper()
	if got := share(t, p, a); got != want {
		t.Errorf("%s: %s is the first choice %d times of ten, want %d", when, a, got, want)
	}
}

func TestAddressThatFailsIsLeftOutForATimeAndThenTriedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told events
		p, a, _ := two(t, Config{MaxFails: 2, FailFor: time.Minute, Sink: &told, Service: "rule"})
		a.Failed(errRefused)
		wantShare(t, "after one failure", p, a, 5)
		a.Failed(errRefused)
		wantShare(t, "after two", p, a, 0)
		told.want(t, "10.0.0.1:80 is left out for 1m0s while others work, after 2 failures in a row: connection refused")
		time.Sleep(time.Minute - time.Nanosecond)
		wantShare(t, "just before its time is over", p, a, 0)
		time.Sleep(time.Nanosecond)
		wantShare(t, "when its time is over", p, a, 1)
		wantShare(t, "while it is tried", p, a, 0)
		a.Opened()
		wantShare(t, "when it took the connection", p, a, 5)
		told.want(t, "10.0.0.1:80 takes connections again")
		a.Failed(errRefused)
		wantShare(t, "after a failure that is the first again", p, a, 5)
		told.want(t)
	})
}

func TestTimeOutDoublesToTenTimesAndBeginsAnewAfterASuccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told events
		p, a, _ := two(t, Config{MaxFails: 1, FailFor: 10 * time.Second, Sink: &told})
		a.Failed(errRefused)
		for _, want := range []time.Duration{10, 20, 40, 80, 100, 100, 100} {
			want *= time.Second
			time.Sleep(want - time.Nanosecond)
			wantShare(t, fmt.Sprintf("just before %v", want), p, a, 0)
			time.Sleep(time.Nanosecond)
			wantShare(t, fmt.Sprintf("after %v", want), p, a, 1)
			a.Failed(errRefused)
		}
		told.want(t, "is left out for 10s while others work, after a failure") // once
		time.Sleep(100 * time.Second)
		wantShare(t, "after the last time", p, a, 1)
		a.Opened()
		a.Closed()
		a.Failed(errRefused)
		time.Sleep(10*time.Second - time.Nanosecond)
		wantShare(t, "after a success and a failure, just before 10 s", p, a, 0)
		time.Sleep(time.Nanosecond)
		wantShare(t, "after them", p, a, 1)
	})
}

// Connections that were under way when it was left out fail as well.
func TestFailuresOfConnectionsUnderWayCountOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, a, _ := two(t, Config{MaxFails: 2, FailFor: 10 * time.Second})
		for range 50 {
			a.Failed(errRefused)
		}
		time.Sleep(10 * time.Second)
		wantShare(t, "after its time", p, a, 1)
		if s := p.Status()[0]; s.Failed != 50 || s.LastError != errRefused.Error() {
			t.Errorf("the status has %d failures, the last %q", s.Failed, s.LastError)
		}
	})
}

func TestTrialOfWhichNothingIsHeardIsFollowedByAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, a, _ := two(t, Config{FailFor: 10 * time.Second})
		eject(a)
		for range 3 {
			time.Sleep(10 * time.Second)
			wantShare(t, "ten seconds later", p, a, 1)
		}
	})
}

func TestSuccessOfALastResortEndsTheTimeOut(t *testing.T) {
	p, a, b := two(t, Config{})
	eject(a)
	eject(b)
	if got := len(way(p, "")); got != 2 {
		t.Errorf("of two addresses that are left out %d are tried, want both", got)
	}
	b.Opened()
	wantShare(t, "after it took a connection", p, b, 10)
}

func TestLocalTroubleIsNotHeldAgainstAnAddress(t *testing.T) {
	for _, tt := range []struct {
		err   error
		local bool
	}{
		{syscall.EMFILE, true},
		{syscall.ENFILE, true},
		{syscall.EADDRNOTAVAIL, true},
		{syscall.EADDRINUSE, true},
		{syscall.ENOBUFS, true},
		{syscall.ENOMEM, true},
		{syscall.EPERM, true},
		{syscall.EACCES, true},
		{context.Canceled, true},
		{net.ErrClosed, true},
		{nil, false},
		{syscall.ECONNREFUSED, false},
		{syscall.ECONNRESET, false},
		{syscall.EHOSTUNREACH, false},
		{syscall.ENETUNREACH, false},
		{syscall.ETIMEDOUT, false},
		{context.DeadlineExceeded, false},
		{os.ErrDeadlineExceeded, false},
		{errors.New("the certificate has expired"), false},
	} {
		t.Run(fmt.Sprint(tt.err), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, a, _ := two(t, Config{MaxFails: 1, FailFor: 10 * time.Second})
				err := tt.err
				if err != nil {
					err = fmt.Errorf("connect to 10.0.0.1:80: %w", &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", tt.err)})
				}
				a.Failed(err)
				want, failed := 0, uint64(1)
				if tt.local {
					want, failed = 5, 0
				}
				wantShare(t, "after it", p, a, want)
				if got := p.Status()[0].Failed; got != failed {
					t.Errorf("%d failures are counted, want %d", got, failed)
				}
				// A trial that came to nothing leaves the trial to the next.
				a.Failed(errRefused)
				time.Sleep(10 * time.Second)
				wantShare(t, "when the time is over", p, a, 1)
				a.Failed(err)
				want = 0
				if tt.local {
					want = 1
				}
				wantShare(t, "after such a trial", p, a, want)
			})
		})
	}
}

func TestNegativeMaxFailsNeverLeavesOut(t *testing.T) {
	p, a, _ := two(t, Config{MaxFails: -1})
	for range 100 {
		a.Failed(errRefused)
	}
	wantShare(t, "after 100 failures", p, a, 5)
}

// Of UDP a reply is the only success, and there may be none by nature: syslog.
func TestUDPFailuresFarApartAreNotInARow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		targets := endpoints("udp://10.0.0.1:514", "udp://10.0.0.2:514")
		p, a, _ := two(t, Config{Targets: targets, MaxFails: 3, FailFor: 10 * time.Second})
		for range 20 {
			a.Failed(errRefused)
			time.Sleep(11 * time.Second)
		}
		wantShare(t, "after failures eleven seconds apart", p, a, 5)
		for range 3 {
			a.Failed(errRefused)
			time.Sleep(9 * time.Second)
		}
		time.Sleep(time.Second - time.Nanosecond)
		wantShare(t, "just before its time is over", p, a, 0)
		time.Sleep(time.Nanosecond)
		wantShare(t, "when it is over: a trial without replies would not end", p, a, 5)
		a.Failed(errRefused)
		time.Sleep(20*time.Second - time.Nanosecond)
		wantShare(t, "after a failure right after: twice the time", p, a, 0)
		time.Sleep(time.Nanosecond)
		wantShare(t, "and then", p, a, 5)
	})
}

func TestReplyIsASuccessOfUDP(t *testing.T) {
	targets := endpoints("udp://10.0.0.1:53", "udp://10.0.0.2:53")
	p, a, _ := two(t, Config{Targets: targets, MaxFails: 2})
	for range 5 {
		a.Failed(errRefused)
		a.Opened()
	}
	wantShare(t, "after failures with replies between", p, a, 5)
}

func TestEventsNameTheRuleAndTheAddress(t *testing.T) {
	var told events
	_, a, _ := two(t, Config{Targets: endpoints("tls://10.0.0.1:443", "80"), Service: "web", Sink: &told, MaxFails: 1})
	a.Failed(errRefused)
	e := told.list[0]
	if e.Kind != stats.Error || e.Service != "web" || e.Time.IsZero() || e.Tuple.String() != "tcp unnamed > 10.0.0.1:443" {
		t.Errorf("got %+v", e)
	}
	if want := "tls://10.0.0.1:443 (10.0.0.1:443) is left out for 10s while others work, after a failure: connection refused"; e.Err != want {
		t.Errorf("got %s, want %s", e.Err, want)
	}
}

func TestAddressesAreThoseOfTheTargets(t *testing.T) {
	for _, tt := range []struct{ target, want, network string }{
		{"8080", "127.0.0.1:8080", "tcp"},
		{":https", "127.0.0.1:443", "tcp"},
		{"10.0.0.1:ssh", "10.0.0.1:22", "tcp"},
		{"udp://10.0.0.1:domain", "10.0.0.1:53", "udp"},
		{"tcp6://*:80", "[::1]:80", "tcp6"},
		{"udp6://[::1]:80", "[::1]:80", "udp6"},
		{"[fe80::1%eth0]:80", "[fe80::1%eth0]:80", "tcp"},
		{"[::ffff:10.0.0.1]:80", "10.0.0.1:80", "tcp"},
		{"10.0.0.1:8000-8010", "10.0.0.1:8000", "tcp"},
		{"tls://10.0.0.1:443", "10.0.0.1:443", "tls"},
		{"unix:///run/a.sock", "/run/a.sock", "unix"},
		{"unix://@name", "@name", "unix"},
	} {
		p := newPool(t, Config{Targets: endpoints(tt.target)})
		a := first(t, p, "")
		if got := a.place().String(); got != tt.want || a.Target.Network.String() != tt.network || a.Target.Service != "" {
			t.Errorf("%s: got %s, target %+v, want %s", tt.target, got, a.Target, tt.want)
		}
		if p.Find(a.Addr, a.Path) != a {
			t.Errorf("%s is not found", tt.target)
		}
	}
}

func TestSamePlaceIsOneAddress(t *testing.T) {
	n := newNameServer("db.test", a(60, "10.0.0.1")...)
	targets := []string{"tcp4://db.test:80", "10.0.0.1:80", "10.0.0.1:80", "10.0.0.1:81", "tls://10.0.0.1:80", "tls://db.test:80"}
	p := resolvedPool(t, Config{Targets: endpoints(targets...), DNS: n.pipe})
	got := texts(p.current.Load().addresses)
	slices.Sort(got)
	// TLS is apart, and with another name to be proved apart once more.
	if want := "[10.0.0.1:80 10.0.0.1:80 10.0.0.1:80 10.0.0.1:81]"; fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
}
