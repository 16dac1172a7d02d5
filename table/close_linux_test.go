package table

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/lab"
	"github.com/fivetuple/fivetuple/netns"
)

// socketOf opens a socket that package net does not make.
func socketOf(t *testing.T, family, kind, protocol int) *os.File {
	t.Helper()
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "socket")
	t.Cleanup(func() { f.Close() })
	return f
}

func listenPacket(t *testing.T, network, address string) net.PacketConn {
	t.Helper()
	c, err := net.ListenPacket(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// rowOf returns the table's row of a socket, with its owners.
func rowOf(t *testing.T, socket any) Row {
	t.Helper()
	raw, err := socket.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	raw.Control(func(fd uintptr) { err = unix.Fstat(int(fd), &st) })
	if err != nil {
		t.Fatal(err)
	}
	return theRow(t, fmt.Sprint("inode ", st.Ino))
}

// theRow returns the one row that matches the filter, once there is one.
func theRow(t *testing.T, filter string) Row {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; {
		tab, err := Read(t.Context(), Query{Filter: parse(t, filter), Owners: true})
		if err != nil {
			t.Fatal(err)
		}
		if len(tab.Rows) == 1 {
			return tab.Rows[0]
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d sockets match %q: %v", len(tab.Rows), filter, tab.Rows)
		}
	}
}

// wantClosed closes the row's socket. An error must be one line that wraps what is wanted.
func wantClosed(t *testing.T, r Row, want Closed, wantErr error) {
	t.Helper()
	got, err := Close(t.Context(), &r)
	if got != want || !errors.Is(err, wantErr) {
		t.Errorf("%v: got %q, %v, want %q, %v", r.Tuple(), got, err, want, wantErr)
	}
	if err == nil {
		return
	}
	if s := err.Error(); strings.Contains(s, "\n") || strings.Count(s, "close socket") != 1 {
		t.Errorf("%v: the error repeats itself, or is of several lines: %q", r.Tuple(), s)
	}
}

// wantRead reads from a connection for some time, at most, and looks at the error.
func wantRead(t *testing.T, c net.Conn, want error) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := c.Read(make([]byte, 10)); !errors.Is(err, want) {
		t.Errorf("%v: read %d bytes, %v, want error %v", c.LocalAddr(), n, err, want)
	}
}

// wantAlive sends a byte through a connection.
func wantAlive(t *testing.T, from, to net.Conn) {
	t.Helper()
	if _, err := from.Write([]byte("x")); err != nil {
		t.Errorf("another connection: %v", err)
	}
	wantRead(t, to, nil)
}

func TestCloseClosesOneConnection(t *testing.T) {
	ln := listen(t, "tcp", "127.0.0.1:0")
	client := dial(t, ln.Addr())
	server := accept(t, ln)
	other := dial(t, ln.Addr())
	otherServer := accept(t, ln)
	wantClosed(t, rowOf(t, server), Destroyed, nil)
	wantRead(t, server, unix.ECONNABORTED)
	wantRead(t, client, unix.ECONNRESET)
	wantAlive(t, other, otherServer)
}

// A socket that has the addresses of the row's later is another one.
func TestCloseLeavesTheNextSocketWithTheSameAddresses(t *testing.T) {
	ln := listen(t, "tcp", "127.0.0.1:0")
	client := dial(t, ln.Addr())
	server := accept(t, ln)
	before := rowOf(t, client)
	client.(*net.TCPConn).SetLinger(0) // with a reset, so that the ports are free at once
	client.Close()
	wantRead(t, server, unix.ECONNRESET)
	server.Close()

	d := net.Dialer{LocalAddr: client.LocalAddr()}
	d.SetMultipathTCP(false)
	next, err := d.DialContext(t.Context(), "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	nextServer := accept(t, ln)
	if now := rowOf(t, next); now.Tuple() != before.Tuple() || now.Cookie == before.Cookie {
		t.Fatalf("the next socket is %v with cookie %x, the one before %v with %x", now.Tuple(), now.Cookie, before.Tuple(), before.Cookie)
	}
	wantClosed(t, before, Gone, nil)
	wantAlive(t, next, nextServer)

	// And so with a descriptor: another socket has the number by now.
	path := filepath.Join(t.TempDir(), "s")
	unixListener := listen(t, "unix", path)
	r := rowOf(t, unixListener)
	stays := listen(t, "unix", path+"2")
	r.Owners[0].FD = rowOf(t, stays).Owners[0].FD
	wantClosed(t, r, NotClosed, fs.ErrNotExist)
	unixClient := dial(t, stays.Addr())
	wantAlive(t, unixClient, accept(t, stays))
	unixListener.Close()
	wantClosed(t, r, Gone, nil)
}

func TestCloseSaysThatADatagramSocketIsStillBound(t *testing.T) {
	for _, at := range []string{"127.0.0.1", "::", "::1"} {
		bound, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(at), Port: freePort(t)})
		if err != nil {
			t.Fatal(err)
		}
		defer bound.Close()
		before := rowOf(t, bound)
		wantClosed(t, before, Aborted, nil)
		wantRead(t, bound, unix.ECONNABORTED)
		if now := rowOf(t, bound); now.Local != before.Local {
			t.Errorf("it is at %v now, was at %v", now.Local, before.Local)
		}
		client := dial(t, bound.LocalAddr())
		wantAlive(t, client, bound) // it goes on receiving
		wantClosed(t, rowOf(t, client), Destroyed, nil)
		wantRead(t, client, unix.ECONNABORTED)
	}

	connected, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP("127.0.0.1"), Port: freePort(t)}, &net.UDPAddr{IP: net.ParseIP("127.0.0.1"), Port: 9})
	if err != nil {
		t.Fatal(err)
	}
	defer connected.Close()
	wantClosed(t, rowOf(t, connected), Aborted, nil)
	if now := rowOf(t, connected); now.State != fivetuple.StateClose {
		t.Errorf("what was bound and connected is in %v", now.State)
	}

	// The kernel may find a neighbour instead of one that shares its port.
	shared := freePort(t)
	var all []net.Conn
	for range 20 {
		c := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
			c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
			return err
		}}
		s, err := c.ListenPacket(t.Context(), "udp", fmt.Sprint("127.0.0.1:", shared))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		all = append(all, s.(net.Conn))
	}
	raw, err := all[0].(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		err = unix.Connect(int(fd), &unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}})
	})
	if err != nil {
		t.Fatal(err)
	}
	wantClosed(t, rowOf(t, all[0]), Aborted, nil)
	wantRead(t, all[0], unix.ECONNABORTED)

	// A port that the kernel chose is not kept.
	wantClosed(t, rowOf(t, listenPacket(t, "udp", "127.0.0.1:0")), Destroyed, nil)
}

// freePort is a UDP port that was in use. Bound by its number it is kept.
func freePort(t *testing.T) int {
	t.Helper()
	c := listenPacket(t, "udp", "127.0.0.1:0")
	c.Close()
	return int(addrPort(c.LocalAddr()).Port())
}

func TestCloseClosesAListener(t *testing.T) {
	ln := listen(t, "tcp", "127.0.0.1:0")
	wantClosed(t, rowOf(t, ln), Destroyed, nil)
	if c, err := net.Dial("tcp", ln.Addr().String()); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("somebody connects: %v, %v", c, err)
	}
}

func TestCloseClosesASocketOfAnotherNamespace(t *testing.T) {
	host := lab.NewHost(t, "other")
	ln, err := host.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	host.Start(t, exec.Command("sleep", "1000")) // by which the namespace is found
	var there netns.Namespace
	host.Do(t, func() { there, err = netns.Current() })
	if err != nil {
		t.Fatal(err)
	}
	all, err := netns.All()
	if err != nil {
		t.Fatal(err)
	}
	there = all[slices.IndexFunc(all, func(n netns.Namespace) bool { return n.ID == there.ID })]
	tab, err := Read(t.Context(), Query{Filter: parse(t, "tcp and state listen"), Namespaces: []netns.Namespace{there}})
	if err != nil || len(tab.Rows) != 1 {
		t.Fatalf("got %v, %v, want a listener", tab, err)
	}
	wantClosed(t, tab.Rows[0], Destroyed, nil)
	if c, err := host.Dial(t.Context(), "tcp", ln.Addr().String()); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("somebody connects: %v, %v", c, err)
	}
}

func TestCloseClosesWhatNobodyHolds(t *testing.T) {
	ln := listen(t, "tcp", "127.0.0.1:0")
	client := dial(t, ln.Addr())
	server := accept(t, ln)
	client.Close()
	server.Close()
	r := theRow(t, fmt.Sprintf("tcp and state time-wait and port %d", addrPort(client.LocalAddr()).Port()))
	wantClosed(t, r, Destroyed, nil)
	wantClosed(t, r, Gone, nil)
}

func TestCloseShutsUnixSocketsDown(t *testing.T) {
	for _, network := range []string{"unix", "unixpacket"} {
		ln := listen(t, network, filepath.Join(t.TempDir(), "s"))
		client := dial(t, ln.Addr())
		server := accept(t, ln)
		other := dial(t, ln.Addr())
		otherServer := accept(t, ln)
		wantClosed(t, rowOf(t, server), ShutDown, nil)
		wantRead(t, client, io.EOF)
		wantRead(t, server, io.EOF)
		wantAlive(t, other, otherServer)
		wantClosed(t, rowOf(t, ln), ShutDown, nil)
		if c, err := net.Dial(network, ln.Addr().String()); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s: somebody connects: %v, %v", network, c, err)
		}
		wantAlive(t, other, otherServer)

		nobody := rowOf(t, other)
		nobody.Owners = nil
		wantClosed(t, nobody, NotClosed, errors.ErrUnsupported)
		ended := rowOf(t, other)
		ended.Owners[0].Start++ // another process has the PID by now; the second holder counts
		ended.Owners = append(ended.Owners, rowOf(t, other).Owners...)
		wantClosed(t, ended, ShutDown, nil)
	}
}

// What is not connected is not shut down: its readers would get an empty end
// again and again.
func TestCloseLeavesUnconnectedSocketsAsTheyAre(t *testing.T) {
	raw := socketOf(t, unix.AF_INET, unix.SOCK_RAW, 200)
	wantClosed(t, rowOf(t, raw), NotClosed, errors.ErrUnsupported)
	wantWaits(t, raw)

	bound := socketOf(t, unix.AF_INET, unix.SOCK_STREAM, 0)
	if err := unix.Bind(int(bound.Fd()), &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	wantClosed(t, rowOf(t, bound), NotClosed, errors.ErrUnsupported)

	udp := listenPacket(t, "udp", "127.0.0.1:0")
	r := rowOf(t, udp)
	withoutRights(t, func() { wantClosed(t, r, NotClosed, fs.ErrPermission) })
	f, err := udp.(*net.UDPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	wantWaits(t, f)
}

// wantWaits looks that a reader of the socket would wait: there is no data, error
// or end. A read that may not wait does not tell the end of a datagram socket.
func wantWaits(t *testing.T, f *os.File) {
	t.Helper()
	ready := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN | unix.POLLRDHUP}}
	if n, err := unix.Poll(ready, 0); n != 0 || err != nil {
		t.Errorf("a reader need not wait: %d, events %#x, %v", n, ready[0].Revents, err)
	}
}

func TestCloseWithoutRightsShutsDownOwnSockets(t *testing.T) {
	ln := listen(t, "tcp", "127.0.0.1:0")
	client := dial(t, ln.Addr())
	server := accept(t, ln)
	r := rowOf(t, server)
	nobody := r
	nobody.Owners = nil
	withoutRights(t, func() { wantClosed(t, nobody, NotClosed, fs.ErrPermission) })
	withoutRights(t, func() { wantClosed(t, r, ShutDown, nil) })
	wantRead(t, client, io.EOF)
	r = rowOf(t, ln)
	withoutRights(t, func() { wantClosed(t, r, ShutDown, nil) })
	if c, err := net.Dial("tcp", ln.Addr().String()); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("somebody connects: %v, %v", c, err)
	}
}

// withoutRights runs a function on a thread without capabilities, which ends with it.
func withoutRights(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		var none [2]unix.CapUserData
		err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0])
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
