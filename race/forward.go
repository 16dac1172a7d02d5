package main

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var (
	//go:embed c/short.c
	shortSource []byte
	//go:embed c/udp.c
	udpSource []byte
)

// forwardRace measures ft forward against HAProxy, nginx and socat, each as it
// comes from Debian: bulk, new connections, latency, memory, datagrams. All of
// them, what they forward to and the load share the processors of this machine,
// so what is left to the load decides, too; "direct" is the load without a
// forwarder between.
//
// What is compared with a target is the median of the ratios of each round.
func forwardRace(s settings) error {
	b, err := newForwardBench(s)
	if err != nil {
		return err
	}
	defer b.close()
	for _, part := range []func() error{b.intact, b.bulk, b.bulkBesideIdle, b.shortConnections, b.latency, b.idle, b.datagrams} {
		if err := part(); err != nil {
			return err
		}
	}
	return nil
}

// forwardBench is what all parts need.
type forwardBench struct {
	settings
	*programs
	shortLoad, udpLoad string // programs in C
	port               int    // the last one given to a forwarder
}

// The ports of forwarders are fixed, since HAProxy and nginx do not say which one
// the kernel chose. The kernel leaves these alone in the namespace of the races.
const firstPort, lastPort = 20_000, 24_999

func newForwardBench(s settings) (*forwardBench, error) {
	for path, value := range map[string]string{
		"ip_local_reserved_ports": fmt.Sprintf("%d-%d", firstPort, lastPort),
		"ip_local_port_range":     "1024 65535", // a forwarder connects to one target from one address
	} {
		if err := os.WriteFile("/proc/sys/net/ipv4/"+path, []byte(value), 0); err != nil {
			return nil, err
		}
	}
	// What socat's children become when it ends: ours, to be waited for.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, err
	}
	c, err := compile()
	if err != nil {
		return nil, err
	}
	b := &forwardBench{settings: s, programs: c, shortLoad: filepath.Join(c.folder, "short"), udpLoad: filepath.Join(c.folder, "udp"), port: firstPort - 1}
	for program, source := range map[string][]byte{b.shortLoad: shortSource, b.udpLoad: udpSource} {
		cmd := exec.Command("gcc", "-O2", "-x", "c", "-o", program, "-")
		cmd.Stdin = bytes.NewReader(source)
		if said, err := cmd.CombinedOutput(); err != nil {
			b.close()
			return nil, fmt.Errorf("gcc: %w (apt-get install gcc libc6-dev): %s", err, said)
		}
	}
	return b, b.copyFT()
}

// copyFT puts ft where every user can run it.
func (b *forwardBench) copyFT() error {
	program, err := os.ReadFile(b.ft)
	if err != nil {
		return err
	}
	b.ft = filepath.Join(b.folder, "ft")
	return errors.Join(os.WriteFile(b.ft, program, 0o755), os.Chmod(b.folder, 0o755))
}

func (b *forwardBench) close() { b.remove() }

// nextPort gives each forwarder a port that none had before it, so that none
// meets what the connections of another left behind.
func (b *forwardBench) nextPort() int {
	b.port++
	return b.port
}

// startEcho starts what the connections are forwarded to.
func (b *forwardBench) startEcho() (*running, error) {
	return server{"C, epoll", []string{b.echo, "127.0.0.1:0"}}.start("")
}

// forwarding is a forwarder that runs.
type forwarding struct {
	*running
	forwarder forwarder
	log       string // file of its standard error
}

// place is where and as whom a forwarder runs.
type place struct {
	cpu      string // the only processor; "" for all
	ordinary bool   // as a user without rights
}

// start starts the forwarder from a port of its own to the target, and waits
// until it listens. A forwarder without a command is none: its address is that
// of the target.
func (b *forwardBench) start(f forwarder, network, target string, at place) (*forwarding, error) {
	if f.command == nil {
		return &forwarding{running: &running{address: target}, forwarder: f}, nil
	}
	port := b.nextPort()
	r := &forwarding{running: &running{address: fmt.Sprintf("127.0.0.1:%d", port)}, forwarder: f, log: filepath.Join(b.folder, fmt.Sprintf("%d.log", port))}
	command, err := f.command(b, network, r.address, target)
	if err != nil {
		return nil, err
	}
	log, err := os.Create(r.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	r.cmd = pinned(at.cpu, command)
	r.cmd.Stdout, r.cmd.Stderr = log, log
	state := filepath.Join(b.folder, fmt.Sprintf("%d.state", port)) // ft's registry of ports
	if err := os.Mkdir(state, 0o700); err != nil {
		return nil, err
	}
	r.cmd.Env = append(os.Environ(), "STATE_DIRECTORY="+state, "RUNTIME_DIRECTORY="+state, "FT_CLAIMS_DIR=none")
	// SIGTERM, so that it ends its children. Of socat's those that still have a
	// connection are ended as a group.
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	if at.ordinary && hasUser(nobody) {
		r.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
		if err := os.Chown(state, nobody, nobody); err != nil {
			return nil, err
		}
	}
	if err := r.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%w: apt-get install %s", err, f.packages)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		is, err := isBound(network, port)
		if is {
			return r, nil
		}
		if err != nil || time.Now().After(deadline) {
			r.stop()
			return nil, errors.Join(err, r.failed(errors.New("does not listen")))
		}
	}
}

const nobody = 65534

// hasUser says whether programs can be started as that user here. In the
// namespace of an ordinary user there is no other one, but what counts, the right
// to go beyond the limits of pipes, it does not have either.
func hasUser(uid int) bool {
	ids, err := os.ReadFile("/proc/self/uid_map")
	var inside, outside, n int
	_, scanned := fmt.Sscan(string(ids), &inside, &outside, &n)
	return err == nil && scanned == nil && uid < inside+n
}

// isBound says whether a socket of this network namespace listens on the port, or
// for UDP is bound to it.
func isBound(network string, port int) (bool, error) {
	text, err := os.ReadFile("/proc/net/" + network)
	if err != nil {
		return false, err
	}
	const listen = "0A" // TCP_LISTEN of the kernel's tcp_states.h
	end := fmt.Sprintf(":%04X", port)
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) > 3 && strings.HasSuffix(f[1], end) && (network == "udp" || f[3] == listen) {
			return true, nil
		}
	}
	return false, nil
}

// failed is the error with what the forwarder said.
func (r *forwarding) failed(err error) error {
	said, _ := os.ReadFile(r.log)
	return fmt.Errorf("%s: %w: %s", r.forwarder.name, err, strings.TrimSpace(string(said[max(0, len(said)-1000):])))
}

func (r *forwarding) stop() {
	if r.cmd == nil {
		return
	}
	r.running.stop()
	group := -r.cmd.Process.Pid
	syscall.Kill(group, syscall.SIGKILL)
	for err := error(nil); err == nil || err == syscall.EINTR; {
		_, err = syscall.Wait4(group, nil, 0, nil)
	}
}

// pids are those of all its processes; none for none.
func (r *forwarding) pids() ([]int, error) {
	if r.cmd == nil {
		return nil, nil
	}
	return r.processes()
}

// cpu is the processor time of all its processes so far. Of those that run it is
// known to the nanosecond (schedstat), of those that have ended and now count as
// their parent's to a hundredth of a second (proc_pid_stat(5)).
func (r *forwarding) cpu() (sum time.Duration, err error) {
	pids, err := r.pids()
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		if err != nil {
			return 0, err
		}
		for _, path := range threads {
			n, err := numbers(path, 0, 1)
			if err != nil {
				return 0, err
			}
			sum += time.Duration(n)
		}
		// After the name, from the state on: cutime and cstime are fields 16 and 17.
		ticks, err := numbers(fmt.Sprintf("/proc/%d/stat", pid), 13, 15)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(ticks) * time.Second / 100
	}
	return sum, nil
}

// numbers adds up the fields [from, to) of a file of /proc, those after the name
// of a process if it has one. A file that is gone has none.
func numbers(path string, from, to int) (sum int64, err error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < to {
		return 0, fmt.Errorf("%s has %d fields", path, len(fields))
	}
	for _, field := range fields[from:to] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		sum += n
	}
	return sum, nil
}

// cpuOf is the processor time that it takes while f runs.
func (r *forwarding) cpuOf(f func() error) (time.Duration, error) {
	before, err := r.cpu()
	if err != nil {
		return 0, err
	}
	if err := f(); err != nil {
		return 0, r.failed(err)
	}
	after, err := r.cpu()
	return after - before, err
}

// startAll starts all, to one target. What is returned ends them, also after an error.
func (b *forwardBench) startAll(all []forwarder, network, target string, at place) (running []*forwarding, stop func(), err error) {
	stop = func() {
		for _, r := range running {
			r.stop()
		}
	}
	for _, f := range all {
		r, err := b.start(f, network, target, at)
		if err != nil {
			return running, stop, err
		}
		running = append(running, r)
	}
	return running, stop, nil
}

// intact checks that every byte arrives, of small and of large messages, before
// anything is measured.
func (b *forwardBench) intact() error {
	echo, err := b.startEcho()
	if err != nil {
		return err
	}
	defer echo.stop()
	running, stop, err := b.startAll(allForwarders, "tcp", echo.address, place{})
	defer stop()
	if err != nil {
		return err
	}
	for _, r := range running {
		for _, size := range []int{1, 1 << 20} {
			l := load{program: b.load, connections: 8, size: size, duration: 100 * time.Millisecond}
			o, err := l.run(r.address)
			if err != nil {
				return r.failed(err)
			}
			if o.RoundTrips == 0 {
				return r.failed(fmt.Errorf("no message of %d bytes came back", size))
			}
		}
	}
	return nil
}

// eachRound calls f for each of n, in turns that begin with another one each round.
func (b *forwardBench) eachRound(n int, f func(i int) error) error {
	for round := range b.rounds {
		for turn := range n {
			if err := f((round + turn) % n); err != nil {
				return err
			}
		}
	}
	return nil
}

// ratios is the median of the ratios of the rounds.
func ratios(ours, theirs []float64) float64 {
	each := make([]float64, len(ours))
	for i := range ours {
		each[i] = ours[i] / theirs[i]
	}
	return median(each)
}

// goal is what the median of the ratios is to be: that much of a peer's, or more
// or less.
type goal struct {
	least, most float64 // 0: none
}

// verdict is what is printed of a ratio.
func (g goal) verdict(ratio float64) string {
	switch {
	case g.least > 0:
		return fmt.Sprintf("%.2f, target %.2f: %s", ratio, g.least, met[ratio >= g.least])
	case g.most > 0:
		return fmt.Sprintf("%.2f, target %.2f: %s", ratio, g.most, met[ratio <= g.most])
	}
	return fmt.Sprintf("%.2f", ratio)
}

// many is "1 client", "2 clients".
func many(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
