package lease

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
)

func TestBothProtocolsGetOneNumber(t *testing.T) {
	for name, r := range map[string]Registry{"memory": NewMemory(), "shared": newShared(t, Options{})} {
		t.Run(name, func(t *testing.T) {
			within := fivetuple.PortRange{First: 50000, Last: 50003}
			listen(t, "udp4", "127.0.0.1:50000")
			listen(t, "udp4", "127.0.0.1:50001")
			listen(t, "tcp4", "127.0.0.1:50002")
			tcp, udp, err := AcquireBoth(t.Context(), r, Request{Range: within, Name: "dns"}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if tcp.Port != 50003 || udp.Port != 50003 || tcp.Protocol != fivetuple.TCP || udp.Protocol != fivetuple.UDP || tcp.Name != "dns" || udp.Name != "dns" {
				t.Errorf("got %v and %v, want port 50003", tcp, udp)
			}
			wantPorts(t, r, 50003, 50003) // those that were free for TCP only were given back
			if _, _, err := AcquireBoth(t.Context(), r, Request{Range: within}, nil); !errors.Is(err, ErrExhausted) {
				t.Errorf("got %v, want ErrExhausted", err)
			}
			if _, _, err := AcquireBoth(t.Context(), r, Request{Port: 50001}, nil); !errors.Is(err, ErrInUse) {
				t.Errorf("by number: got %v, want ErrInUse", err)
			}
			wantPorts(t, r, 50003, 50003)
			release(t, r, tcp)
			release(t, r, udp)
			tcp, _, err = AcquireBoth(t.Context(), r, Request{Range: within, Name: "dns"}, nil)
			if err != nil || tcp.Port != 50003 {
				t.Errorf("again: got %v, %v, want port 50003", tcp, err)
			}
		})
	}
}

func TestBothAreBoundInTheGrant(t *testing.T) {
	s := newShared(t, Options{})
	within := fivetuple.PortRange{First: 50000, Last: 50001}
	listen(t, "udp4", "127.0.0.1:50000")
	held := map[fivetuple.Network]interface{ Close() error }{}
	bind := func(ctx context.Context, protocol fivetuple.Network, at netip.AddrPort) (err error) {
		if before := held[protocol]; before != nil {
			before.Close()
		}
		held[protocol], _, err = open(protocol.String()+"4", at.String())
		if err != nil {
			delete(held, protocol)
		}
		return err
	}
	tcp, _, err := AcquireBoth(t.Context(), s, Request{Range: within}, bind)
	if err != nil || tcp.Port != 50001 || len(held) != 2 {
		t.Fatalf("got %v, %v and %d sockets, want port 50001 bound for both", tcp, err, len(held))
	}
	for _, network := range []string{"tcp4", "udp4"} {
		if closer, _, err := open(network, "127.0.0.1:50001"); err == nil {
			t.Errorf("%s port 50001 is not bound", network)
			closer.Close()
		}
	}
	for _, closer := range held {
		closer.Close()
	}
	failure := errors.New("no memory")
	_, _, err = AcquireBoth(t.Context(), s, Request{}, func(ctx context.Context, protocol fivetuple.Network, at netip.AddrPort) error {
		if protocol == fivetuple.UDP {
			return failure
		}
		return nil
	})
	if !errors.Is(err, failure) {
		t.Errorf("got %v, want %v", err, failure)
	}
	wantPorts(t, s, 50001, 50001)
}

// unreleasable is a registry that loses what was passed over, as when it is locked meanwhile.
type unreleasable struct {
	Registry
	failing bool
}

func (u *unreleasable) Release(ctx context.Context, l Lease) error {
	if u.failing {
		u.failing = false
		return unix.EIO
	}
	return u.Registry.Release(ctx, l)
}

// Whoever gets an error has no lease to release.
func TestBothOrNeitherWhenAPassedPortCannotBeReleased(t *testing.T) {
	m := NewMemory()
	listen(t, "udp4", "127.0.0.1:50000")
	for range 8 { // the port that is in use for UDP is tried first at times
		u := &unreleasable{m, true}
		tcp, udp, err := AcquireBoth(t.Context(), u, Request{Range: fivetuple.PortRange{First: 50000, Last: 50001}}, nil)
		if err == nil {
			if u.failing = false; tcp.Port != 50001 {
				t.Errorf("got %v, want port 50001", tcp)
			}
			release(t, m, tcp)
			release(t, m, udp)
		} else {
			for _, l := range list(t, m) {
				if l.Port == 50001 {
					t.Errorf("%v, and %v is leased", err, l)
				}
			}
		}
		m = NewMemory()
	}
}
