package sockdiag

import (
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
)

func byInode(t *testing.T, c any) Socket {
	t.Helper()
	return find(t, Query{}, func(s Socket) bool { return s.Inode == inodeOf(c) })
}

func mustDestroy(t *testing.T, s Socket) {
	t.Helper()
	if err := Destroy(t.Context(), s); err != nil {
		t.Errorf("got error %v", err)
	}
}

func TestDestroyClosesConnections(t *testing.T) {
	if !alone(t) {
		return
	}
	for _, address := range []string{"127.0.0.1:0", "[::1]:0", "[::]:0", "[fe80::1%void]:0"} {
		l := listen(t, "tcp", address)
		client := connect(t, l.Addr())
		server := accept(t, l)
		neighbour := connect(t, l.Addr())
		accept(t, l)
		mustDestroy(t, byInode(t, server))
		ok(errors.Join(client.SetDeadline(time.Now().Add(5*time.Second)), server.SetDeadline(time.Now().Add(5*time.Second))))
		if _, err := server.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
			t.Errorf("%s: its holder got %v, want %v", address, err, unix.ECONNABORTED)
		}
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%s: its peer got %v, want %v", address, err, unix.ECONNRESET)
		}
		if s := byInode(t, neighbour); s.State != fivetuple.StateEstablished {
			t.Errorf("%s: the neighbour is in %v", address, s.State)
		}
	}
}

func TestDestroyClosesWhatNoProcessHolds(t *testing.T) {
	if !alone(t) {
		return
	}
	l := listen(t, "tcp", "127.0.0.1:0")
	client, server := connect(t, l.Addr()), accept(t, l)
	at := func(end netip.AddrPort, state fivetuple.State) func(Socket) bool {
		return func(s Socket) bool { return s.State == state && (s.Local == end || s.Remote == end) }
	}
	ends := local(client)
	ok(errors.Join(client.Close(), server.Close()))
	timeWait := find(t, Query{}, at(ends, fivetuple.StateTimeWait))
	deferAccept(l)
	half := connect(t, l.Addr())
	synRecv := find(t, Query{}, at(local(half), fivetuple.StateSynRecv))
	for _, s := range []Socket{timeWait, synRecv} {
		mustDestroy(t, s)
		if _, err := Get(t.Context(), s, 0); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%v in %v: is still there: %v", s.Tuple(), s.State, err)
		}
	}
}

func TestDestroyClosesTheOneListenerOfManyOnThePort(t *testing.T) {
	if !alone(t) {
		return
	}
	for _, address := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::]:0", "[::1]:0"} {
		var all []net.Listener
		for range 20 {
			all = append(all, reusable(t, "tcp", address))
			address = all[0].Addr().String()
		}
		before := must(List(t.Context(), Query{States: Listening, LocalPort: listening(all[0]).Port()}))
		for i, l := range all {
			if i%4 == 0 {
				mustDestroy(t, byInode(t, l))
			}
		}
		left := map[uint32]bool{}
		for _, s := range must(List(t.Context(), Query{States: Listening, LocalPort: listening(all[0]).Port()})) {
			left[s.Inode] = true
		}
		for i, l := range all {
			if want := i%4 != 0; left[inodeOf(l)] != want {
				t.Errorf("%s: listener %d of %d is there: got %v, want %v", address, i, len(before), !want, want)
			}
		}
	}
}

func listening(l net.Listener) netip.AddrPort { return fivetuple.AddressOf(l.Addr()).AddrPort }

func TestDestroyClosesDatagramSockets(t *testing.T) {
	if !alone(t) {
		return
	}
	for _, address := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"} {
		server := packets(t, "udp", address)
		client := connect(t, &net.UDPAddr{IP: net.IPv6loopback, Port: int(local(server).Port())})
		if local(server).Addr().Is4() {
			client = connect(t, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(local(server).Port())})
		}
		for _, c := range []net.Conn{server.(*net.UDPConn), client} {
			mustDestroy(t, byInode(t, c))
			ok(c.SetReadDeadline(time.Now().Add(5 * time.Second)))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
				t.Errorf("%s: got %v, want %v", address, err, unix.ECONNABORTED)
			}
		}
	}
}

func TestDestroySaysWhyNot(t *testing.T) {
	if !alone(t) {
		return
	}
	l := listen(t, "tcp", "127.0.0.1:0")
	client := connect(t, l.Addr())
	accept(t, l)
	connection := byInode(t, client)
	multipath := listenMultipath(t, "127.0.0.1:0")
	bound := rawSocket(t, unix.AF_INET, unix.SOCK_STREAM)
	ok(unix.Bind(bound, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	path := listen(t, "unix", "@ft-destroy")
	raw := protocolSocket(t, unix.AF_INET, unix.SOCK_RAW, 200)
	for name, c := range map[string]struct {
		socket Socket
		want   error
	}{
		"multipath": {byInode(t, multipath), errors.ErrUnsupported},
		"bound":     {find(t, Query{}, func(s Socket) bool { return s.Inode == fdInode(bound) }), errors.ErrUnsupported},
		"unix":      {byInode(t, path), errors.ErrUnsupported},
		"raw":       {find(t, Query{}, func(s Socket) bool { return s.Inode == fdInode(raw) }), errors.ErrUnsupported},
		"another cookie": {func() Socket {
			s := connection
			s.Cookie++
			return s
		}(), fs.ErrNotExist},
		"another listener": {func() Socket {
			s := byInode(t, l)
			s.Cookie++
			return s
		}(), fs.ErrNotExist},
	} {
		if err := Destroy(t.Context(), c.socket); !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.socket.Tuple().String()) {
			t.Errorf("%s: got error %v, want %v", name, err, c.want)
		}
	}
	nobody := connection
	nobody.Cookie = 0
	if err := Destroy(t.Context(), nobody); err == nil {
		t.Error("without a cookie: got no error")
	}
	// Without the right: of this thread only, which ends with its goroutine.
	refused := make(chan error)
	go func() {
		runtime.LockOSThread()
		ok(unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &new([2]unix.CapUserData)[0]))
		refused <- Destroy(t.Context(), connection)
	}()
	if err := <-refused; !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("without rights: got error %v", err)
	}
	if s := byInode(t, client); s.State != fivetuple.StateEstablished {
		t.Errorf("the connection is in %v", s.State)
	}
}
