package ancillary

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestDescribe(t *testing.T) {
	dir := t.TempDir()
	regular := filepath.Join(dir, "regular")
	fifo := filepath.Join(dir, "fifo")
	if err := os.WriteFile(regular, []byte("12 bytes and"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	p := newProbe(t)
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	tcp := must(lc.Listen(t.Context(), "tcp", "127.0.0.1:0"))
	defer tcp.Close()
	client := must(net.Dial("tcp", tcp.Addr().String()))
	defer client.Close()
	udp := must(net.ListenPacket("udp", "[::1]:0"))
	defer udp.Close()
	unixListener := must(net.Listen("unix", filepath.Join(dir, "s")))
	defer unixListener.Close()
	unixClient := must(net.Dial("unix", filepath.Join(dir, "s")))
	defer unixClient.Close()
	a, _ := pair(t, "unixpacket")
	for _, tt := range []struct {
		file *os.File
		want string
	}{
		{must(os.Open(regular)), fmt.Sprintf("regular file %s (12 bytes)", regular)},
		{must(os.OpenFile(regular, unix.O_PATH, 0)), "path of regular file " + regular},
		{must(os.Open(dir)), "directory " + dir},
		{must(os.Open("/dev/null")), "character device /dev/null"},
		{p.r, "read end of a pipe"},
		{p.w, "write end of a pipe"},
		{must(os.OpenFile(fifo, os.O_RDWR, 0)), "both ends of the named pipe " + fifo},
		{fileOf(t, tcp), "TCP socket listening on " + tcp.Addr().String()},
		{fileOf(t, client), fmt.Sprintf("TCP socket connected from %s to %s", client.LocalAddr(), client.RemoteAddr())},
		{fileOf(t, udp), "UDP socket bound to " + udp.LocalAddr().String()},
		{fileOf(t, unixListener), "Unix stream socket listening on " + unixListener.Addr().String()},
		{fileOf(t, unixClient), "Unix stream socket connected to " + unixListener.Addr().String()},
		{fileOf(t, a), "Unix seqpacket socket connected to an unnamed socket"},
		{newFile(unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)), "TCP socket, not bound or connected"},
		{newFile(unix.Socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)), "Multipath TCP socket, not bound or connected"},
		{newFile(unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)), "Unix datagram socket, not bound or connected"},
		{newFile(unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, 0)), "netlink socket, not bound or connected"},
		{newFile(unix.Eventfd(0, 0)), "eventfd"},
		{newFile(unix.PidfdOpen(os.Getpid(), 0)), "pidfd"},
		{newFile(unix.MemfdCreate("mem\x1b[31m", 0)), `memory file mem\x1b[31m (0 bytes)`},
	} {
		if got := Describe(tt.file); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
		tt.file.Close()
	}
	if got := Describe(p.r); !strings.HasPrefix(got, "unknown file: ") {
		t.Errorf("closed: got %q, want unknown file", got)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func newFile(fd int, err error) *os.File { return os.NewFile(uintptr(must(fd, err)), "new") }

func fileOf(t *testing.T, c any) *os.File {
	t.Helper()
	return must(c.(interface{ File() (*os.File, error) }).File())
}
