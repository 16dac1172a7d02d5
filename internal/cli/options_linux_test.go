package cli

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple/secure"
	"github.com/fivetuple/fivetuple/sockopt"
)

// optionValues are what --opt sets in these tests. A switch that is not listed is
// turned over; any other option must be here, or in optionsLeftOut.
var optionValues = map[string]string{
	"sndbuf": "64KiB", "rcvbuf": "96KiB", "sndbufforce": "64KiB", "rcvbufforce": "96KiB", "buf-lock": "snd+rcv",
	"keepalive": "40s/20s/4", "keepalive-idle": "30s", "keepalive-interval": "10s", "keepalive-count": "3",
	"priority": "5", "linger": "5s", "rcvlowat": "7", "rcvtimeo": "2s", "sndtimeo": "1.5s", "bindtodevice": "lo", "bindtoifindex": "lo",
	"mark": "0xfeedbeef", "timestamping": "rx-software+software", "busy-poll": "50us", "busy-poll-budget": "16",
	"max-pacing-rate": "5GiB/s", "incoming-cpu": "0", "reserve-mem": "64KiB", "txrehash": "off", "peek-off": "3",
	"maxseg": "1000", "syncnt": "2", "linger2": "20s", "defer-accept": "5s", "window-clamp": "64KiB", "congestion": "reno",
	"user-timeout": "12345ms", "fastopen": "16", "notsent-lowat": "4294967295", "save-syn": "mac", "tx-delay": "5ms",
	"fastopen-key": "000102030405060708090a0b0c0d0e0f", "rto-max": "10s", "rto-min": "100ms", "delack-max": "100ms",
	"tos": "af41", "ttl": "12", "mtu-discover": "do", "minttl": "5", "multicast-if": "127.0.0.1", "multicast-ttl": "9",
	"ip-options": "01010101", "unicast-if": "lo", "local-port-range": "40000-41000", "segment": "1200", "udp-encap": "l2tpinudp",
	"tclass": "ef", "hops": "14", "multicast-hops": "7", "multicast-if6": "lo", "mtu-discover6": "probe", "mtu6": "1280",
	"minhops": "6", "addr-preferences": "temporary", "unicast-if6": "lo",
}

// optionsLeftOut are set on no socket here.
var optionsLeftOut = map[string]string{
	"lock-filter":      "cannot be taken back, and tells nothing",
	"nofcs":            "frames",
	"wifi-status":      "frames",
	"fastopen-connect": "no connection is made before the first byte: see TestFastOpenConnect of package dial",
	"tcp-timestamp":    "of a socket under repair",
	"ulp":              "of a connected socket",
	"gro":              "refused: it would join datagrams into one",
	"udp-encap":        "the datagrams are another protocol's",
	"udp-cork":         "nothing would be sent",
	"segment":          "cuts what is sent",
	"join":             "see the tests of multicast", "leave": "the same", "join-source": "the same", "leave-source": "the same",
	"block-source": "the same", "unblock-source": "the same",
	"router-alert": "raw sockets", "router-alert6": "raw sockets", "checksum6": "raw sockets", "hdrincl": "raw sockets", "hdrincl6": "raw sockets",
	"v6only":      "before bind, where the endpoint says so",
	"transparent": "for addresses of others", "transparent6": "the same",
	"thin-dupack": "without effect since Linux 4.11",
	"cnx-advice":  "breaks the route",
	"ip-options":  "of a listener they cost the connection",
	"repair":      "not for people",
}

// optionSocket is a kind of socket that ft makes.
type optionSocket struct {
	name                   string
	domain, kind, protocol int
	listen                 []string // of ft listen, without options; nil if it cannot
	connect                []string // of ft connect, which is given the address of a server
	accepts                bool     // and so has connections
}

var optionSockets = []optionSocket{
	{"tcp", unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP, []string{"127.0.0.1:0", "echo", "--engine", "goroutines"}, []string{"tcp4://ADDRESS"}, true},
	{"tcp, event loops", unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP, []string{"127.0.0.1:0", "echo", "--engine", "poll"}, nil, true},
	{"tcp, workers", unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP, []string{"127.0.0.1:0", "echo", "--workers", "1"}, nil, true},
	{"tcp, stdio", unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP, []string{"127.0.0.1:0", "--keep"}, nil, true},
	{"tcp over IPv6", unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_TCP, []string{"[::1]:0", "echo"}, []string{"tcp6://ADDRESS"}, true},
	{"tls", unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP, []string{"tls://127.0.0.1:0", "echo", "--tls-self-signed"}, []string{"tls://ADDRESS", "--insecure"}, true},
	{"unix", unix.AF_UNIX, unix.SOCK_STREAM, 0, []string{"unix://DIR/s", "echo", "--engine", "goroutines"}, []string{"unix://ADDRESS"}, true},
	{"unix, event loops", unix.AF_UNIX, unix.SOCK_STREAM, 0, []string{"unix://DIR/s", "echo", "--engine", "poll"}, nil, true},
	{"seqpacket", unix.AF_UNIX, unix.SOCK_SEQPACKET, 0, []string{"seqpacket://DIR/s", "echo"}, []string{"seqpacket://ADDRESS"}, true},
	{"unixgram", unix.AF_UNIX, unix.SOCK_DGRAM, 0, []string{"unixgram://DIR/s", "echo"}, []string{"unixgram://ADDRESS"}, false},
	{"udp", unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDP, []string{"udp://127.0.0.1:0", "echo"}, []string{"udp4://ADDRESS"}, false},
	{"udp, stdio", unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDP, []string{"udp://127.0.0.1:0"}, []string{"udp4://ADDRESS", "--unconnected"}, false},
	{"udp over IPv6", unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_UDP, []string{"udp://[::1]:0", "echo"}, []string{"udp6://ADDRESS"}, false},
	{"multicast", unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDP, []string{"udp://239.1.1.1%lo:7490", "echo"}, []string{"udp://239.1.1.1:7491"}, false},
	{"multicast over IPv6", unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_UDP, []string{"udp://[ff15::1%lo]:7492", "echo"}, []string{"udp://[ff15::1]:7493"}, false},
	{"vsock", unix.AF_VSOCK, unix.SOCK_STREAM, 0, []string{"vsock://*:4294967295", "echo"}, nil, false}, // the kernel of a test may not connect
}

// rowC6 are the options that every socket they belong to takes, whoever asks.
var rowC6 = []string{
	"keepalive", "keepalive-idle", "keepalive-interval", "keepalive-count", "linger", "nodelay", "sndbuf", "rcvbuf", "sndtimeo", "rcvtimeo",
	"tos", "priority", "quickack", "defer-accept", "bindtodevice", "reuseaddr", "reuseport", "passcred", "user-timeout", "ttl", "congestion",
}

// optionsOfListeners are those that a connection does not have from its listener,
// and that mean nothing to it.
var optionsOfListeners = map[string]string{
	"defer-accept": "asks the listener to wait for the first byte",
	"fastopen":     "is the listener's queue",
	"fastopen-key": "makes the listener's cookies",
}

// optionsOfConnections are those that listen(2) forgets: they are set on each connection.
var optionsOfConnections = map[string]string{
	"quickack": "a listener acknowledges nothing",
}

// optionsThatMove are those that the kernel changes while a socket is used.
var optionsThatMove = map[string]string{
	"incoming-cpu": "is that of the last packet",
	"maxseg":       "is less by the TCP options, once there is a connection",
	"mtu6":         "is set for packets sent, and read of the path",
	"peek-off":     "goes back by what is read",
	"window-clamp": "follows what the packets cost that come",
}

// optionRound are options that go together on one socket, and what is then read back.
type optionRound struct {
	set  sockopt.Settings
	want map[string]string
}

// rounds are all the options that the kernel lets this user set on a kind of socket,
// in as few rounds as do. They are tried on sockets of the test's own.
func (s optionSocket) rounds(t *testing.T) (rounds []optionRound) {
	t.Helper()
	left := s.settings(t)
	slices.SortStableFunc(left, func(a, b sockopt.Setting) int { // tos sets a priority, too
		return cmp.Compare(slices.Index([]string{"priority"}, a.Option().Name), slices.Index([]string{"priority"}, b.Option().Name))
	})
	for len(left) > 0 {
		var round optionRound
		var later sockopt.Settings
		fd := s.open(t)
		for _, setting := range left {
			if _, err := sockopt.Apply(fd, setting); err == nil {
				round.set = append(round.set, setting)
			} else {
				later = append(later, setting)
			}
		}
		fd = s.open(t)
		if _, err := sockopt.Apply(fd, round.set...); err != nil || len(round.set) == 0 {
			t.Fatalf("together: %v", err)
		}
		round.want = optionsOf(t, fd, round.set)
		rounds, left = append(rounds, round), later
	}
	return rounds
}

// settings are those that the kernel takes one at a time.
func (s optionSocket) settings(t *testing.T) (taken sockopt.Settings) {
	t.Helper()
	for _, o := range sockopt.All() {
		if o.Access == sockopt.ReadOnly || optionsLeftOut[o.Name] != "" {
			continue
		}
		fd := s.open(t)
		kind, err := sockopt.Identify(fd)
		if err != nil {
			t.Fatal(err)
		}
		if !o.Sockets.Admits(kind) {
			continue
		}
		setting, err := sockopt.Parse(o.Name + "=" + otherValue(t, fd, o))
		if err != nil {
			t.Fatal(err)
		}
		switch _, err = sockopt.Apply(fd, setting); {
		case err == nil:
			taken = append(taken, setting)
		case slices.Contains(rowC6, o.Name) && kind != 0:
			t.Errorf("the kernel refuses %s: %v", o.Name, err)
		case !mayBeRefused(err):
			t.Errorf("the kernel refuses %s: %v: give it another value, or leave it out with the reason", o.Name, err)
		}
	}
	return taken
}

// mayBeRefused says whether the kernel may refuse an option to this user, or not have it.
func mayBeRefused(err error) bool {
	return slices.ContainsFunc([]error{unix.EPERM, unix.EACCES, unix.ENOPROTOOPT, unix.EOPNOTSUPP, sockopt.ErrSocket}, func(target error) bool {
		return errors.Is(err, target)
	})
}

// otherValue is the value to set: not the one that a new socket has.
func otherValue(t *testing.T, fd int, o sockopt.Option) string {
	t.Helper()
	if kind, err := sockopt.Identify(fd); err == nil && o.Kind == sockopt.KeepAlive && kind&sockopt.TCP == 0 {
		return "on" // the times are of TCP
	}
	if v, ok := optionValues[o.Name]; ok {
		return v
	}
	if o.Kind != sockopt.Bool {
		t.Errorf("optionValues has none for %s: give one, or leave it out with the reason", o.Name)
		return ""
	}
	if s, err := sockopt.Get(fd, o.Name); err == nil && s.Value() == "on" {
		return "off"
	}
	return "on"
}

func (s optionSocket) open(t *testing.T) int {
	t.Helper()
	fd, err := unix.Socket(s.domain, s.kind|unix.SOCK_CLOEXEC, s.protocol)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// optionsOf reads those that can be read.
func optionsOf(t *testing.T, fd int, settings sockopt.Settings) map[string]string {
	t.Helper()
	values := make(map[string]string)
	for _, s := range settings {
		if s.Option().Access == sockopt.WriteOnly {
			continue
		}
		got, err := sockopt.Get(fd, s.Option().Name)
		if err != nil {
			values[s.Option().Name] = err.Error()
			continue
		}
		values[s.Option().Name] = got.Value()
	}
	return values
}

func TestOptionsAreSetOnEverySocketOfListen(t *testing.T) {
	for _, s := range optionSockets {
		t.Run(s.name, func(t *testing.T) {
			for i, round := range s.rounds(t) {
				t.Run(fmt.Sprint("round ", i+1), func(t *testing.T) { s.listenWith(t, round) })
			}
		})
	}
}

func TestOptionsAreSetOnEverySocketOfConnect(t *testing.T) {
	for _, s := range optionSockets {
		if s.connect == nil {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			for i, round := range s.rounds(t) {
				t.Run(fmt.Sprint("round ", i+1), func(t *testing.T) { s.connectWith(t, round) })
			}
		})
	}
}

func (s optionSocket) listenWith(t *testing.T, round optionRound) {
	t.Helper()
	dir := t.TempDir()
	args := []string{"--opt", round.set.String()}
	for _, a := range s.listen {
		args = append(args, strings.ReplaceAll(a, "DIR", dir))
	}
	l := startListening(t, args...)
	sockets := socketsOfKind(t, l.Process.Pid, s)
	if len(sockets) == 0 {
		t.Fatal("its socket was not found")
	}
	for _, fd := range sockets {
		wantOptions(t, "the socket that listens", fd, round.want, optionsOfConnections)
	}
	if s.accepts {
		s.call(t, l)
		wantOptions(t, "the connection", acceptedSocket(t, l.Process.Pid, s), round.want, optionsOfListeners)
	}
}

func (s optionSocket) connectWith(t *testing.T, round optionRound) {
	t.Helper()
	address := s.serve(t)
	args := []string{"connect", "-v", "--opt", round.set.String()}
	for _, a := range s.connect {
		args = append(args, strings.ReplaceAll(a, "ADDRESS", address))
	}
	c := exec.Command("ft", args...)
	stdin, err := c.StdinPipe() // has no end
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	said := &saidLines{changed: make(chan struct{}, 1)}
	c.Stderr = said
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Wait()
	defer c.Process.Kill()
	said.await(t, func(line string) bool { return !strings.HasPrefix(line, "option ") })
	sockets := socketsOfKind(t, c.Process.Pid, s)
	if len(sockets) != 1 {
		t.Fatalf("%d sockets, want 1:\n%.1000s", len(sockets), said.text())
	}
	wantOptions(t, "the socket", sockets[0], round.want, nil)
}

func wantOptions(t *testing.T, what string, fd int, want, but map[string]string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if but[name] != "" || optionsThatMove[name] != "" {
			continue
		}
		got, err := sockopt.Get(fd, name)
		if err != nil || got.Value() != want[name] {
			t.Errorf("%s has %s=%s, want %s (%v)", what, name, got.Value(), want[name], err)
		}
	}
}

// socketsOfKind takes copies of the sockets of one kind that a process and its
// children have.
func socketsOfKind(t *testing.T, pid int, s optionSocket) (fds []int) {
	t.Helper()
	for _, pid := range append(childrenOf(t, pid), pid) {
		eachSocket(t, pid, func(fd int) {
			if s.is(fd) {
				c, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
				if err != nil {
					t.Fatal(err)
				}
				fds = append(fds, c)
				t.Cleanup(func() { unix.Close(c) })
			}
		})
	}
	return fds
}

// eachSocket shows a copy of each socket that a process has, which is closed then.
// One that has ended has none.
func eachSocket(t *testing.T, pid int, show func(fd int)) {
	t.Helper()
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(process)
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		to, err := os.Readlink(link)
		if err != nil || !strings.HasPrefix(to, "socket:") {
			continue
		}
		n, err := strconv.Atoi(filepath.Base(link))
		if err != nil {
			t.Fatal(err)
		}
		if fd, err := unix.PidfdGetfd(process, n, 0); err == nil {
			show(fd)
			unix.Close(fd)
		} // or it was closed meanwhile
	}
}

func childrenOf(t *testing.T, pid int) (children []int) {
	t.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range lists {
		text, err := os.ReadFile(list)
		if err != nil {
			continue // a thread that has ended
		}
		for _, child := range strings.Fields(string(text)) {
			n, err := strconv.Atoi(child)
			if err != nil {
				t.Fatal(err)
			}
			children = append(children, n)
		}
	}
	return children
}

func (s optionSocket) is(fd int) bool {
	domain, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	kind, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	protocol, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	return domain == s.domain && kind == s.kind && protocol == s.protocol
}

func listens(fd int) bool {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	return err == nil && n == 1
}

// acceptedSocket is the connection that a server has accepted.
func acceptedSocket(t *testing.T, pid int, s optionSocket) int {
	t.Helper()
	for _, fd := range socketsOfKind(t, pid, s) {
		if _, err := unix.Getpeername(fd); err == nil && !listens(fd) {
			return fd
		}
	}
	t.Fatal("no connection was accepted")
	return -1
}

// call connects to what listens, and returns when it has been served: options are
// set before. The connection stays until the end of the test.
func (s optionSocket) call(t *testing.T, l *listening) {
	t.Helper()
	network := map[int]string{unix.AF_INET: "tcp", unix.AF_INET6: "tcp", unix.AF_UNIX: "unix"}[s.domain]
	if s.kind == unix.SOCK_SEQPACKET {
		network = "unixpacket"
	}
	c, err := net.Dial(network, l.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if slices.Contains(s.listen, "--tls-self-signed") {
		c = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
	}
	if _, err := io.WriteString(c, "0123456789"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 10)); err != nil && err != io.EOF { // stdio has nothing to say
		t.Fatal(err)
	}
}

// serve is a server to connect to, which keeps its connections until the end of the
// test, and its address.
func (s optionSocket) serve(t *testing.T) (address string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	switch {
	case s.kind == unix.SOCK_DGRAM:
		network, address := "udp", "127.0.0.1:0"
		switch s.domain {
		case unix.AF_INET6:
			address = "[::1]:0"
		case unix.AF_UNIX:
			network, address = "unixgram", path
		}
		c, err := lc.ListenPacket(t.Context(), network, address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c.LocalAddr().String()
	}
	network, at := "tcp", "127.0.0.1:0"
	switch {
	case s.domain == unix.AF_INET6:
		at = "[::1]:0"
	case s.kind == unix.SOCK_SEQPACKET:
		network, at = "unixpacket", path
	case s.domain == unix.AF_UNIX:
		network, at = "unix", path
	}
	ln, err := lc.Listen(t.Context(), network, at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	config, err := secure.Server{SelfSigned: true}.Config()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			context.AfterFunc(t.Context(), func() { c.Close() })
			if s.name == "tls" {
				go secure.Accept(context.Background(), c, config)
			}
		}
	}()
	return ln.Addr().String()
}

// saidLines is the standard error of a process.
type saidLines struct {
	mu      sync.Mutex
	said    bytes.Buffer
	changed chan struct{}
}

func (s *saidLines) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case s.changed <- struct{}{}:
	default:
	}
	return s.said.Write(b)
}

func (s *saidLines) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.said.String()
}

// await waits for a line.
func (s *saidLines) await(t *testing.T, is func(line string) bool) {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		for line := range strings.Lines(s.text()) {
			if strings.HasSuffix(line, "\n") && is(line) {
				return
			}
		}
		select {
		case <-s.changed:
		case <-timeout:
			t.Fatalf("it only said\n%.1000s", s.text())
		}
	}
}

// What belongs to other sockets is refused before anything is opened, by the names
// of the option and of the socket, as an error of the command line.
func TestOptionsOfOtherSocketsAreRefused(t *testing.T) {
	defer signal.Reset(syscall.SIGPIPE) // which the commands ignore
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, s := range optionSockets {
		fd := s.open(t)
		kind, err := sockopt.Identify(fd)
		if err != nil {
			t.Fatal(err)
		}
		for command, args := range map[string][]string{"listen": s.listen, "connect": s.connect} {
			if kind == 0 || args == nil || slices.Contains(args, "--workers") { // the kernel judges a vsock; workers are processes
				continue
			}
			t.Run(command+" "+s.name, func(t *testing.T) {
				args := slices.Clone(args)
				for i := range args {
					args[i] = strings.NewReplacer("DIR", t.TempDir(), "ADDRESS", s.nobody()).Replace(args[i])
				}
				for _, o := range sockopt.All() {
					if o.Access == sockopt.ReadOnly || o.Sockets.Admits(kind) {
						continue
					}
					var stderr bytes.Buffer
					setting := o.Name + "=" + foreignValue(o)
					code := Main(append([]string{command, "--opt", setting}, args...), null, null, &stderr)
					said := stderr.String()
					if code != exitUsage || !strings.Contains(said, o.Constant) || !strings.Contains(said, sockopt.ErrSocket.Error()) || !strings.Contains(said, "this one is "+kind.String()) {
						t.Errorf("--opt %s: exit code %d, %q; want %d, %s, and that this is a socket of %s", setting, code, said, exitUsage, o.Constant, kind)
					}
				}
			})
		}
	}
}

// nobody is an address of the socket's network at which nobody is.
func (s optionSocket) nobody() string {
	switch s.domain {
	case unix.AF_UNIX:
		return "/nonexistent"
	case unix.AF_INET6:
		return "[::1]:7495"
	}
	return "127.0.0.1:7495"
}

// foreignValue is some value that parses.
func foreignValue(o sockopt.Option) string {
	if v, ok := optionValues[o.Name]; ok {
		return v
	}
	switch o.Kind {
	case sockopt.Bool:
		return "on"
	case sockopt.Group:
		if strings.HasSuffix(o.Name, "source") {
			return "127.0.0.1@239.1.1.1"
		}
		return "239.1.1.1"
	case sockopt.String:
		return "text"
	}
	return "1"
}
