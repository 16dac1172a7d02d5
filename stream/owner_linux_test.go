package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"sync"
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

func TestOwnersAreReadByNameAndNumber(t *testing.T) {
	me, err := user.LookupId("65534")
	if err != nil {
		t.Fatal(err)
	}
	group, err := user.LookupGroupId("65534")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		text string
		want ids
		err  string
	}{
		{"", noIDs, ""},
		{me.Username, ids{65534, -1}, ""},
		{me.Username + ":" + group.Name, ids{65534, 65534}, ""},
		{":" + group.Name, ids{-1, 65534}, ""},
		{"0:65534", ids{0, 65534}, ""},
		{"4711", ids{4711, -1}, ""},
		{":", noIDs, "no group"},
		{"root:", noIDs, "no group"},
		{"no-such-user", noIDs, "unknown user no-such-user"},
		{":no-such-group", noIDs, "unknown group no-such-group"},
		{"4294967295", noIDs, "is not a user id"},
		{"0:99999999999", noIDs, "is not a group id"},
		{"-1", noIDs, "unknown user -1"},
	} {
		got, err := parseOwner(tt.text)
		if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%q: %v, %v; want %v, %s", tt.text, got, err, tt.want, tt.err)
		}
	}
}

// seen collects the owners and modes that a path has over time.
func seen(path string) (stop func() []string) {
	quit := make(chan struct{})
	var wg sync.WaitGroup
	var all []string
	wg.Go(func() {
		for {
			var st syscall.Stat_t
			if syscall.Lstat(path, &st) == nil {
				if s := fmt.Sprintf("%d:%d %#o", st.Uid, st.Gid, st.Mode&0o7777); !slices.Contains(all, s) {
					all = append(all, s)
				}
			}
			select {
			case <-quit:
				return
			default:
			}
		}
	})
	return func() []string { close(quit); wg.Wait(); return all }
}

func TestAUnixSocketNeverLetsInOthersThanItShall(t *testing.T) {
	own := fmt.Sprintf("%d:%d", os.Geteuid(), os.Getegid())
	other := own
	if manyUsers(t) {
		other = "65534:65533"
	}
	for _, umask := range []int{0, 0o022, 0o777} {
		t.Run(fmt.Sprintf("umask %#o", umask), func(t *testing.T) {
			old := syscall.Umask(umask)
			defer syscall.Umask(old)
			syscall.Umask(old)
			path := filepath.Join(t.TempDir(), "s")
			syscall.Umask(umask)
			stop := seen(path)
			for range 300 {
				ln, err := ListenConfig{Owner: other, Mode: 0o660}.Listen(t.Context(), endpoint(t, "unix://"+path))
				if err != nil {
					t.Fatal(err)
				}
				var st syscall.Stat_t
				syscall.Lstat(path, &st)
				if got := fmt.Sprintf("%d:%d %#o", st.Uid, st.Gid, st.Mode&0o7777); got != other+" 0660" {
					t.Fatalf("it is %s, want %s 0660", got, other)
				}
				ln.Close()
			}
			for _, s := range stop() {
				if !slices.Contains([]string{own + " 0", other + " 0", other + " 0660"}, s) {
					t.Errorf("for a moment it was %s", s)
				}
			}
		})
	}
}

func TestAnOwnerThatCannotBeIsAnErrorAndLeavesNoFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	for _, tt := range []struct{ where, owner, want string }{
		{"unix://" + path, "no-such-user", "unknown user"},
		{"unix://" + path, "4000000000", "chown to 4000000000:-1"}, // no user of the lab
		{"unix://@stream-test-owner", "0", "abstract name has no owner"},
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

func TestSettleChangesNoFileThatTookTheSocketsPlace(t *testing.T) {
	dir := t.TempDir()
	path, victim := filepath.Join(dir, "s"), filepath.Join(dir, "victim")
	os.WriteFile(victim, nil, 0o600)
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	bound, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(path)
	for name, put := range map[string]func() error{
		"a symbolic link": func() error { return os.Symlink(victim, path) },
		"a hard link":     func() error { return os.Link(victim, path) },
		"another socket": func() error {
			ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: victim + ".s"})
			if err != nil {
				return err
			}
			t.Cleanup(func() { ln.Close() })
			return os.Link(victim+".s", path)
		},
	} {
		if err := put(); err != nil {
			t.Fatal(err)
		}
		if err := settle(path, bound, access{0o777, ids{os.Geteuid(), -1}}); err == nil {
			t.Errorf("%s was taken for the socket", name)
		}
		if info, _ := os.Stat(victim); info.Mode().Perm() != 0o600 {
			t.Errorf("by %s the victim's mode is %v", name, info.Mode())
		}
		os.Remove(path)
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
	connect(t, serve(t, &Server{Handler: h, Peers: &PeerFilter{UIDs: []uint32{4711}}}, "0"))
	if <-known {
		t.Error("a TCP connection has a peer")
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
