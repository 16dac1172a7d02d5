package ancillary

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func TestPeerCredentialsAreThePeersProcess(t *testing.T) {
	want := Credentials{PID: os.Getpid(), UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
	eachNetwork(t, func(t *testing.T, a, _ *net.UnixConn) {
		if got, err := PeerCredentials(a); err != nil || got != want {
			t.Errorf("got %v, %v, want %v", got, err, want)
		}
	})
	for _, network := range []string{"unix", "unixpacket"} {
		t.Run(network+" accepted", func(t *testing.T) {
			client, server := connected(t, network)
			for _, c := range []*net.UnixConn{client, server} {
				if got, err := PeerCredentials(c); err != nil || got != want {
					t.Errorf("got %v, %v, want %v", got, err, want)
				}
			}
		})
	}
}

// peerRole connects and prints who listens.
func peerRole(control *net.UnixConn) {
	path := make([]byte, 200)
	n, err := control.Read(path)
	if err != nil {
		fmt.Println(err)
		return
	}
	c, err := net.Dial("unix", string(path[:n]))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(PeerCredentials(c.(*net.UnixConn)))
	control.Read(path) // until it has been looked at
}

func TestPeerOfAnotherPIDNamespaceHasNoPID(t *testing.T) {
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a, b := pair(t, "unixpacket")
	cmd := child(t, "peer", b, inNewNamespaces())
	if _, err := a.Write([]byte(ln.Addr().String())); err != nil {
		t.Fatal(err)
	}
	pid, printed := start(t, cmd)
	ln.(*net.UnixListener).SetDeadline(time.Now().Add(patience))
	c, err := ln.Accept()
	if err != nil {
		t.Fatalf("%v; the child: %s", err, printed())
	}
	defer c.Close()
	inside, err := PeerCredentials(c.(*net.UnixConn))
	if err != nil || inside.PID != pid || inside.UID != uint32(os.Getuid()) {
		t.Errorf("the process inside, seen from outside: got %v, %v, want pid %d uid %d", inside, err, pid, os.Getuid())
	}
	a.Close()
	if got, want := printed(), "pid unknown uid 0 gid 0 <nil>"; got != want {
		t.Errorf("the process outside, seen from inside: got %q, want %q", got, want)
	}
}

func TestSocketsWithoutPeerHaveNoCredentials(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	gram, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer gram.Close()
	for _, c := range []syscall.Conn{tcp.(*net.TCPListener), gram} {
		if got, err := PeerCredentials(c); !errors.Is(err, ErrNoCredentials) {
			t.Errorf("%T: got %v, %v, want ErrNoCredentials", c, got, err)
		}
	}
	gram.Close()
	if _, err := PeerCredentials(gram); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: got %v, want net.ErrClosed", err)
	}
}
