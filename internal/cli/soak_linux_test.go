package cli

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSoak passes FT_SOAK_MIB of random bytes through each stream transport, in
// sessions of 1 byte to 1 GiB, of which -test.parallel run at once. How large they
// are, what goes there and back, who ends first and who stands still for a while are
// random, by FT_SOAK_SEED: with the same two numbers a session is the same.
func TestSoak(t *testing.T) {
	amount := int64(fromEnv("FT_SOAK_MIB", 64)) << 20
	seed := uint64(fromEnv("FT_SOAK_SEED", rand.IntN(1e9)))
	t.Logf("FT_SOAK_SEED=%d", seed)
	for i, tr := range soakTransports {
		t.Run(tr.over, func(t *testing.T) {
			if tr.over == "vsock" && !hasVsockLoopback() {
				t.Log("no vsock loopback transport in this kernel: only listened")
				tr.listenOnly(t)
				return
			}
			tr.soak(t, amount, rand.New(rand.NewPCG(seed, uint64(i))))
		})
	}
}

type soakTransport struct {
	over    string
	listen  []string // endpoint and flags
	engines []string // that serve echo on it
	records bool
}

var soakTransports = []soakTransport{
	{over: "tcp", listen: []string{"127.0.0.1:0"}, engines: []string{"poll", "goroutines"}},
	{over: "tls", listen: []string{"tls://127.0.0.1:0", "--tls-self-signed"}, engines: []string{"goroutines"}},
	{over: "unix", engines: []string{"poll", "goroutines"}},
	{over: "seqpacket", engines: []string{"goroutines"}, records: true},
	// The last one, since not all kernels can connect over it.
	{over: "vsock", listen: []string{"vsock://*:4294967295"}, engines: []string{"goroutines"}},
}

// hasVsockLoopback says whether context 1 is this machine. Without it a guest's
// kernel would connect to its host.
func hasVsockLoopback() bool {
	if _, err := os.Stat("/sys/module/vsock_loopback"); err == nil {
		return true
	}
	modules, _ := os.ReadFile("/proc/modules")
	return strings.HasPrefix(string(modules), "vsock_loopback ") || strings.Contains(string(modules), "\nvsock_loopback ")
}

// listenOnly is all that can be done without a peer.
func (tr soakTransport) listenOnly(t *testing.T) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Logf("nor vsock: %v", err)
		return
	}
	unix.Close(fd)
	for _, kind := range []string{"stdio", "echo"} {
		p := tr.startListen(t, kind)
		p.signal(unix.SIGTERM)
		p.mustEnd(t)
	}
}

func (tr soakTransport) soak(t *testing.T, amount int64, random *rand.Rand) {
	ways := []string{"stdio", "joined"}
	servers := map[string]*piped{}
	for _, engine := range tr.engines {
		servers[engine] = tr.startListen(t, "echo", "--engine", engine)
		ways = append(ways, engine)
	}
	sessions := tr.split(amount, random, ways)
	began := time.Now()
	t.Run("session", func(t *testing.T) {
		for i, s := range sessions {
			t.Run(fmt.Sprintf("%d-%s", i, s.way), func(t *testing.T) {
				t.Parallel()
				s.run(t, servers[s.way])
			})
		}
	})
	took := time.Since(began)
	for _, p := range servers {
		p.signal(unix.SIGTERM)
		p.mustEnd(t)
	}
	t.Logf("%d MiB in %d sessions: %.0f MiB/s", amount>>20, len(sessions), float64(amount>>20)/took.Seconds())
}

// split makes sessions that together pass the amount through the transport. The
// logarithms of their sizes are uniform, and each way has its turn.
func (tr soakTransport) split(amount int64, random *rand.Rand, ways []string) (sessions []soakSession) {
	largest := math.Log(float64(min(amount, 1<<30)))
	for amount > 0 {
		size := min(amount, int64(math.Exp(random.Float64()*largest)))
		amount -= size
		s := soakSession{
			soakTransport: tr, way: ways[len(sessions)%len(ways)], seed: random.Uint64(),
			other: soakTransports[random.IntN(len(soakTransports)-1)], late: random.IntN(4) == 0,
		}
		switch share := random.IntN(4); {
		case slices.Contains(tr.engines, s.way):
			s.there = (size + 1) / 2 // and back
		case share == 0:
			s.there = size
		case share == 1:
			s.back = size
		default:
			s.there = random.Int64N(size + 1)
			s.back = size - s.there
		}
		sessions = append(sessions, s)
	}
	return sessions
}

// soakSession is one connection of a transport.
type soakSession struct {
	soakTransport
	way         string        // "stdio": connect to listen; "joined": listen, connect and listen; otherwise echo by that engine
	other       soakTransport // of what it is joined with
	seed        uint64
	there, back int64 // bytes
	late        bool  // nothing goes back before the end of file has come there
}

func (s soakSession) run(t *testing.T, server *piped) {
	t.Logf("%s: seed %#x, %d bytes there, %d back, late %v, other %s", s.way, s.seed, s.there, s.back, s.late, s.other.over)
	processes, flows := s.start(t, server)
	deadline := time.Now().Add(patience + time.Duration((s.there+s.back)>>20)*100*time.Millisecond)
	for _, p := range processes {
		p.stdin.SetDeadline(deadline)
		p.stdout.SetDeadline(deadline)
	}
	errs := make(chan error, 2*len(flows))
	for _, f := range flows {
		go func() { errs <- f.send() }()
		go func() { errs <- f.receive() }()
	}
	for range cap(errs) {
		if err := <-errs; err != nil && !t.Failed() {
			t.Error(err)
			for _, p := range processes { // so that the others do not wait
				t.Logf("ft %s said:\n%.500s", strings.Join(p.Args[1:], " "), p.err)
				p.stdin.Close()
				p.stdout.Close()
			}
		}
	}
	for _, p := range processes {
		if !t.Failed() {
			p.mustEnd(t)
		}
	}
}

// start starts the processes of a session, and gives what is to flow through them.
func (s soakSession) start(t *testing.T, server *piped) (processes []*piped, flows []*flow) {
	var near, far *piped
	records := s.records
	switch s.way {
	case "stdio":
		far = s.startListen(t, "stdio")
		near = startPiped(t, slices.Concat([]string{"connect"}, s.target(far), messages(s.records))...)
	case "joined":
		near, far = s.startListen(t, "stdio"), s.other.startListen(t, "stdio")
		records = s.records || s.other.records
		middle := startPiped(t, slices.Concat([]string{"connect"}, s.target(near), s.other.target(far), messages(s.records != s.other.records))...)
		middle.stdin.Close()
		processes = append(processes, middle)
	default:
		near = startPiped(t, slices.Concat([]string{"connect"}, s.target(server), messages(s.records))...)
		return []*piped{near}, []*flow{newFlow("echo", near, near, s.seed, s.there, records)}
	}
	there, back := newFlow("there", near, far, s.seed, s.there, records), newFlow("back", far, near, s.seed+1, s.back, records)
	if s.late {
		back.after = there.ended
	}
	return append(processes, near, far), []*flow{there, back}
}

func messages(records bool) []string {
	if records {
		return []string{"--messages", "length"}
	}
	return nil
}

// target is how ft connect reaches an ft listen.
func (tr soakTransport) target(p *piped) []string {
	_, address, _ := strings.Cut(p.err.String(), "listening on "+tr.over+" ")
	address, _, _ = strings.Cut(address, ": ")
	return targetOf(tr.over, strings.Replace(address, "*", "local", 1))
}

func (tr soakTransport) startListen(t *testing.T, kind string, flags ...string) *piped {
	endpoint := tr.listen
	if endpoint == nil {
		endpoint = []string{tr.over + "://" + socketPath(t)}
	}
	p := startPiped(t, slices.Concat([]string{"listen"}, endpoint, []string{kind}, flags, messages(tr.records && kind == "stdio"))...)
	p.err.await(t, ": "+kind+"\n")
	return p
}

// piped is an ft between two pipes.
type piped struct {
	*process
	stdin, stdout *os.File // our ends
}

func startPiped(t *testing.T, args ...string) *piped {
	t.Helper()
	in, stdin := pipe(t)
	stdout, out := pipe(t)
	p := startProcess(t, func(c *exec.Cmd) { c.Stdin, c.Stdout = in, out }, args...)
	in.Close()
	out.Close()
	return &piped{p, stdin, stdout}
}

func (p *piped) mustEnd(t *testing.T) {
	t.Helper()
	if code := p.code(t); code != "0" {
		t.Errorf("ft %s: exit code %s:\n%.500s", strings.Join(p.Args[1:], " "), code, p.err)
	}
}

// flow is one direction of a session.
type flow struct {
	name     string
	from, to *piped
	noise    func() *noise
	stalls   func(n uint64) *stalls
	after    <-chan struct{} // it begins then
	ended    chan struct{}   // closed when all has come
}

func newFlow(name string, from, to *piped, seed uint64, size int64, records bool) *flow {
	return &flow{
		name: name, from: from, to: to, ended: make(chan struct{}),
		noise:  func() *noise { return newNoise(seed, size, records) },
		stalls: func(n uint64) *stalls { return newStalls(seed+n, size) },
	}
}

func (f *flow) send() error {
	if f.after != nil {
		<-f.after
	}
	if err := f.noise().send(f.from.stdin, f.stalls(0)); err != nil {
		return fmt.Errorf("send %s: %w", f.name, err)
	}
	return nil
}

func (f *flow) receive() error {
	defer close(f.ended)
	if err := f.noise().receive(f.to.stdout, f.stalls(1)); err != nil {
		return fmt.Errorf("receive %s: %w", f.name, err)
	}
	return nil
}
