package cli

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// forwardTests are the tests of the rows of the section Forwarding in
// docs/conformance.md, by the name in the first column. Each is run over all that the
// row names, and returns how it ended, as the row says: the exit code of ft, or the
// cause that ft forward -v gives for the end of the first connection.
func forwardTests() map[string]func(t *testing.T, over string) string {
	all := map[string]func(*testing.T, string) string{}
	for _, some := range []map[string]func(*testing.T, string) string{
		forwardStreamRows, forwardConnectRows, forwardLimitRows, forwardTLSRows, forwardFaultRows, forwardUDPRows, forwardNetRows, forwardLifeRows,
	} {
		maps.Copy(all, some)
	}
	return all
}

func TestForwardConformance(t *testing.T) {
	const page = "../../docs/conformance.md"
	ownRegistry(t)
	rows := forwardRows(t, page)
	tests := forwardTests()
	for name := range tests {
		if !slices.ContainsFunc(rows, func(r conformanceRow) bool { return r.name == name }) {
			t.Errorf("%s has no row for the test %s", page, name)
		}
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	busy := make(chan struct{}, 8) // they wait more than they work
	for _, row := range rows {
		test := tests[row.name]
		if test == nil {
			t.Errorf("%s: the row %q has no test of its own", page, row.name)
			continue
		}
		delete(tests, row.name)
		for _, over := range row.over {
			busy <- struct{}{}
			wg.Go(func() {
				t.Run(row.name+"/"+over, func(t *testing.T) {
					if got, want := test(t, over), endsOver(row.ends, over); got != want {
						t.Errorf("ended with %q, the page says %q", got, want)
					}
				})
				<-busy
			})
		}
	}
}

// endsOver is what a row says of one engine: "target reset; goroutines: peer reset".
func endsOver(ends, over string) string {
	loops, goroutines, differ := strings.Cut(ends, "; goroutines: ")
	if differ && slices.Contains([]string{"tls", "to-tls", "faults"}, over) {
		return goroutines
	}
	return loops
}

// forwardRows are the rows with a test in the first column.
func forwardRows(t *testing.T, page string) (rows []conformanceRow) {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		name, isRow := strings.CutPrefix(line, "| `forward-")
		if !isRow {
			continue
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | ")
		if len(cells) != 5 {
			t.Fatalf("%s: %d cells, want 5: %s", page, len(cells), line)
		}
		name, _, _ = strings.Cut(name, "`")
		rows = append(rows, conformanceRow{strings.Fields(cells[3]), strings.TrimSpace(cells[4]), "forward-" + name})
	}
	return rows
}

// forwarding is an ft forward that runs, with a target of the test.
type forwarding struct {
	*process
	over    string // as the rows name it: CLIENT-TARGET, or both in one, or what makes it relay with goroutines
	address string // where it listens
	target  *host
}

// startForwarding starts ft forward -v to a new target. The flags are its own.
func startForwarding(t *testing.T, over string, flags ...string) *forwarding {
	t.Helper()
	target := newHost(t, targetKind(over))
	return startForwardingTo(t, over, target, append(slices.Clone(target.args), flags...)...)
}

// startForwardingTo starts ft forward -v to targets that there are.
func startForwardingTo(t *testing.T, over string, target *host, args ...string) *forwarding {
	t.Helper()
	listen := []string{"127.0.0.1:0"}
	switch {
	case strings.HasPrefix(over, "unix"):
		listen = []string{"unix://" + socketPath(t)}
	case over == "tls":
		listen = []string{"tls://127.0.0.1:0", "--tls-cert", newTLSPlace(t).dir + "/localhost.pem"}
	case over == "udp":
		listen = []string{"udp://127.0.0.1:0"}
	case over == "faults":
		listen = append(listen, "--delay", "1ms")
	}
	f := &forwarding{over: over, target: target}
	f.process = startProcess(t, nil, append(append([]string{"forward", "-v", "--drain", "200ms"}, listen...), args...)...)
	f.awaitForwarding(t)
	return f
}

// awaitForwarding waits until it listens, and takes down where.
func (f *forwarding) awaitForwarding(t *testing.T) {
	t.Helper()
	f.err.await(t, ": forward to ")
	for line := range strings.Lines(f.err.String()) {
		if strings.HasPrefix(line, "listening on ") {
			f.address = addressIn(line)
			return
		}
	}
}

// targetKind is the network of the target, of host.
func targetKind(over string) string {
	switch over {
	case "unix", "tcp-unix":
		return "unix"
	case "to-tls":
		return "tls"
	}
	return "tcp"
}

// callKind is the network of the client.
func (f *forwarding) callKind() string {
	switch f.over {
	case "unix", "unix-tcp":
		return "unix"
	case "tls":
		return "tls"
	}
	return "tcp"
}

// call connects a client.
func (f *forwarding) call(t *testing.T) *peer {
	t.Helper()
	return callFT(t, f.callKind(), f.address)
}

// connect connects a client, and takes its connection at the target.
func (f *forwarding) connect(t *testing.T) (client, target *peer) {
	t.Helper()
	client = f.call(t)
	return client, f.target.accept(t)
}

// carries has a connection carry something both ways, and end.
func (f *forwarding) carries(t *testing.T) {
	t.Helper()
	client, target := f.connect(t)
	exchanged(t, client, target)
	client.Close()
	target.hearEnd(t, "")
	target.Close()
}

// refused connects a client, which is to be reset at once.
func (f *forwarding) refused(t *testing.T) {
	t.Helper()
	c, err := tryFT(t, f.callKind(), f.address)
	if err == nil {
		_, err = c.Read(make([]byte, 1))
	}
	if f.callKind() == "unix" && err == io.EOF {
		return // Unix sockets have no reset
	}
	if !isReset(err) {
		t.Errorf("got %v, want a reset", err)
	}
}

var disconnectLine = regexp.MustCompile(`disconnect .*?(?: #| conn=)(\d+):? cause[ =]("[^"]*"|[^,\n]+?)(?:,| in=)`)

// cause waits for the end of the first connection and returns why.
func (f *forwarding) cause(t *testing.T) string {
	t.Helper()
	return f.causeOf(t, 1)
}

// causeOf waits for the end of a connection and returns why.
func (f *forwarding) causeOf(t *testing.T, id int) string {
	t.Helper()
	for timeout := time.After(patience); ; {
		f.err.mu.Lock()
		changed := f.err.changed
		f.err.mu.Unlock()
		for _, m := range disconnectLine.FindAllStringSubmatch(f.err.String(), -1) {
			if m[1] == fmt.Sprint(id) {
				return strings.Trim(m[2], `"`)
			}
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("connection %d did not end:\n%.2000s", id, f.err)
		}
	}
}

// says waits until it has said it.
func (f *forwarding) says(t *testing.T, text string) {
	t.Helper()
	f.err.await(t, text)
}

// stopped ends it by SIGTERM and returns the exit code.
func (f *forwarding) stopped(t *testing.T) string {
	t.Helper()
	f.signal(syscall.SIGTERM)
	return f.code(t)
}

// exchanged lets a client and the target say something to each other.
func exchanged(t *testing.T, client, target *peer) {
	t.Helper()
	client.say(t, "question")
	target.hear(t, "question")
	target.say(t, "answer")
	client.hear(t, "answer")
}

// forwardStreamRows are how connections end that stand.
var forwardStreamRows = map[string]func(t *testing.T, over string) string{
	"forward-client-ends": func(t *testing.T, over string) string {
		f := startForwarding(t, over)
		client, target := f.connect(t)
		text := strings.Repeat("0123456789abcdef", 1<<14)
		go func() { // more than is under way
			io.WriteString(client, text)
			client.Conn.(interface{ CloseWrite() error }).CloseWrite()
		}()
		target.hearEnd(t, text)
		go func() {
			io.WriteString(target, "late "+text)
			target.Close()
		}()
		client.hearEnd(t, "late "+text)
		return f.cause(t)
	},
	"forward-target-ends": func(t *testing.T, over string) string {
		f := startForwarding(t, over)
		client, target := f.connect(t)
		exchanged(t, client, target)
		target.say(t, "goodbye")
		target.finish(t)
		client.hearEnd(t, "goodbye")
		client.say(t, "one more thing")
		client.Close()
		target.hearEnd(t, "one more thing")
		return f.cause(t)
	},
	"forward-both-end": func(t *testing.T, over string) string {
		f := startForwarding(t, over)
		client, target := f.connect(t)
		client.say(t, "question")
		target.say(t, "answer")
		client.finish(t)
		target.finish(t)
		client.hearEnd(t, "answer")
		target.hearEnd(t, "question")
		if cause := f.cause(t); cause != "target closed" { // whichever of the two comes first
			return cause
		}
		return "peer closed"
	},
	"forward-nothing-said": func(t *testing.T, over string) string {
		f := startForwarding(t, over)
		client, target := f.connect(t)
		client.finish(t)
		target.hearEnd(t, "")
		target.finish(t)
		client.hearEnd(t, "")
		return f.cause(t)
	},
	"forward-half-closed": func(t *testing.T, over string) string {
		f := startForwarding(t, over, "--half-closed", "500ms")
		client, target := f.connect(t)
		client.say(t, "question")
		client.finish(t)
		target.hearEnd(t, "question")
		for range 5 { // each of them is a byte before the time is over
			time.Sleep(150 * time.Millisecond)
			target.say(t, "x")
			client.hear(t, "x")
		}
		wantOver(t, client)
		return f.cause(t)
	},
	"forward-half-closed-target": func(t *testing.T, over string) string {
		f := startForwarding(t, over, "--half-closed", "500ms")
		client, target := f.connect(t)
		target.say(t, "greeting")
		target.finish(t)
		client.hearEnd(t, "greeting")
		client.say(t, "x")
		target.hear(t, "x")
		wantOver(t, target)
		return f.cause(t)
	},
	"forward-client-reset": func(t *testing.T, over string) string {
		f := startForwarding(t, over)
		client, target := f.connect(t)
		exchanged(t, client, target)
		client.reset()
		wantCutOff(t, target)
		return f.cause(t)
	},
	"forward-target-reset": func(t *testing.T, over string) string {
		f := startForwarding(t, over)
		client, target := f.connect(t)
		exchanged(t, client, target)
		target.reset()
		wantCutOff(t, client)
		return f.cause(t)
	},
	"forward-reset-after-end": func(t *testing.T, over string) string {
		f := startForwarding(t, over)
		client, target := f.connect(t)
		client.say(t, "question")
		client.finish(t)
		target.hearEnd(t, "question")
		target.reset()
		wantCutOff(t, client)
		return f.cause(t)
	},
	"forward-idle": func(t *testing.T, over string) string {
		f := startForwarding(t, over, "--idle", "600ms")
		client, target := f.connect(t)
		for range 4 {
			time.Sleep(200 * time.Millisecond) // together longer than the time
			exchanged(t, client, target)
		}
		client.hearEnd(t, "")
		target.hearEnd(t, "")
		return f.cause(t)
	},
	"forward-client-slow": func(t *testing.T, over string) string {
		f := startForwarding(t, over)
		client, target := f.connect(t)
		read := flood(t, target, func() { target.Close() })
		read(client)
		client.Close()
		if cause := f.cause(t); cause != "peer closed" { // of which each is as good
			return cause
		}
		return "target closed"
	},
	"forward-target-slow": func(t *testing.T, over string) string {
		f := startForwarding(t, over)
		client, target := f.connect(t)
		read := flood(t, client, func() { client.finish(t) })
		read(target)
		target.Close()
		client.hearEnd(t, "")
		return f.cause(t)
	},
	"forward-target-killed": func(t *testing.T, over string) string {
		echo := startServing(t, "listen", "127.0.0.1:0", "echo")
		f := startForwardingTo(t, over, nil, echo.address)
		client := f.call(t)
		client.say(t, "x")
		client.hear(t, "x")
		echo.Process.Kill()
		client.hearEnd(t, "") // its kernel sends FIN
		client.Close()
		f.cause(t)
		f.refused(t)
		return f.causeOf(t, 2)
	},
}

// wantOver wants an end or a reset, and nothing before it.
func wantOver(t *testing.T, p *peer) {
	t.Helper()
	if n, err := io.Copy(io.Discard, p.Conn); err != nil && !isReset(err) || n > 0 {
		t.Errorf("the peer got %d bytes and %v, want an end or a reset", n, err)
	}
}

// wantCutOff wants a reset, or of a Unix socket, which has none, an end.
func wantCutOff(t *testing.T, p *peer) {
	t.Helper()
	n, err := io.Copy(io.Discard, p.Conn)
	if _, isTCP := p.raw.(*net.TCPConn); isTCP && !isReset(err) || n > 0 {
		t.Errorf("the peer got %d bytes and %v, want a reset", n, err)
	}
}

// forwardConnectRows are ways to a target.
var forwardConnectRows = map[string]func(t *testing.T, over string) string{
	"forward-refused": func(t *testing.T, over string) string {
		f := startForwardingTo(t, over, nil, nobodyAt(t, targetKind(over))...)
		f.refused(t)
		f.says(t, "no target took the connection")
		return f.cause(t)
	},
	"forward-timeout": func(t *testing.T, over string) string {
		f := startForwardingTo(t, over, nil, fullBacklog(t), "--connect-timeout", "300ms")
		f.refused(t)
		f.says(t, "no target took the connection")
		f.says(t, "30") // "within 300ms", "timed out after 301ms"
		return f.cause(t)
	},
	"forward-unresolvable": func(t *testing.T, over string) string {
		f := startForwardingTo(t, over, nil, "no-such-host.invalid:80")
		f.says(t, "target no-such-host.invalid:80: lookup ")
		f.refused(t)
		return f.cause(t)
	},
	"forward-next": func(t *testing.T, over string) string {
		target := newHost(t, targetKind(over))
		args := append(nobodyAt(t, "tcp"), nobodyAt(t, "unix")...)
		f := startForwardingTo(t, over, target, append(args, target.args...)...)
		for range 3 { // whichever comes first in turn
			f.carries(t)
		}
		return f.cause(t)
	},
	"forward-all-bad": func(t *testing.T, over string) string {
		a, b := nobodyAt(t, "tcp")[0], nobodyAt(t, "tcp")[0]
		f := startForwardingTo(t, over, nil, a, b, "--max-fails", "2")
		for range 5 { // also when both are left out
			f.refused(t)
		}
		f.causeOf(t, 5)
		for _, target := range []string{a, b} {
			if n := strings.Count(f.err.String(), target+" is left out"); n != 1 {
				t.Errorf("it says %d times that %s is left out, want once", n, target)
			}
		}
		ln, err := net.Listen("tcp", b)
		if err != nil {
			t.Fatal(err)
		}
		f.target = &host{ln, "tcp", nil}
		t.Cleanup(func() { ln.Close() })
		client, target := f.connect(t) // where all are left out, all are tried
		exchanged(t, client, target)
		return f.cause(t)
	},
	"forward-check": func(t *testing.T, over string) string {
		good := newHost(t, "tcp")
		bad := nobodyAt(t, "tcp")[0]
		f := startForwardingTo(t, over, good, bad, good.args[0], "--check", "20ms")
		f.says(t, bad+" ")
		checks := 0
		for ; checks < 10; checks++ { // connections of checks end at once
			good.accept(t).hearEnd(t, "")
		}
		if n := strings.Count(f.err.String(), bad+" "); n != 1 {
			t.Errorf("after %d checks it has told %d times of the target that fails, want once:\n%s", checks, n, f.err)
		}
		return f.stopped(t)
	},
	"forward-client-gone": func(t *testing.T, over string) string {
		f := startForwardingTo(t, over, nil, fullBacklog(t))
		client := f.call(t)
		f.says(t, " accept ")
		client.reset()
		return f.cause(t)
	},
	"forward-early": func(t *testing.T, over string) string {
		ln, open := closedQueue(t)
		f := startForwardingTo(t, over, &host{ln, "tcp", nil}, ln.Addr().String())
		client := f.call(t)
		client.say(t, "early question")
		client.finish(t)
		f.says(t, " accept ")
		open()
		target := f.target.accept(t)
		target.hearEnd(t, "early question")
		target.say(t, "answer")
		target.Close()
		client.hearEnd(t, "answer")
		return f.cause(t)
	},
	"forward-source-hash": func(t *testing.T, over string) string {
		a, b := newHost(t, "tcp"), newHost(t, "tcp")
		f := startForwardingTo(t, over, a, a.args[0], b.args[0], "--balance", "source-hash")
		first := f.call(t)
		chosen, other := a, b
		a.acceptSoon(t)
		c, err := a.Accept()
		if err != nil {
			chosen, other = b, a
			c, err = b.Accept()
		}
		if err != nil {
			t.Fatal(err)
		}
		newPeer(t, c)
		f.target = chosen
		for range 5 {
			f.connect(t)
		}
		other.nobodyCame(t)
		first.Close()
		c.Close()
		return f.cause(t)
	},
	"forward-round-robin": func(t *testing.T, over string) string {
		a, b := newHost(t, "tcp"), newHost(t, "tcp")
		f := startForwardingTo(t, over, a, a.args[0], b.args[0])
		for range 6 {
			f.call(t)
		}
		for range 3 {
			a.accept(t)
			b.accept(t)
		}
		a.nobodyCame(t)
		b.nobodyCame(t)
		return f.stopped(t)
	},
	"forward-least-connections": func(t *testing.T, over string) string {
		a, b := newHost(t, "tcp"), newHost(t, "tcp")
		f := startForwardingTo(t, over, a, a.args[0], b.args[0], "--balance", "least-connections")
		for i := range 4 { // one after the other: what is under way does not count yet
			f.call(t)
			eventually(t, "it is connected", func() bool {
				said := f.err.String()
				return strings.Count(said, " > "+a.args[0]+" #")+strings.Count(said, " > "+b.args[0]+" #") == i+1
			})
		}
		on := map[*host][]*peer{a: {a.accept(t), a.accept(t)}, b: {b.accept(t), b.accept(t)}}
		for _, p := range on[a] {
			p.reset()
		}
		eventually(t, "two have ended", func() bool { return strings.Count(f.err.String(), " disconnect ") == 2 })
		for range 2 {
			f.call(t)
			a.accept(t)
		}
		b.nobodyCame(t)
		return f.stopped(t)
	},
	"forward-range": func(t *testing.T, over string) string {
		// Ten that no other test has, and below those that the kernel chooses.
		first := 10000 + (newPlace(t).port-25000)*5
		last := first + 1
		for port := first; port <= last; port++ {
			p := startProcess(t, nil, "listen", fmt.Sprintf("127.0.0.1:%d", port), "daytime")
			p.err.await(t, "daytime")
		}
		listen := fmt.Sprintf("127.0.0.1:%d-%d", first+4, last+4)
		p := startProcess(t, nil, "forward", "-v", "--drain", "200ms", listen, fmt.Sprintf("127.0.0.1:%d", first))
		f := &forwarding{process: p, over: over}
		f.says(t, ": forward to ")
		for i := range uint16(2) {
			f.address = fmt.Sprintf("127.0.0.1:%d", first+4+i)
			c := f.call(t)
			if b, err := io.ReadAll(c); err != nil || len(b) == 0 {
				t.Errorf("port %d: %q, %v", first+4+i, b, err)
			}
			f.says(t, fmt.Sprintf(" > 127.0.0.1:%d #%d", first+i, i+1))
		}
		wantRefusedAt(t, fmt.Sprintf("127.0.0.1:%d", last+5))
		return f.stopped(t)
	},
	"forward-unix-mode": func(t *testing.T, over string) string {
		f := startForwarding(t, over, "--mode", "620")
		info, err := os.Stat(f.address)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != 0o620 {
			t.Errorf("permissions are %o, want 620", got)
		}
		f.carries(t)
		f.cause(t)
		code := f.stopped(t)
		if _, err := os.Stat(f.address); !os.IsNotExist(err) {
			t.Errorf("the socket is left behind: %v", err)
		}
		return code
	},
	"forward-itself": func(t *testing.T, over string) string {
		p := startProcess(t, nil, "forward", "8080", "localhost:8080")
		return p.ends(t, "", "it would connect to itself without end")
	},
	"forward-in-use": func(t *testing.T, over string) string {
		h := newHost(t, "tcp")
		p := startProcess(t, nil, "forward", h.Addr().String(), "127.0.0.1:1")
		return p.ends(t, "", "address already in use")
	},
}

// wantRefusedAt wants that nobody listens.
func wantRefusedAt(t *testing.T, address string) {
	t.Helper()
	if c, err := net.Dial("tcp", address); err == nil {
		c.Close()
		t.Errorf("somebody listens on %s", address)
	}
}

// acceptSoon bounds the next Accept by half a second, in which it is to come or not.
func (h *host) acceptSoon(t *testing.T) {
	t.Helper()
	h.Listener.(interface{ SetDeadline(time.Time) error }).SetDeadline(time.Now().Add(time.Second / 2))
}

// closedQueue is a listener whose queue is full, until open is called: then the kernel
// of who connects tries once more within a second or two.
func closedQueue(t *testing.T) (ln net.Listener, open func()) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close()
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	if ln, err = net.FileListener(f); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	first, err := net.Dial("tcp", ln.Addr().String()) // a backlog of 0 is one
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { first.Close() })
	return ln, func() {
		t.Helper()
		c, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
}
