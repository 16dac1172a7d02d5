package activation

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/lab"
)

// playInherited tells what it was passed. LISTEN_PID=self stands for its own.
func playInherited() {
	if os.Getenv("LISTEN_PID") == "self" {
		os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	}
	for range 2 {
		sockets, err := Inherited()
		fmt.Print(len(sockets), " ", err)
		for _, s := range sockets {
			flags := must(unix.FcntlInt(s.File.Fd(), unix.F_GETFD, 0))
			at := must(unix.Getsockname(int(s.File.Fd())))
			fmt.Print(" ", s.Name, " ", s.File.Fd(), " ", addrPort(at), " cloexec=", flags)
		}
		_, left := os.LookupEnv("LISTEN_FDS")
		fmt.Println(" left", left)
	}
}

func TestInherited(t *testing.T) {
	h := lab.NewHost(t, "h")
	const none = "0 <nil> left false\n"
	one := fmt.Sprintf("3 %s cloexec=1", loopback)
	for _, tt := range []struct {
		name string
		env  []string
		want string
	}{
		{"nothing", nil, none},
		{"of another process", []string{"LISTEN_PID=1", "LISTEN_FDS=1"}, none},
		{"of nobody", []string{"LISTEN_FDS=1"}, none},
		{"one", []string{"LISTEN_PID=self", "LISTEN_FDS=1"}, "1 <nil> unknown " + one + " left false\n"},
		{"one named", []string{"LISTEN_PID=self", "LISTEN_FDS=1", "LISTEN_FDNAMES=api"}, "1 <nil> api " + one + " left false\n"},
		{"too many", []string{"LISTEN_PID=self", "LISTEN_FDS=9"},
			"0 take the sockets passed on: descriptor 4 of LISTEN_FDS=9: fcntl: bad file descriptor left false\n"},
		{"names amiss", []string{"LISTEN_PID=self", "LISTEN_FDS=1", "LISTEN_FDNAMES=a:b"},
			"0 take the sockets passed on: LISTEN_FDNAMES has 2 names for 1 sockets left false\n"},
		{"no number", []string{"LISTEN_PID=self", "LISTEN_FDS=x"}, "0 take the sockets passed on: LISTEN_FDS=\"x\": want a number left false\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			socket := openIn(t, h, fivetuple.TCP, loopback)
			defer socket.Close()
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(append(os.Environ(), roleVar+"=inherited", noSleep), tt.env...)
			cmd.ExtraFiles = []*os.File{socket}
			p := h.Start(t, cmd)
			if err := p.Wait(); err != nil {
				t.Fatal(err)
			}
			if got, want := p.Output(), tt.want+none; got != want {
				t.Errorf("got\n%swant\n%s", got, want)
			}
		})
	}
}

func TestOpenHoldsThePortAlone(t *testing.T) {
	h := lab.NewHost(t, "h")
	for _, tt := range []struct {
		protocol fivetuple.Network
		at       string
		want     string // "" for success
	}{
		{fivetuple.TCP, "127.0.0.1:8123", ""},
		{fivetuple.TCP, "[::1]:8123", ""},
		{fivetuple.TCP, "0.0.0.0:8123", ""},
		{fivetuple.TCP, "[::]:8123", ""},
		{fivetuple.UDP, "127.0.0.1:8123", ""},
		{fivetuple.UDP, "0.0.0.0:8123", ""},
		{fivetuple.UDP, "[::]:8123", ""},
		{fivetuple.UDP4, "239.1.1.1:8123", ""},
		{fivetuple.TCP, "127.0.0.1:0", "bind tcp 127.0.0.1:0: want an address and a port"},
		{fivetuple.TCP6, "127.0.0.1:8123", "bind tcp6 127.0.0.1:8123: the address is IPv4"},
		{fivetuple.UDP4, "[::1]:8123", "bind udp4 [::1]:8123: the address is IPv6"},
		{fivetuple.Unix, "127.0.0.1:8123", "bind unix 127.0.0.1:8123: want TCP or UDP"},
		{fivetuple.TCP, "10.0.0.1:8123", "bind tcp 10.0.0.1:8123: bind: cannot assign requested address"},
	} {
		t.Run(fmt.Sprint(tt.protocol, " ", tt.at), func(t *testing.T) {
			at := netip.MustParseAddrPort(tt.at)
			h.Do(t, func() {
				f, err := Open(tt.protocol, at)
				if tt.want != "" {
					if err == nil || err.Error() != tt.want {
						t.Errorf("got %v, want %s", err, tt.want)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				second, err := Open(tt.protocol, at)
				if want := fmt.Sprintf("bind %s %s: bind: address already in use", tt.protocol, at); err == nil || err.Error() != want {
					t.Errorf("second: got %v, %v, want %s", second, err, want)
				}
				kind := unix.SOCK_STREAM
				if tt.protocol.IsDatagram() {
					kind = unix.SOCK_DGRAM
				}
				_, address := sockaddr(at)
				for options := range 4 {
					if hostileBind(kind, address, options) {
						t.Errorf("another socket with options %d was bound", options)
					}
				}
			})
		})
	}
}

func TestOpenOfOneFamily(t *testing.T) {
	h := lab.NewHost(t, "h")
	for _, tt := range []struct {
		second fivetuple.Network
		first  fivetuple.Network
	}{{fivetuple.TCP4, fivetuple.TCP6}, {fivetuple.UDP4, fivetuple.UDP6}} {
		six := openIn(t, h, tt.first, netip.AddrPortFrom(netip.IPv6Unspecified(), port))
		four := openIn(t, h, tt.second, netip.AddrPortFrom(netip.IPv4Unspecified(), port))
		six.Close()
		four.Close()
	}
}
