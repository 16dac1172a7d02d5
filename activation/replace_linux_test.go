package activation

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/lab"
)

// runs is runsIn both ways.
func runs(t *testing.T, script, want string) {
	t.Helper()
	inBothWays(t, func(t *testing.T, way runOption) { runsIn(t, script, want, way) })
}

// runsIn executes a script on TCP and UDP 127.0.0.1:8123 and compares what is written
// to standard error, by the supervisor, and then what the script prints.
func runsIn(t *testing.T, script, want string, options ...runOption) {
	t.Helper()
	h := lab.NewHost(t, "h")
	r := start(t, h, []*os.File{openIn(t, h, fivetuple.TCP, loopback), openIn(t, h, fivetuple.UDP, loopback)}, python(t, `
kept = []
def keep(s): kept.append(s); return s
def opened(at, family=socket.AF_INET, kind=socket.SOCK_STREAM):
    s = keep(socket.socket(family, kind)); s.bind(at); return s
def ours(s): # the socket that was passed on is the same: listening, or receiving
    return s.type == socket.SOCK_STREAM and s.getsockopt(1, 30) == 1
def fails(at, family=socket.AF_INET, s=None):
    s = s or keep(socket.socket(family))
    try: s.bind(at); return "no"
    except OSError as e: return errno.errorcode[e.errno]
`+script), options...)
	if err := r.finish(t); err != nil {
		t.Error(err)
	}
	got := strings.ReplaceAll(r.Errors()+r.Output(), fmt.Sprintf("process %d", r.Command(t)), "process N")
	if want = strings.TrimPrefix(want, "\n"); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestEachBindToThePortGivesTheSocket(t *testing.T) {
	runs(t, `
for at in ("127.0.0.1", 8123), ("0.0.0.0", 8123), ("0.0.0.0", 8123):
    s = opened(at); s.listen(5); print(ours(s), s.getsockname()); s.close()
for at in ("::", 8123), ("::1", 8123), ("::ffff:127.0.0.1", 8123):
    s = opened(at, socket.AF_INET6); s.listen(5); print(ours(s), socket.socket(fileno=os.dup(s.fileno())).getsockname()); s.close()
for kind in 0, socket.SOCK_NONBLOCK:
    s = opened(("127.0.0.1", 8123), kind=socket.SOCK_STREAM|kind)
    fd = s.fileno(); other = os.dup(3)
    print(os.get_blocking(fd), os.get_inheritable(fd))
    os.set_inheritable(fd, True); s = socket.socket(); os.set_inheritable(s.fileno(), True)
    s.bind(("127.0.0.1", 8123)); print(os.get_blocking(s.fileno()), os.get_inheritable(s.fileno()))
`, `
process N asked for tcp 0.0.0.0:8123 and was given 127.0.0.1:8123, the leased address
process N asked for tcp [::]:8123 and was given 127.0.0.1:8123, the leased address
process N asked for tcp [::1]:8123 and was given 127.0.0.1:8123, the leased address
True ('127.0.0.1', 8123)
True ('127.0.0.1', 8123)
True ('127.0.0.1', 8123)
True ('127.0.0.1', 8123)
True ('127.0.0.1', 8123)
True ('127.0.0.1', 8123)
True False
True True
False False
True True
`)
}

func TestOtherBindsGoOnUnchanged(t *testing.T) {
	runs(t, `
import threading
print(opened(("127.0.0.1", 9000)).getsockname(), opened(("127.0.0.1", 9000), kind=socket.SOCK_DGRAM).getsockname())
print(opened(("127.0.0.1", 0)).getsockname()[1] not in (0, 8123))
print(ours(opened(("127.0.0.2", 8123))), fails(("127.0.0.2", 8123)))
print(fails(("10.0.0.1", 8123)), fails(("127.0.0.1", 9000)))
print(fails("\0name", socket.AF_UNIX), fails("\0name", socket.AF_UNIX), fails("/", socket.AF_UNIX))
s = opened(("127.0.0.1", 9001)); print(fails(("127.0.0.1", 8123), s=s))
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def fresh(*kind): return keep(socket.socket(*kind)).fileno()
def raw(fd, at, n): return libc.bind(fd, at, n) and errno.errorcode[ctypes.get_errno()]
at = struct.pack("!HH4s8x", 0x200, 8123, socket.inet_aton("127.0.0.1"))
print(raw(-1, at, 16), raw(0, at, 16), raw(fresh(), 1, 16), raw(fresh(), at, 8), raw(fresh(socket.AF_INET6), at, 16), raw(fresh(), at * 9, 129))
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136); s.bind(("127.0.0.1", 8123)); print("UDP-Lite has ports of its own:", s.getsockopt(1, 38))
s = socket.socket(); s.setsockopt(1, 2, 1); s.bind(("127.0.0.1", 8123)); print("bound", ours(s), s.getsockopt(1, 15))
`, `
('127.0.0.1', 9000) ('127.0.0.1', 9000)
True
False EADDRINUSE
EADDRNOTAVAIL EADDRINUSE
no EADDRINUSE EADDRINUSE
EINVAL
EBADF ENOTSOCK EFAULT EINVAL EINVAL EINVAL
UDP-Lite has ports of its own: 136
bound True 0
`)
}

func TestPortOfAnotherNetworkIsNotTheLeasedOne(t *testing.T) {
	runsIn(t, `
import ctypes
assert ctypes.CDLL(None).unshare(0x40000000) == 0 # CLONE_NEWNET
print(ours(opened(("0.0.0.0", 8123))))
`, "False\n")
}

func TestRawSocketHasNoPort(t *testing.T) {
	runsIn(t, `
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 200); s.bind(("127.0.0.1", 8123)); print(s.getsockopt(1, 38))
`, "200\n")
}

func TestOptionsOfTheProgramsSocketAreKept(t *testing.T) {
	runs(t, `
for protocol in 0, 262: # 262: IPPROTO_MPTCP, as Go's listeners are
    s = socket.socket(proto=protocol)
    s.setsockopt(1, socket.SO_KEEPALIVE, 1); s.setsockopt(6, socket.TCP_KEEPIDLE, 77)
    s.setsockopt(1, socket.SO_RCVBUF, 40000 + protocol); s.setsockopt(0, socket.IP_TOS, 0x10); s.setsockopt(1, socket.SO_PRIORITY, 3)
    s.setsockopt(1, socket.SO_REUSEADDR, 1); s.setsockopt(1, socket.SO_REUSEPORT, 1)
    s.bind(("127.0.0.1", 8123)); s.listen()
    c = socket.create_connection(("127.0.0.1", 8123)); a, _ = s.accept()
    print(a.getsockopt(1, socket.SO_KEEPALIVE), a.getsockopt(6, socket.TCP_KEEPIDLE), s.getsockopt(1, socket.SO_RCVBUF), a.getsockopt(0, socket.IP_TOS))
    print(s.getsockopt(1, socket.SO_PRIORITY), s.getsockopt(1, socket.SO_REUSEPORT))
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.setsockopt(1, socket.SO_BROADCAST, 1); s.setsockopt(1, socket.SO_REUSEADDR, 1)
s.bind(("127.0.0.1", 8123)); print(s.getsockopt(1, socket.SO_BROADCAST), s.getsockopt(1, socket.SO_REUSEADDR))
`, `
1 77 80000 16
3 0
1 77 80524 16
3 0
1 0
`)
}

// A bind that signals break off is made again, upon the socket that was put there.
func TestSignalsDoNotDisturbABind(t *testing.T) {
	runs(t, `
s = opened(("127.0.0.1", 8123)); print("again:", fails(("127.0.0.1", 8123), s=s)) # as after a signal, before Linux 5.19
import signal
signal.signal(signal.SIGALRM, lambda *_: None); signal.siginterrupt(signal.SIGALRM, False)
signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
good = 0
for _ in range(500):
    s = opened(("127.0.0.1", 8123)); good += ours(s); s.close()
signal.setitimer(signal.ITIMER_REAL, 0)
print(good)
`, "again: no\n500\n")
}

func TestThreadWithDescriptorsOfItsOwn(t *testing.T) {
	inBothWays(t, func(t *testing.T, way runOption) {
		r := startOne(t, self("own-table"), way)
		if err := r.finish(t); err != nil {
			t.Error(err)
		}
		if got, want := r.Output(), "1 <nil>\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

// What the program would misunderstand, or open to more than it meant, it does not get.
func TestSocketThatDoesNotFitIsRefused(t *testing.T) {
	const family = "whose addresses it would not understand: lease an address of its family\n"
	const wider = "where others could reach it: lease the address itself\n"
	for _, tt := range []struct {
		protocol                  fivetuple.Network
		held, family, asked, want string
	}{
		{fivetuple.UDP, "0.0.0.0:8123", "socket.AF_INET6", "::", "udp [::]:8123: process N: it binds IPv6, but the leased socket 0.0.0.0:8123 is IPv4, " + family},
		{fivetuple.UDP, "[::]:8123", "socket.AF_INET", "", "udp 0.0.0.0:8123: process N: it binds IPv4, but the leased socket [::]:8123 is IPv6, " + family},
		{fivetuple.TCP, "[::]:8123", "socket.AF_INET", "", "tcp 0.0.0.0:8123: process N: it binds IPv4, but the leased socket [::]:8123 is IPv6, " + family},
		{fivetuple.TCP, "[::]:8123", "socket.AF_INET", "127.0.0.1", "process N asked for tcp 127.0.0.1:8123, and what is leased is [::]:8123, " + wider},
		{fivetuple.TCP, "0.0.0.0:8123", "socket.AF_INET", "127.0.0.1", "process N asked for tcp 127.0.0.1:8123, and what is leased is 0.0.0.0:8123, " + wider},
	} {
		h := lab.NewHost(t, "h")
		r := start(t, h, []*os.File{openIn(t, h, tt.protocol, netip.MustParseAddrPort(tt.held))}, python(t, fmt.Sprintf(`
try: socket.socket(%s, socket.%s).bind((%q, 8123)); print("bound")
except OSError as e: print(errno.errorcode[e.errno])`,
			tt.family, map[fivetuple.Network]string{fivetuple.TCP: "SOCK_STREAM", fivetuple.UDP: "SOCK_DGRAM"}[tt.protocol], tt.asked)))
		if err := r.finish(t); err != nil {
			t.Error(err)
		}
		got := strings.ReplaceAll(r.Output()+r.Errors(), fmt.Sprintf("process %d", r.Command(t)), "process N")
		if want := "EADDRINUSE\n" + tt.want; got != want {
			t.Errorf("got\n%swant\n%s", got, want)
		}
	}
}

func TestSuits(t *testing.T) {
	for _, tt := range []struct {
		held, asked string
		want        int
	}{
		{"127.0.0.1", "127.0.0.1", 4},
		{"::1", "::1", 4},
		{"0.0.0.0", "127.0.0.1", 0}, // others would reach it
		{"::", "127.0.0.1", 0},
		{"::", "0.0.0.0", 2},
		{"::", "::1", 0},
		{"127.0.0.1", "0.0.0.0", 3},
		{"::1", "::", 3},
		{"10.0.0.1", "0.0.0.0", 3},
		{"127.0.0.1", "::", 2},
		{"::1", "0.0.0.0", 2},
		{"127.0.0.1", "::1", 1},
		{"::1", "127.0.0.1", 1},
		{"0.0.0.0", "::1", 0},
		{"0.0.0.0", "::", 2},
		{"127.0.0.1", "127.0.0.2", 0},
		{"127.0.0.1", "10.0.0.1", 0},
		{"10.0.0.1", "127.0.0.1", 0},
		{"fe80::1%1", "fe80::1%2", 0},
		{"fe80::1%1", "fe80::1%1", 4},
	} {
		of := func(kind int, addr string, port uint16) endpoint {
			return endpoint{kind, netip.AddrPortFrom(netip.MustParseAddr(addr), port), false}
		}
		held := of(unix.SOCK_STREAM, tt.held, port)
		if got := held.suits(of(unix.SOCK_STREAM, tt.asked, port)); got != tt.want {
			t.Errorf("held %s, asked %s: got %d, want %d", tt.held, tt.asked, got, tt.want)
		}
		if held.suits(of(unix.SOCK_DGRAM, tt.asked, port)) != 0 || held.suits(of(unix.SOCK_STREAM, tt.asked, port+1)) != 0 {
			t.Errorf("held %s, asked %s: another protocol or port suits", tt.held, tt.asked)
		}
	}
	held := endpoint{unix.SOCK_STREAM, netip.MustParseAddrPort("[::]:8123"), true}
	if got := held.suits(endpoint{unix.SOCK_STREAM, loopback, false}); got != 0 {
		t.Errorf("IPv6 only: got %d, want 0", got)
	}
}
