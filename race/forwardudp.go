package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// udpForwarders forward datagrams.
var udpForwarders = []forwarder{ftForwarder, nginx, socat, direct}

const (
	mostLoss  = 0.001 // a rate at which more is lost is too high
	leastSent = 0.95  // of what was due; with less the load is at its own limit
	lowest    = 1000  // datagrams per second; below that a forwarder counts as one that does nothing
)

// datagrams finds the highest rate at which at most 0.1 % of the datagrams are
// lost, from clients to one target: the sender goes on at its rate whatever
// becomes of them. The forwarder has one processor for itself, and the load, which is
// clients and target, another; with all on both, the scheduler would decide which
// buffer overflows.
//
// A load that sends one datagram at a time costs more than a forwarder. So one client
// sends trains, and the device cuts them: each datagram arrives alone, as from a
// network card, and so does what forwarders send as trains. Where the device leaves
// them whole they arrive whole at whoever asks for that (UDP_GRO).
//
// A rate is tried three times before it counts as too high: a moment in which the
// machine does something else is not the forwarder's. A row says so where it is
// the load that can do no more.
func (b *forwardBench) datagrams() error {
	for _, senders := range []udpSenders{{clients: 1, cut: true}, {clients: 1}, {clients: 64, cut: true}} {
		if err := cutTrains(senders.cut); err != nil {
			return err
		}
		for _, size := range []int{100, 1400} {
			all := make([]*udpRate, len(udpForwarders))
			err := b.eachRound(len(all), func(i int) error {
				if all[i] == nil {
					all[i] = &udpRate{forwarder: udpForwarders[i]}
				} else if all[i].command == nil {
					return nil // to know what the load can do, once is enough
				}
				err := b.findRate(all[i], senders, size)
				if err != nil {
					return fmt.Errorf("%s: %w", udpForwarders[i].name, err)
				}
				return nil
			})
			if err != nil {
				return fmt.Errorf("datagrams of %d bytes, %s: %w", size, senders, err)
			}
			if b.short {
				fmt.Printf("forward: datagrams of %d bytes, %s: whole, once, and each client has its own answer\n", size, senders)
				continue
			}
			printRates(all, senders, size, b.rounds)
		}
	}
	return nil
}

// Which processor is whose, if there are several.
const loadCPU, ourCPU = "0", "1"

// cutTrains has the loopback device cut trains into datagrams, or not.
func cutTrains(yes bool) error {
	segments := "65535" // GSO_MAX_SEGS, include/linux/netdevice.h
	if yes {
		segments = "1"
	}
	if said, err := exec.Command("ip", "link", "set", "lo", "gso_max_segs", segments).CombinedOutput(); err != nil {
		return fmt.Errorf("ip link set lo gso_max_segs: %w: %s", err, said)
	}
	return nil
}

// udpSenders are who sends, and how. One client sends trains (UDP_SEGMENT), several
// a datagram each in turn.
type udpSenders struct {
	clients int
	cut     bool // on the way
}

func (s udpSenders) String() string {
	if s.clients == 1 && !s.cut {
		return "1 client whose trains arrive whole"
	}
	return many(s.clients, "client")
}

// udpRate is what a forwarder can do, round by round.
type udpRate struct {
	forwarder
	rates   []float64 // datagrams per second that arrived
	cpu     []float64 // seconds of processor time for each
	limited int       // rounds in which the load could do no more
}

func printRates(all []*udpRate, senders udpSenders, size, rounds int) {
	fmt.Printf("forward: datagrams of %d bytes, %s, the highest rate with %.1f %% lost at most, on one processor, medians of %d rounds\n", size, senders, 100*mostLoss, rounds)
	fmt.Printf("  %-24s %12s %10s\n", "", "datagrams/s", "cpu")
	for i, r := range all {
		fmt.Printf("  %-24s %12.0f", r.name, median(r.rates))
		if r.command != nil {
			fmt.Printf(" %10v", time.Duration(median(r.cpu)*1e9).Round(10*time.Nanosecond))
		}
		if i > 0 && r.command != nil {
			var g goal
			if r.name == nginx.name {
				g.least = 2
			}
			fmt.Printf("  ft to it: rate %s; cpu %s", g.verdict(ratios(all[0].rates, r.rates)), goal{}.verdict(ratios(all[0].cpu, r.cpu)))
		}
		if r.limited > 0 {
			fmt.Printf("  (the load's limit in %d rounds)", r.limited)
		}
		fmt.Println()
	}
}

// findRate adds a round.
func (b *forwardBench) findRate(r *udpRate, senders udpSenders, size int) error {
	ours := ""
	if runtime.NumCPU() > 1 {
		ours = ourCPU
	}
	l, err := b.startUDP(senders, size)
	if err != nil {
		return err
	}
	defer l.end()
	f, err := b.start(r.forwarder, "udp", l.sink, place{cpu: ours})
	if err != nil {
		return err
	}
	defer f.stop()
	if err := l.greet(f.address); err != nil {
		return f.failed(err)
	}
	if b.short {
		t, err := l.trial(2000, 50*time.Millisecond)
		if err == nil && t.Delivered == 0 {
			err = fmt.Errorf("none of %.0f datagrams arrived", t.Sent)
		}
		return err
	}
	s := search{forwarding: f, load: l}
	from := 50_000.0
	if len(r.rates) > 0 {
		from = max(median(r.rates)*0.8, lowest)
	}
	if err := s.run(from); err != nil {
		return err
	}
	r.rates, r.cpu = append(r.rates, s.rate), append(r.cpu, s.cpu)
	if s.limited {
		r.limited++
	}
	return nil
}

// search looks for the highest rate.
type search struct {
	*forwarding
	load *udpLoad

	rate, cpu float64
	limited   bool
}

// run halves the rate until it gets through, raises it by half until it does not,
// and then halves what is between.
func (s *search) run(from float64) error {
	low := from
	for good := false; !good; {
		if low < lowest {
			return nil
		}
		var err error
		if good, err = s.try(low); err != nil {
			return err
		} else if !good {
			low /= 2
		}
	}
	high := low * 1.5
	for {
		good, err := s.try(high)
		if err != nil {
			return err
		}
		if !good {
			break
		}
		low, high = high, high*1.5
	}
	for range 3 {
		middle := (low + high) / 2
		good, err := s.try(middle)
		if err != nil {
			return err
		}
		if good {
			low = middle
		} else {
			high = middle
		}
	}
	return nil
}

// try says whether so much gets through, the first, second or third time. A trial
// in which the load could not send what was due, or not take what arrived, says
// nothing; if there are too many of these, the limit is the load's.
func (s *search) try(rate float64) (good bool, err error) {
	const duration = 200 * time.Millisecond
	lost := 0
	for range 8 {
		var t udpTrial
		cpu, err := s.cpuOf(func() (err error) {
			t, err = s.load.trial(rate, duration)
			return err
		})
		switch {
		case err != nil:
			return false, err
		case t.Sent < leastSent*rate*duration.Seconds() || t.Dropped > 0:
			continue
		case t.Delivered >= t.Sent*(1-mostLoss):
			s.rate, s.cpu = t.Delivered/duration.Seconds(), cpu.Seconds()/t.Delivered
			return true, nil
		}
		if lost++; lost == 3 {
			return false, nil
		}
	}
	s.limited = true
	return false, nil
}

// udpLoad is c/udp.c.
type udpLoad struct {
	sink  string
	input io.WriteCloser
	lines *bufio.Reader
	wait  func() error
}

// udpTrial is what it says of one trial, in datagrams.
type udpTrial struct {
	Sent, Delivered, Duplicates, Corrupt, Stale float64
	Dropped                                     float64 // by the sink
}

func (b *forwardBench) startUDP(senders udpSenders, size int) (*udpLoad, error) {
	args := []string{b.udpLoad, "-c", fmt.Sprint(senders.clients), "-s", fmt.Sprint(size)}
	if senders.clients == 1 {
		args = append(args, "-t")
	}
	if runtime.NumCPU() > 1 {
		args = append(args, "-p", loadCPU)
	}
	cmd := pinned("", args)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	input, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	output, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	l := &udpLoad{input: input, lines: bufio.NewReader(output), wait: cmd.Wait}
	line, err := l.lines.ReadString('\n')
	l.sink, _ = strings.CutPrefix(strings.TrimSpace(line), "sink ")
	if err != nil {
		l.end()
	}
	return l, err
}

// greet has every client ask the target, and wait for its answer.
func (l *udpLoad) greet(address string) error {
	fmt.Fprintln(l.input, address)
	if line, err := l.lines.ReadString('\n'); err != nil || line != "ready\n" {
		return fmt.Errorf("not every client has its answer (%q, %w)", line, err)
	}
	return nil
}

func (l *udpLoad) trial(rate float64, duration time.Duration) (t udpTrial, err error) {
	fmt.Fprintf(l.input, "%f %f\n", rate, duration.Seconds())
	line, err := l.lines.ReadString('\n')
	if err != nil {
		return t, fmt.Errorf("the load ended: %w", err)
	}
	if err := json.Unmarshal([]byte(line), &t); err != nil {
		return t, err
	}
	if t.Duplicates+t.Corrupt > 0 {
		return t, fmt.Errorf("%.0f datagrams came twice, %.0f not whole", t.Duplicates, t.Corrupt)
	}
	return t, nil
}

func (l *udpLoad) end() {
	l.input.Close()
	l.wait()
}
