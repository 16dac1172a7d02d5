package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/fivetuple/fivetuple/ancillary"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stats"
)

// manyUsers says whether there are other users in the lab: if root started it.
func manyUsers(t *testing.T) bool {
	t.Helper()
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(b))
	return fields[2] != "1"
}

func TestAUnixSocketHasTheModeAndOwnerAskedFor(t *testing.T) {
	uid, gid := os.Geteuid(), os.Getegid()
	if manyUsers(t) {
		uid, gid = 65534, 65533
	}
	for _, network := range []string{"unix", "seqpacket"} {
		path := filepath.Join(t.TempDir(), "s")
		ln, err := ListenConfig{Owner: fmt.Sprintf("%d:%d", uid, gid), Mode: 0o660}.Listen(t.Context(), endpoint(t, network+"://"+path))
		if err != nil {
			t.Fatal(err)
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(path, &st); err != nil || int(st.Uid) != uid || int(st.Gid) != gid || st.Mode != syscall.S_IFSOCK|0o660 {
			t.Errorf("%s: it is %d:%d %#o, %v, want %d:%d 0660", network, st.Uid, st.Gid, st.Mode, err, uid, gid)
		}
		ln.Close()
	}
}

func TestAnOwnerThatCannotBeIsAnErrorAndLeavesNoFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	for _, tt := range []struct{ where, owner, want string }{
		{"unix://" + path, "no-such-user", "unknown user"},
		{"unix://" + path, "4000000000", "give the file to 4000000000: "}, // no user of the lab
		{"unix://@stream-test-owner", "0", "the abstract name space is open to all"},
		{"0", "0", "only the path of a Unix socket has an owner"},
	} {
		ln, err := ListenConfig{Owner: tt.owner}.Listen(t.Context(), endpoint(t, tt.where))
		if err == nil {
			ln.Close()
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s of %s: %v, want %q", tt.where, tt.owner, err, tt.want)
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s of %s left a file", tt.where, tt.owner)
		}
	}
}

func TestOnlyPeersOfTheFilterAreServed(t *testing.T) {
	uid, gid := uint32(os.Geteuid()), uint32(os.Getegid())
	for _, where := range []string{"unix://@stream-test-peer", "seqpacket://@stream-test-peer"} {
		for _, tt := range []struct {
			name   string
			filter *PeerFilter
			as     uint32 // user and group of the client; needs root
			served bool
		}{
			{"no filter", nil, 0, true},
			{"an empty filter", &PeerFilter{}, 0, true},
			{"own user", &PeerFilter{UIDs: []uint32{4711, uid}}, 0, true},
			{"own group", &PeerFilter{UIDs: []uint32{4711}, GIDs: []uint32{gid}}, 0, true},
			{"another user", &PeerFilter{UIDs: []uint32{4711}}, 0, false},
			{"another group", &PeerFilter{GIDs: []uint32{4711}}, 0, false},
			{"a client of another user", &PeerFilter{UIDs: []uint32{4711}}, 4711, true},
			{"a client of another group", &PeerFilter{GIDs: []uint32{4711}}, 4711, true},
			{"a client of a user not listed", &PeerFilter{UIDs: []uint32{uid}, GIDs: []uint32{gid}}, 4711, false},
		} {
			if tt.as != 0 && (!manyUsers(t) || strings.HasPrefix(where, "seqpacket")) { // nc knows streams
				continue
			}
			t.Run(tt.name+" "+where[:4], func(t *testing.T) {
				ev := newEvents()
				h := HandlerFunc(func(_ context.Context, c *Conn) error {
					p, ok := c.Peer()
					fmt.Fprint(c, p, ok)
					return nil
				})
				ln := serve(t, &Server{Handler: h, Sink: ev, Peers: tt.filter}, where)
				var got []byte
				want := fmt.Sprint(ancillary.Credentials{PID: os.Getpid(), UID: uid, GID: gid}, true)
				if tt.as == 0 {
					c := connect(t, ln)
					got, _ = io.ReadAll(c)
				} else {
					cmd := program(t, "setpriv", "util-linux", fmt.Sprint("--reuid=", tt.as), fmt.Sprint("--regid=", tt.as), "--clear-groups",
						"socat", "-u", "ABSTRACT-CONNECT:stream-test-peer", "-")
					got, _ = cmd.Output()
					want = fmt.Sprint(ancillary.Credentials{PID: cmd.ProcessState.Pid(), UID: tt.as, GID: tt.as}, true)
				}
				if tt.served {
					if string(got) != want {
						t.Errorf("got %q, want %q", got, want)
					}
					if e := ev.wait(t, "accept", kindIs(stats.Accept)); e.Peer == nil || e.Peer.String()+" true" != want {
						t.Errorf("the event has %v, want %s", e.Peer, want)
					}
					return
				}
				if len(got) > 0 {
					t.Errorf("was served %q", got)
				}
				refused := ev.wait(t, "refusal", kindIs(stats.Error))
				if !strings.HasPrefix(refused.Err, "refused: peer not allowed: pid ") {
					t.Errorf("got %+v", refused)
				}
			})
		}
	}
}

func TestOnlyUnixSocketsHavePeers(t *testing.T) {
	known := make(chan bool, 1)
	h := HandlerFunc(func(_ context.Context, c *Conn) error {
		_, ok := c.Peer()
		known <- ok
		return nil
	})
	ev := newEvents()
	connect(t, serve(t, &Server{Handler: h, Sink: ev, Peers: &PeerFilter{UIDs: []uint32{4711}}}, "0"))
	if e := ev.wait(t, "accept", kindIs(stats.Accept)); <-known || e.Peer != nil {
		t.Errorf("a TCP connection has a peer; in the event %v", e.Peer)
	}
}

func TestListenReportsWhatWasGranted(t *testing.T) {
	var opts sockopt.Settings
	if err := opts.Set("rcvbuf=64KiB,nodelay"); err != nil {
		t.Fatal(err)
	}
	for _, where := range []string{"0", "tls://0"} {
		var got []string
		lc := ListenConfig{Options: opts, Report: func(granted []sockopt.Granted) {
			for _, g := range granted {
				got = append(got, g.Option.Name+"="+g.Got)
			}
		}}
		ln, err := lc.Listen(t.Context(), endpoint(t, where))
		if err != nil {
			t.Fatal(err)
		}
		ln.Close()
		if want := []string{"rcvbuf=128KiB", "nodelay=on"}; !slices.Equal(got, want) {
			t.Errorf("%s: reported %v, want %v", where, got, want)
		}
	}
}

func TestVsockListens(t *testing.T) {
	e := endpoint(t, "vsock://*:4294967295")
	ln, err := ListenConfig{}.Listen(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	ev := newEvents()
	serveOn(t, &Server{Handler: Echo(), Sink: ev}, ln)
	if l := ev.wait(t, "listen", kindIs(stats.Listen)); l.Tuple.Protocol.String() != "vsock" || !strings.HasPrefix(l.Tuple.Local.String(), "*:") || strings.HasSuffix(l.Tuple.Local.String(), ":4294967295") {
		t.Errorf("got %+v", l)
	}
	if _, err := (ListenConfig{}).Listen(t.Context(), endpoint(t, "vsock://"+ln.Addr().String())); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a second listener: %v", err)
	}
}
