package inspect

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/owner"
	"github.com/fivetuple/fivetuple/sockdiag"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/table"
)

// plainSocket opens a socket that nothing has been set on.
func plainSocket(t *testing.T, domain, kind int) int {
	t.Helper()
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// plainPair is two ends of a TCP connection that nothing has been set on, and their listener.
func plainPair(t *testing.T) (client, server, listener int) {
	t.Helper()
	listener = plainSocket(t, unix.AF_INET, unix.SOCK_STREAM)
	must(t, unix.Bind(listener, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	must(t, unix.Listen(listener, 8))
	at, err := unix.Getsockname(listener)
	must(t, err)
	client = plainSocket(t, unix.AF_INET, unix.SOCK_STREAM)
	must(t, unix.Connect(client, at))
	server, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC)
	must(t, err)
	t.Cleanup(func() { unix.Close(server) })
	return client, server, listener
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ownRow is the row of a socket of this process.
func ownRow(t *testing.T, fd int) table.Row {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Fstat(fd, &st))
	held, err := table.List(t.Context(), sockdiag.Query{Protocols: []fivetuple.Network{fivetuple.TCP, fivetuple.UDP, fivetuple.Unix}})
	must(t, err)
	i := slices.IndexFunc(held.Rows, func(r table.Row) bool { return r.Inode == uint32(st.Ino) })
	if i < 0 {
		t.Fatalf("no socket of inode %d in the table", st.Ino)
	}
	return held.Rows[i]
}

func value(t *testing.T, s *Socket, name string) string {
	t.Helper()
	i := slices.IndexFunc(s.Options, func(o Option) bool { return o.Option().Name == name })
	if i < 0 {
		t.Fatalf("no option %s in %v; %v", name, s.Options, s.Missing)
	}
	return s.Options[i].Value()
}

func changed(s *Socket) []string {
	var names []string
	for _, o := range s.Options {
		if o.Changed {
			names = append(names, o.String()+" was "+o.Default)
		}
	}
	return names
}

func TestReadsEveryOptionAndTheQueues(t *testing.T) {
	client, server, _ := plainPair(t)
	_, err := unix.Write(client, []byte("hello"))
	must(t, err)
	s, err := Read(t.Context(), ownRow(t, server))
	must(t, err)
	must(t, s.Missing)
	want, err := sockopt.GetAll(server)
	must(t, err)
	if len(s.Options) != len(want) || len(want) < 60 {
		t.Errorf("got %d options, want %d", len(s.Options), len(want))
	}
	if s.Queues == nil || *s.Queues != (Queues{Recv: 5}) || s.RecvQueue != 5 {
		t.Errorf("got queues %+v and %d, want 5 bytes to be read", s.Queues, s.RecvQueue)
	}
	if s.Info == nil || s.Info.BytesReceived != 5 || s.Memory.RecvBuffer == 0 || s.Congestion == "" {
		t.Errorf("got %+v, want every detail of the table", s.Socket)
	}
}

// The kernel counts a FIN as a byte in its queue, and a SYN as one that was acknowledged.
func TestTellsDataFromSYNAndFIN(t *testing.T) {
	client, server, _ := plainPair(t)
	_, err := unix.Write(client, []byte("hello"))
	must(t, err)
	must(t, unix.Shutdown(client, unix.SHUT_WR))
	for _, tt := range []struct {
		fd         int
		name, want string
	}{
		{server, "receive", "5 B to be read, and then the end; "},
		{client, "acknowledged", "5 B by the peer"},
	} {
		s, err := Read(t.Context(), ownRow(t, tt.fd))
		must(t, err)
		if got := text(Explain(s.Socket)); !strings.Contains(got, tt.name+": "+tt.want) {
			t.Errorf("want %s: %s in\n%s", tt.name, tt.want, got)
		}
	}
}

func TestMarksTheOptionsThatSomebodySet(t *testing.T) {
	client, server, listener := plainPair(t)
	datagram := plainSocket(t, unix.AF_INET, unix.SOCK_DGRAM)
	must(t, unix.Bind(datagram, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	var pair [2]int
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { unix.Close(pair[0]); unix.Close(pair[1]) })
	for name, fd := range map[string]int{"client": client, "server": server, "listener": listener, "udp": datagram, "unix": pair[0]} {
		s, err := Read(t.Context(), ownRow(t, fd))
		must(t, err)
		if got := changed(s); len(got) > 0 {
			t.Errorf("%s, of which nothing was set: got %q", name, got)
		}
	}
	set(t, client, "nodelay")
	set(t, client, "ttl=7")
	set(t, client, "rcvbuf=32KiB")
	s, err := Read(t.Context(), ownRow(t, client))
	must(t, err)
	want := []string{"buf-lock=rcv was none", "rcvbuf=64KiB was 128KiB", "nodelay=on was off", "ttl=7 was 64"}
	if got := changed(s); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func set(t *testing.T, fd int, text string) {
	t.Helper()
	setting, err := sockopt.Parse(text)
	must(t, err)
	_, err = sockopt.Apply(fd, setting)
	must(t, err)
}

func TestSetsAnOptionOfAnotherProcess(t *testing.T) {
	p := startHolder(t)
	setting, err := sockopt.Parse("keepalive=30s/10s/3")
	must(t, err)
	changes, err := Set(p.row, setting)
	must(t, err)
	var got []string
	for _, c := range changes {
		got = append(got, fmt.Sprintf("%s %s->%s", c.Option.Name, c.Before, c.Got))
	}
	want := []string{"keepalive off->on", "keepalive-idle 2h->30s", "keepalive-interval 1m15s->10s", "keepalive-count 9->3"}
	if !slices.Equal(got, want) {
		t.Errorf("changes: got %q, want %q", got, want)
	}
	if got := p.ask(t, "keepalive"); got != "keepalive=30s/10s/3" {
		t.Errorf("the owner has %s", got)
	}
	s, err := Read(t.Context(), p.row)
	must(t, err)
	if got := value(t, s, "keepalive-idle"); got != "30s" {
		t.Errorf("read back: got %s, want 30s", got)
	}
}

func TestStopsAtTheFirstOptionThatIsRefused(t *testing.T) {
	client, _, _ := plainPair(t)
	var settings sockopt.Settings
	must(t, settings.Set("ttl=9,congestion=nosuch,tos=af41"))
	changes, err := Set(ownRow(t, client), settings...)
	if len(changes) != 1 || changes[0].Got != "9" || err == nil || !strings.Contains(err.Error(), "congestion") {
		t.Errorf("got %+v, %v, want ttl set and an error that names congestion", changes, err)
	}
	if got, _ := sockopt.Get(client, "tos"); got.Value() != "cs0" {
		t.Errorf("tos was set: %s", got)
	}
}

func TestLeavesTheConnectionAsItWas(t *testing.T) {
	p := startHolder(t)
	before := descriptors(t)
	for range 3 {
		_, err := Read(t.Context(), p.row)
		must(t, err)
	}
	if after := descriptors(t); after != before {
		t.Errorf("descriptors: got %d, want %d as before", after, before)
	}
	if got := p.ask(t, "echo"); got != "still here" {
		t.Errorf("the connection says %q", got)
	}
}

func descriptors(t *testing.T) int {
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(entries)
}

func TestTakesNoOtherSocketForTheOneAsked(t *testing.T) {
	client, server, _ := plainPair(t)
	row := ownRow(t, client)
	row.Owners[0].FD = server // as if the number had been used again
	before := descriptors(t)
	s, err := Read(t.Context(), row)
	must(t, err)
	if after := descriptors(t); after != before {
		t.Errorf("descriptors: got %d, want %d as before", after, before)
	}
	if !errors.Is(s.Missing, fs.ErrNotExist) || s.Options != nil || !strings.Contains(s.Missing.Error(), "another socket by now") {
		t.Errorf("got %d options, missing %v", len(s.Options), s.Missing)
	}
	setting, err := sockopt.Parse("ttl=9")
	must(t, err)
	if _, err := Set(row, setting); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("set: got %v", err)
	}
	if got, _ := sockopt.Get(server, "ttl"); got.Value() != "64" {
		t.Errorf("the other socket was changed: %s", got)
	}
	row.Owners[0].FD = 1 << 20
	if s, err = Read(t.Context(), row); err != nil || !errors.Is(s.Missing, fs.ErrNotExist) {
		t.Errorf("closed descriptor: got %v, missing %v", err, s.Missing)
	}
}

func TestTriesEveryOwner(t *testing.T) {
	client, server, _ := plainPair(t)
	row := ownRow(t, client)
	other := row.Owners[0]
	other.FD = server
	row.Owners = append([]owner.Holder{other}, row.Owners...)
	if s, err := Read(t.Context(), row); err != nil || s.Missing != nil {
		t.Errorf("got %v, missing %v, want the second owner's", err, s.Missing)
	}
}

func TestASocketThatIsGoneIsAnError(t *testing.T) {
	client, server, _ := plainPair(t)
	row := ownRow(t, client)
	must(t, unix.SetsockoptLinger(client, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
	must(t, unix.Close(client))
	must(t, unix.Close(server))
	if s, err := Read(t.Context(), row); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("read: got %+v, %v", s, err)
	}
	for s, err := range Samples(t.Context(), row, ms) {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("sample: got %+v, %v", s, err)
		}
	}
}

// TestSaysWhatIsMissing reads a process that may not be looked into, on a thread
// that has given up the right to.
func TestSaysWhatIsMissing(t *testing.T) {
	p := startHolder(t)
	p.ask(t, "hide")
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := dropCapabilities(); err != nil {
			t.Error(err)
			return
		}
		s, err := Read(t.Context(), p.row)
		if err != nil {
			t.Error(err)
			return
		}
		if s.Info == nil || s.Memory.RecvBuffer == 0 {
			t.Errorf("got %+v, want what the table tells", s.Socket)
		}
		if s.Options != nil || !errors.Is(s.Missing, fs.ErrPermission) || !strings.Contains(s.Missing.Error(), "CAP_SYS_PTRACE") {
			t.Errorf("got %d options, missing: %v", len(s.Options), s.Missing)
		}
		setting, _ := sockopt.Parse("ttl=9")
		if changes, err := Set(p.row, setting); len(changes) != 0 || !errors.Is(err, fs.ErrPermission) {
			t.Errorf("set: got %v, %v", changes, err)
		}
	}()
	<-done
	unknown := p.row
	unknown.Owners = nil
	s, err := Read(t.Context(), unknown)
	if err != nil || !errors.Is(s.Missing, fs.ErrPermission) || !strings.Contains(s.Missing.Error(), "root") {
		t.Errorf("owner not known: got %v, missing %v", err, s.Missing)
	}
}

func dropCapabilities() error {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	return unix.Capset(&h, &none[0])
}

func TestSaysThatNobodyHoldsASocket(t *testing.T) {
	client, server, listener := plainPair(t)
	row := ownRow(t, client)
	must(t, unix.Close(client))
	must(t, unix.Close(server))
	at, err := unix.Getsockname(listener)
	must(t, err)
	port := uint16(at.(*unix.SockaddrInet4).Port)
	all, err := sockdiag.List(t.Context(), sockdiag.Query{RemotePort: port, States: sockdiag.StatesOf(fivetuple.StateTimeWait)})
	must(t, err)
	if len(all) != 1 || all[0].Local != row.Local {
		t.Fatalf("got %+v, want the socket in TIME_WAIT", all)
	}
	s, err := Read(t.Context(), table.Row{Socket: all[0]})
	must(t, err)
	if s.Missing == nil || !strings.Contains(s.Missing.Error(), "no process holds a socket in TIME_WAIT") {
		t.Errorf("missing: %v", s.Missing)
	}
}

func TestNotInheritedIsWhatTheKernelDoesNotCopy(t *testing.T) {
	for _, tt := range []struct {
		setting   string
		inherited bool
	}{
		{"priority=2", false}, {"defer-accept=3s", false}, {"fastopen=2", false}, {"incoming-cpu=77", false},
		{"keepalive", true}, {"nodelay", true}, {"linger=5s", true}, {"rcvbuf=32KiB", true}, {"tos=af41", true},
		{"ttl=9", true}, {"congestion=reno", true}, {"user-timeout=7s", true}, {"reuseaddr", true}, {"mtu-discover=do", true},
	} {
		listener := plainSocket(t, unix.AF_INET, unix.SOCK_STREAM)
		set(t, listener, tt.setting)
		must(t, unix.Bind(listener, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
		must(t, unix.Listen(listener, 8))
		at, err := unix.Getsockname(listener)
		must(t, err)
		client := plainSocket(t, unix.AF_INET, unix.SOCK_STREAM)
		must(t, unix.Connect(client, at))
		_, err = unix.Write(client, []byte("x")) // defer-accept waits for it
		must(t, err)
		server, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		must(t, err)
		name, _, _ := strings.Cut(tt.setting, "=")
		want, err := sockopt.Get(listener, name)
		must(t, err)
		got, err := sockopt.Get(server, name)
		must(t, err)
		unix.Close(server)
		if (got == want) != tt.inherited || slices.Contains(NotInherited(), name) == tt.inherited {
			t.Errorf("%s: the listener has %s, its connection %s", tt.setting, want, got)
		}
	}
}

// holder is another process that holds a connection to this one.
type holder struct {
	row table.Row
	in  io.Writer
	out *bufio.Reader
}

// startHolder runs TestHold.
func startHolder(t *testing.T) holder {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { l.Close() })
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestHold$")
	cmd.Env = append(os.Environ(), holdVar+"="+l.Addr().String())
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	cmd.Stderr = os.Stderr
	must(t, cmd.Start())
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	c, err := l.Accept()
	must(t, err)
	t.Cleanup(func() { c.Close() })
	_, err = c.Write([]byte("still here\n"))
	must(t, err)
	p := holder{in: in, out: bufio.NewReader(out)}
	p.ask(t, "ready")
	held, err := table.List(t.Context(), sockdiag.Query{LocalPort: uint16(c.RemoteAddr().(*net.TCPAddr).Port)})
	must(t, err)
	if len(held.Rows) != 1 || len(held.Rows[0].Owners) != 1 || held.Rows[0].Owners[0].PID != cmd.Process.Pid {
		t.Fatalf("got %+v, want the socket of process %d", held, cmd.Process.Pid)
	}
	p.row = held.Rows[0]
	return p
}

// ask has the process do something, and returns what it answers.
func (p holder) ask(t *testing.T, what string) string {
	t.Helper()
	_, err := fmt.Fprintln(p.in, what)
	must(t, err)
	answer, err := p.out.ReadString('\n')
	must(t, err)
	return strings.TrimSuffix(answer, "\n")
}

const holdVar = "FIVETUPLE_INSPECT_TEST_HOLD"

// TestHold is the other process: it holds a socket and answers on standard output.
func TestHold(t *testing.T) {
	address := os.Getenv(holdVar)
	if address == "" {
		return
	}
	var d net.Dialer
	d.SetMultipathTCP(false)
	d.KeepAlive = -1
	c, err := d.DialContext(t.Context(), "tcp4", address)
	must(t, err)
	raw, err := c.(syscall.Conn).SyscallConn()
	must(t, err)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		switch ask := lines.Text(); ask {
		case "ready":
			fmt.Println("ready")
		case "hide": // from all who lack CAP_SYS_PTRACE, the same user too (PR_SET_DUMPABLE(2const))
			must(t, unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0))
			fmt.Println("hidden")
		case "echo":
			line, err := bufio.NewReader(c).ReadString('\n')
			must(t, err)
			fmt.Print(line)
		default:
			must(t, raw.Control(func(fd uintptr) {
				s, err := sockopt.Get(int(fd), ask)
				fmt.Println(s.String() + errText(err))
			}))
		}
	}
}

func errText(err error) string {
	if err != nil {
		return err.Error()
	}
	return ""
}
