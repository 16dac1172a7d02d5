package sockopt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func settings(t *testing.T, text string) Settings {
	t.Helper()
	var s Settings
	if err := s.Set(text); err != nil {
		t.Fatal(err)
	}
	return s
}

// getConn reads an option of a Go socket.
func getConn(t *testing.T, c syscall.Conn, name string) string {
	t.Helper()
	rc, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var s Setting
	var getErr error
	if err := errors.Join(rc.Control(func(fd uintptr) { s, getErr = Get(int(fd), name) }), getErr); err != nil {
		t.Fatal(err)
	}
	return s.Value()
}

// pair returns both ends of a plain TCP connection over loopback.
func pair(t *testing.T, lc net.ListenConfig, d net.Dialer) (server, client *net.TCPConn) {
	t.Helper()
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := d.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s.(*net.TCPConn), c.(*net.TCPConn)
}

func TestControlSetsOptionsOfListenersAndDialers(t *testing.T) {
	listen := settings(t, "reuseport,rcvbuf=64KiB,user-timeout=9s,nodelay=off,keepalive=40s/20s/2")
	dial := settings(t, "sndbuf=64KiB,tos=af41,maxseg=1000")
	var report []Granted
	server, client := pair(t, net.ListenConfig{Control: listen.Control},
		net.Dialer{Control: dial.ControlFunc(func(g []Granted) { report = g })})
	for _, tc := range []struct {
		conn       syscall.Conn
		name, want string
	}{
		{server, "rcvbuf", "128KiB"}, {server, "user-timeout", "9s"},
		{client, "sndbuf", "128KiB"}, {client, "tos", "af41"}, {client, "user-timeout", "0s"},
		// What package net does after Control has run, and what PerConn is for.
		{server, "nodelay", "on"}, {server, "keepalive", "15s/15s/9"},
	} {
		if got := getConn(t, tc.conn, tc.name); got != tc.want {
			t.Errorf("%s = %s, want %s", tc.name, got, tc.want)
		}
	}
	if len(report) != 3 || report[0].Asked != "64KiB" || report[0].Got != "128KiB" {
		t.Errorf("reported %v", report)
	}
	rc, err := server.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := listen.PerConn().ApplyConn(rc); err != nil {
		t.Fatal(err)
	}
	if nodelay, keepalive := getConn(t, server, "nodelay"), getConn(t, server, "keepalive"); nodelay != "off" || keepalive != "40s/20s/2" {
		t.Errorf("after PerConn: nodelay %s, keepalive %s", nodelay, keepalive)
	}
}

func TestControlNamesTheEndpointInErrors(t *testing.T) {
	lc := net.ListenConfig{Control: settings(t, "nodelay").Control}
	for network, address := range map[string]string{"udp": "127.0.0.1:0", "unixgram": filepath.Join(t.TempDir(), "s")} {
		_, err := lc.ListenPacket(context.Background(), network, address)
		if !errors.Is(err, ErrSocket) || !strings.Contains(err.Error(), network) || !strings.Contains(err.Error(), address) {
			t.Errorf("%s: %v, want %v with the endpoint", network, err, ErrSocket)
		}
	}
}

func TestApplyConnReportsAClosedSocket(t *testing.T) {
	server, _ := pair(t, net.ListenConfig{}, net.Dialer{})
	rc, err := server.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	server.Close()
	if _, err := settings(t, "nodelay").ApplyConn(rc); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v, want %v", err, net.ErrClosed)
	}
	if _, err := TCPInfoOf(server); err == nil {
		t.Error("TCP_INFO of a closed connection")
	}
	if _, err := Settings(nil).ApplyConn(rc); err != nil {
		t.Errorf("nothing to apply: %v", err)
	}
}

func TestCombineRunsInOrderAndStopsAtTheFirstError(t *testing.T) {
	var ran string
	step := func(name string, err error) func(string, string, syscall.RawConn) error {
		return func(network, address string, _ syscall.RawConn) error {
			ran += name + network
			return err
		}
	}
	if err := Combine(step("a", nil), nil, step("b", io.EOF), step("c", nil))("tcp", "", nil); err != io.EOF || ran != "atcpbtcp" {
		t.Errorf("ran %s, %v", ran, err)
	}
	if err := Combine()("tcp", "", nil); err != nil {
		t.Error(err)
	}
}

func TestReusePortSharesAPort(t *testing.T) {
	lc := net.ListenConfig{Control: settings(t, "reuseport").Control}
	lc.SetMultipathTCP(false)
	first, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	second, err := lc.Listen(context.Background(), "tcp", first.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	second.Close()
	if third, err := net.Listen("tcp", first.Addr().String()); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("without the option: %v, %v", third, err)
	}
}

func TestLingerZeroResetsTheConnection(t *testing.T) {
	server, client := pair(t, net.ListenConfig{}, net.Dialer{Control: settings(t, "linger=0").Control})
	client.Close()
	if _, err := server.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("got %v, want %v", err, unix.ECONNRESET)
	}
}

func TestKeepAliveIsSeveralOptionsOfTCP(t *testing.T) {
	fd := tcpSocket(t)
	granted, err := Apply(fd, parse(t, "keepalive=30s//3"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, g := range granted {
		names = append(names, g.Option.Name+"="+g.Got)
	}
	if got, want := strings.Join(names, " "), "keepalive=on keepalive-idle=30s keepalive-count=3"; got != want {
		t.Errorf("granted %s, want %s", got, want)
	}
	if s, err := Get(fd, "SO_KEEPALIVE"); err != nil || s.Value() != "30s/1m15s/3" {
		t.Errorf("got %s, %v", s.Value(), err)
	}
	if _, err := Apply(fd, parse(t, "keepalive=off")); err != nil {
		t.Fatal(err)
	}
	if s, err := Get(fd, "keepalive"); err != nil || s.Value() != "off" {
		t.Errorf("got %s, %v", s.Value(), err)
	}
	udp := open(t, testSockets[2])
	if _, err := Apply(udp, parse(t, "keepalive")); err != nil {
		t.Errorf("the flag alone on UDP: %v", err)
	}
	if _, err := Apply(udp, parse(t, "keepalive=30s")); !errors.Is(err, ErrSocket) || !strings.Contains(err.Error(), "TCP_KEEPIDLE") {
		t.Errorf("the times on UDP: %v", err)
	}
}

func TestTwinsAreSetTogetherOnIPv6(t *testing.T) {
	fd := open(t, testSockets[1])
	granted, err := Apply(fd, parse(t, "tos=ef"), parse(t, "ttl=9"))
	if err != nil || len(granted) != 4 {
		t.Fatalf("%v, %v", granted, err)
	}
	for name, want := range map[string]string{"tos": "ef", "tclass": "ef", "ttl": "9", "hops": "9"} {
		if s, err := Get(fd, name); err != nil || s.Value() != want {
			t.Errorf("%s = %s, %v, want %s", name, s.Value(), err, want)
		}
	}
	// On UDP an IPv4 address of the interface means nothing to IPv6.
	granted, err = Apply(open(t, testSockets[3]), parse(t, "multicast-if=127.0.0.1"))
	if err != nil || len(granted) != 1 {
		t.Errorf("%v, %v", granted, err)
	}
}

func TestGetAllReadsALiveConnection(t *testing.T) {
	server, _ := pair(t, net.ListenConfig{Control: settings(t, "rcvbuf=64KiB").Control}, net.Dialer{})
	rc, err := server.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var all []Setting
	var getErr error
	if err := errors.Join(rc.Control(func(fd uintptr) { all, getErr = GetAll(int(fd)) }), getErr); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, s := range all {
		got[s.Option().Name] = s.Value()
	}
	for name, want := range map[string]string{"rcvbuf": "128KiB", "type": "stream", "domain": "ipv4", "protocol": "tcp", "mtu": "65535", "acceptconn": "off", "is-mptcp": "off"} {
		if got[name] != want {
			t.Errorf("%s = %q, want %q", name, got[name], want)
		}
	}
	if !strings.HasPrefix(got["info"], "state=1 ") || !strings.Contains(got["meminfo"], "rb131072,") {
		t.Errorf("info %q, meminfo %q", got["info"], got["meminfo"])
	}
	for _, name := range []string{"error", "saved-syn", "rcvbufforce", "hops", "segment"} {
		if value, ok := got[name]; ok {
			t.Errorf("%s = %s was read", name, value)
		}
	}
}

func TestPeerCredentialsAndPendingError(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	s, err := Get(fds[0], "peercred")
	if want := (unix.Ucred{Pid: int32(unix.Getpid()), Uid: uint32(unix.Getuid()), Gid: uint32(unix.Getgid())}); err != nil ||
		s.Value() != fmt.Sprintf("pid=%d uid=%d gid=%d", want.Pid, want.Uid, want.Gid) {
		t.Errorf("peercred %s, %v, want %+v", s.Value(), err, want)
	}
	if _, err := Get(fds[0], "peergroups"); err != nil {
		t.Errorf("peergroups: %v", err)
	}

	// A refused non-blocking connect leaves its error on the socket.
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := ln.Addr().(*net.TCPAddr).Port
	ln.Close()
	fd := open(t, freshSocket{TCP | IPv4, unix.AF_INET, unix.SOCK_STREAM | unix.SOCK_NONBLOCK, unix.IPPROTO_TCP})
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: port}); !errors.Is(err, unix.EINPROGRESS) {
		t.Fatalf("connect: %v", err)
	}
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 5000); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"connection refused", "none"} {
		if s, err := Get(fd, "error"); err != nil || s.Value() != want {
			t.Errorf("error %s, %v, want %s", s.Value(), err, want)
		}
	}
}
