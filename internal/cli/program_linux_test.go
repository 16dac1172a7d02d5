package cli

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/lab"
	"github.com/fivetuple/fivetuple/sockdiag"
)

// place is where the two sides of a pair meet.
type place struct {
	port uint16
	dir  string    // short enough for a Unix socket in it
	host *lab.Host // nil: that of the test
}

// has says whether a socket of the kernel's table has an end here.
func (p place) has(s sockdiag.Socket) bool {
	if s.Protocol.IsUnix() {
		return s.Name == p.dir+"/s" || s.Name == fmt.Sprintf("@ft-%d", p.port)
	}
	return s.Local.Port() == p.port || s.Remote.Port() == p.port
}

// lastPort is the last that a place has.
var lastPort atomic.Uint32

func newPlace(t *testing.T) place {
	dir, err := os.MkdirTemp("", "ft")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return place{port: uint16(25000 + lastPort.Add(2)), dir: dir}
}

// write makes a file in its directory.
func (p place) write(t *testing.T, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(p.dir, name), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (p place) start(t *testing.T, command string) *program {
	t.Helper()
	return startProgram(t, p, strings.Fields(p.replace(command))...)
}

// replace puts in the ports and the directory.
func (p place) replace(s string) string {
	return strings.NewReplacer("PORT2", fmt.Sprint(p.port+1), "PORT", fmt.Sprint(p.port), "DIR", p.dir).Replace(s)
}

// do calls f on its host.
func (p place) do(t *testing.T, f func()) {
	if p.host == nil {
		f()
	} else {
		p.host.Do(t, f)
	}
}

// program is ft or another program that runs. The test speaks to its standard input
// and hears its standard output.
type program struct {
	*exec.Cmd
	place    place
	input    chan []byte
	endInput func()        // closes its standard input, once it has all that was said
	ended    chan struct{} // closed when it is reaped and its output read

	mu      sync.Mutex
	changed chan struct{} // closed when what follows changes
	out     text          // its standard output
	said    text          // its standard error
	heard   int           // bytes of out
}

// text is what a program has written so far.
type text struct {
	bytes  []byte
	closed bool
}

// startProgram starts a program in the directory of a place. At the end of the test
// it is killed with its children, and what it said is logged if the test failed.
func startProgram(t *testing.T, at place, args ...string) *program {
	t.Helper()
	p := &program{Cmd: exec.Command(args[0], args[1:]...), place: at, input: make(chan []byte, 16), changed: make(chan struct{}), ended: make(chan struct{})}
	p.endInput = sync.OnceFunc(func() { close(p.input) })
	p.Dir = at.dir
	p.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var pipes [3][2]*os.File
	for i := range pipes {
		var err error
		if pipes[i][0], pipes[i][1], err = os.Pipe(); err != nil {
			t.Fatal(err)
		}
	}
	p.Stdin, p.Stdout, p.Stderr = pipes[0][0], pipes[1][1], pipes[2][1]
	var err error
	at.do(t, func() { err = p.Start() })
	for _, f := range []*os.File{pipes[0][0], pipes[1][1], pipes[2][1]} {
		f.Close()
	}
	if err != nil {
		for _, f := range []*os.File{pipes[0][1], pipes[1][0], pipes[2][0]} {
			f.Close()
		}
		t.Fatalf("%v: apt-get install %s", err, packageOf(args[0]))
	}
	var reading, all sync.WaitGroup
	reading.Go(func() { p.collect(pipes[1][0], &p.out) })
	reading.Go(func() { p.collect(pipes[2][0], &p.said) })
	all.Go(func() { p.tell(pipes[0][1]) })
	all.Go(func() {
		p.Wait()
		reading.Wait()
		close(p.ended)
	})
	t.Cleanup(func() {
		syscall.Kill(-p.Process.Pid, syscall.SIGKILL)
		p.endInput()
		all.Wait()
		if t.Failed() {
			t.Logf("%s: %v\n%.2000s", strings.Join(args, " "), p.ProcessState, p.said.bytes)
		}
	})
	return p
}

// packageOf is the Debian package of a program.
func packageOf(program string) string {
	if program == "nc.openbsd" {
		return "netcat-openbsd"
	}
	return program
}

func (p *program) collect(r *os.File, into *text) {
	defer r.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		p.mu.Lock()
		into.bytes = append(into.bytes, buf[:n]...)
		into.closed = err != nil
		close(p.changed)
		p.changed = make(chan struct{})
		p.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (p *program) tell(w *os.File) {
	defer w.Close()
	for b := range p.input {
		w.Write(b) // the other side misses what was not written
	}
}

// say gives its standard input more.
func (p *program) say(b []byte) { p.input <- b }

// hears waits until it has written all of that to standard output.
func (p *program) hears(t *testing.T, want []byte) {
	t.Helper()
	p.await(t, fmt.Sprintf("hear %d bytes", len(want)), func() bool {
		return len(p.out.bytes) >= p.heard+len(want) || p.out.closed
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	got := p.out.bytes[p.heard:min(len(p.out.bytes), p.heard+len(want))]
	p.heard += len(got)
	if string(got) != string(want) {
		t.Fatalf("%s heard %s, want %s", p.Args[0], summary(got), summary(want))
	}
}

// hearsLine waits for the next line of its standard output.
func (p *program) hearsLine(t *testing.T) (line string) {
	t.Helper()
	p.await(t, "hear a line", func() bool {
		i := bytes.IndexByte(p.out.bytes[p.heard:], '\n')
		if i >= 0 {
			line = string(p.out.bytes[p.heard : p.heard+i+1])
			p.heard += i + 1
		}
		return i >= 0 || p.out.closed
	})
	if line == "" {
		t.Fatalf("%s ended without a line", p.Args[0])
	}
	return line
}

// hearsEnd waits until it has closed its standard output.
func (p *program) hearsEnd(t *testing.T) {
	t.Helper()
	p.await(t, "hear the end", func() bool { return p.out.closed })
}

// summary is the bytes, or for many their number and sum.
func summary(b []byte) string {
	if len(b) <= 100 {
		return fmt.Sprintf("%q", b)
	}
	return fmt.Sprintf("%d bytes with SHA-256 %x", len(b), sha256.Sum256(b))
}

// says waits until its standard error has the text.
func (p *program) says(t *testing.T, want string) {
	t.Helper()
	p.saysTimes(t, want, 1)
}

// saysTimes waits until its standard error has the text so many times.
func (p *program) saysTimes(t *testing.T, want string, times int) {
	t.Helper()
	said := 0
	p.await(t, fmt.Sprintf("say %q", want), func() bool {
		said = strings.Count(string(p.said.bytes), want)
		return said >= times || p.said.closed
	})
	if said < times {
		t.Fatalf("%s said %q %d times, want %d", p.Args[0], want, said, times)
	}
}

// await waits until done, which is asked whenever it has written something.
func (p *program) await(t *testing.T, what string, done func() bool) {
	t.Helper()
	timeout := time.After(patience)
	for {
		p.mu.Lock()
		is, changed, heard := done(), p.changed, len(p.out.bytes)-p.heard
		p.mu.Unlock()
		if is {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("%s did not %s in %v; it heard %d bytes", p.Args[0], what, patience, heard)
		}
	}
}

// awaitListening waits until it listens, or until what it receives datagrams on is
// bound.
func (p *program) awaitListening(t *testing.T, network fivetuple.Network) {
	t.Helper()
	switch {
	case p.Args[0] == "ft":
		p.says(t, "listening on ")
	case network.IsDatagram():
		p.awaitSocket(t, network)
	default:
		p.awaitSocket(t, network, fivetuple.StateListen)
	}
}

// awaitSocket waits until the kernel has a socket of this place in one of the states,
// or in any.
func (p *program) awaitSocket(t *testing.T, network fivetuple.Network, states ...fivetuple.State) {
	t.Helper()
	timeout := time.After(patience)
	look := time.NewTicker(2 * time.Millisecond)
	defer look.Stop()
	for {
		var found []sockdiag.Socket
		var err error
		p.place.do(t, func() {
			found, err = sockdiag.List(t.Context(), sockdiag.Query{Protocols: []fivetuple.Network{network}, States: sockdiag.StatesOf(states...)})
		})
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(found, p.place.has) {
			return
		}
		select {
		case <-look.C:
		case <-p.ended:
			t.Fatalf("%s ended without a socket %s in state %v", p.Args[0], network, states)
		case <-timeout:
			t.Fatalf("%s made no socket %s in state %v in %v", p.Args[0], network, states, patience)
		}
	}
}

// ends waits for its end, and checks the exit code and that it heard no more.
func (p *program) ends(t *testing.T, code int) {
	t.Helper()
	p.awaitEnd(t)
	if got := p.ProcessState.ExitCode(); got != code {
		t.Errorf("%s ended with %v, want exit code %d", p.Args[0], p.ProcessState, code)
	}
	if more := p.out.bytes[p.heard:]; len(more) > 0 {
		t.Errorf("%s heard beyond that %s", p.Args[0], summary(more))
	}
}

// endsWhateverItHeard is ends without a look at what it heard.
func (p *program) endsWhateverItHeard(t *testing.T, code int) {
	t.Helper()
	p.awaitEnd(t)
	p.heard = len(p.out.bytes)
	p.ends(t, code)
}

func (p *program) awaitEnd(t *testing.T) {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		t.Fatalf("%s did not end in %v", p.Args[0], patience)
	}
}

// stops ends it by SIGTERM, and checks that it ends in its own way and heard no more.
func (p *program) stops(t *testing.T) {
	t.Helper()
	code := -1 // by the signal
	switch p.Args[0] {
	case "ft":
		code = exitDone
	case "socat":
		code = 128 + int(syscall.SIGTERM)
	}
	p.Process.Signal(syscall.SIGTERM)
	if p.Args[0] == "socat" { // of its children one may not be done yet, which has its output open
		syscall.Kill(-p.Process.Pid, syscall.SIGTERM)
	}
	p.awaitEnd(t)
	if p.Args[0] == "ncat" && p.ProcessState.ExitCode() == 0 {
		code = 0 // on a busy machine it now and then takes the end of its input for its own
	}
	p.ends(t, code)
}
