package sockdiag

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
)

// reusable listens where others listen too.
func reusable(t *testing.T, network, address string) net.Listener {
	lc := net.ListenConfig{Control: reusePort}
	lc.SetMultipathTCP(false)
	l := must(lc.Listen(t.Context(), network, address))
	t.Cleanup(func() { l.Close() })
	return l
}

func reusePort(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) { ok(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)) })
}

// steady is the socket without what changes by itself from one look to the next.
func steady(s Socket) Socket {
	s.Timer, s.Info, s.RecvQueue, s.SendQueue = Timer{}, nil, 0, 0
	return s
}

func TestGetReadsEverySocketAgain(t *testing.T) {
	if !alone(t) {
		return
	}
	openEverything(t)
	first := reusable(t, "tcp", "127.0.0.1:0")
	for range 5 {
		reusable(t, "tcp", first.Addr().String())
	}
	lc := net.ListenConfig{Control: reusePort}
	server := must(lc.ListenPacket(t.Context(), "udp", "[::]:0"))
	defer server.Close()
	for range 5 {
		c := must(lc.ListenPacket(t.Context(), "udp", server.LocalAddr().String()))
		defer c.Close()
	}
	bound := rawSocket(t, unix.AF_INET, unix.SOCK_STREAM)
	ok(unix.Bind(bound, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	all := must(List(t.Context(), Query{Details: allDetails}))
	if len(all) < 250 {
		t.Errorf("got %d sockets, want more", len(all))
	}
	for _, s := range all {
		if s.Protocol == fivetuple.Netlink && s.Number == unix.NETLINK_SOCK_DIAG { // that of List
			continue
		}
		got, err := Get(t.Context(), s, allDetails&^WithMemory)
		s.Memory = Memory{}
		if err != nil || steady(got) != steady(s) && s.State != fivetuple.StateSynRecv && got.State == s.State || (got.Info == nil) != (s.Info == nil) {
			t.Errorf("got %+v, %v\nwant %+v", got, err, s)
		}
	}
}

// TestLookUpFindsWithoutADump what Get would also find by one.
func TestLookUpFindsWithoutADump(t *testing.T) {
	if !alone(t) {
		return
	}
	l := listen(t, "tcp", "[::]:0")
	client := connect(t, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(listening(l).Port())})
	u, link := packets(t, "udp", "127.0.0.1:0"), packets(t, "udp", "[fe80::1%void]:0")
	for _, inode := range []uint32{
		inodeOf(l), inodeOf(client), inodeOf(u), inodeOf(link), inodeOf(connect(t, u.LocalAddr())), inodeOf(connect(t, link.LocalAddr())),
		inodeOf(listen(t, "unix", "@ft-look-up")),
	} {
		want := find(t, Query{}, func(s Socket) bool { return s.Inode == inode })
		if got, err := lookUp(t.Context(), want, 0); err != nil || steady(got) != steady(want) {
			t.Errorf("got %+v, %v\nwant %+v", got, err, want)
		}
		want.Cookie++
		if _, err := lookUp(t.Context(), want, 0); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%v with another cookie: got error %v", want.Tuple(), err)
		}
	}
}

func TestGetSaysWhenASocketIsGone(t *testing.T) {
	if !alone(t) {
		return
	}
	l := listen(t, "tcp", "127.0.0.1:0")
	client, server := connect(t, l.Addr()), accept(t, l)
	u := packets(t, "udp", "127.0.0.1:0")
	pair := must(unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
	raw := must(unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 200))
	m := listenMultipath(t, "127.0.0.1:0")
	var gone []Socket
	for _, inode := range []uint32{inodeOf(l), inodeOf(client), inodeOf(u), fdInode(pair[0]), fdInode(raw), inodeOf(m)} {
		gone = append(gone, find(t, Query{}, func(s Socket) bool { return s.Inode == inode }))
	}
	other := gone[1]
	other.Cookie++ // another connection had the same ends before
	control(client, func(fd int) { ok(unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})) })
	if _, err := Get(t.Context(), other, 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("with another cookie: got error %v, want %v", err, fs.ErrNotExist)
	}
	ok(errors.Join(l.Close(), client.Close(), server.Close(), u.Close(), unix.Close(pair[0]), unix.Close(pair[1]), unix.Close(raw), m.Close()))
	for _, s := range gone {
		if got, err := Get(t.Context(), s, WithInfo); !errors.Is(err, fs.ErrNotExist) || got != (Socket{}) {
			t.Errorf("%v: got %+v, %v, want %v", s.Tuple(), got, err, fs.ErrNotExist)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Get(ctx, gone[0], 0); !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v, want %v", err, context.Canceled)
	}
}
