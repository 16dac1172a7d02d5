package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"syscall"
	"time"
)

// connForwarders are compared where a process for each connection, as socat has
// it, would be another league.
var connForwarders = []forwarder{ftForwarder, haproxy, nginx, direct}

// churn is what one run of short connections came to.
type churn struct {
	rate float64 // connections per second
	cpu  float64 // seconds of the forwarder's processor time for each
}

// shortConnections measures how many connections per second come about, carry a
// byte each way and are closed, 32 of them in flight.
func (b *forwardBench) shortConnections() error {
	outcomes := make([][]churn, len(connForwarders))
	err := b.eachRound(len(connForwarders), func(i int) error {
		// Another target each time: to the one before, thousands are in TIME_WAIT.
		echo, err := b.startEcho()
		if err != nil {
			return err
		}
		defer echo.stop()
		r, err := b.start(connForwarders[i], "tcp", echo.address, place{})
		if err != nil {
			return err
		}
		defer r.stop()
		o, err := b.churn(r)
		outcomes[i] = append(outcomes[i], o)
		return err
	})
	if err != nil {
		return fmt.Errorf("short connections: %w", err)
	}
	if b.short {
		fmt.Println("forward: short connections: each has its byte back")
		return nil
	}
	rate := func(o churn) float64 { return o.rate }
	fmt.Printf("forward: new connections, a byte each way, closed, 32 in flight, medians of %d rounds\n", b.rounds)
	fmt.Printf("  %-24s %10s %10s\n", "", "conns/s", "cpu")
	for i, f := range connForwarders {
		fmt.Printf("  %-24s %10.0f", f.name, median(of(outcomes[i], rate)))
		if f.command != nil {
			fmt.Printf(" %10v", time.Duration(median(of(outcomes[i], func(o churn) float64 { return o.cpu }))*1e9).Round(100*time.Nanosecond))
		}
		if i > 0 {
			var g goal
			if f.name == haproxy.name {
				g.least = 1
			}
			fmt.Printf("  ft to it: rate %s", g.verdict(ratios(of(outcomes[0], rate), of(outcomes[i], rate))))
		}
		fmt.Println()
	}
	return nil
}

func (b *forwardBench) churn(r *forwarding) (churn, error) {
	seconds, warmup := "1.5", "0.3"
	if b.short {
		seconds, warmup = "0.1", "0"
	}
	cmd := pinned("", []string{b.shortLoad, "-c", "32", "-d", seconds, "-w", warmup, r.address})
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var said []byte
	cpu, err := r.cpuOf(func() (err error) {
		said, err = cmd.Output()
		return err
	})
	var o struct {
		Connections, All, Errors int
		Rate                     float64
		FirstError               string `json:"first_error"`
	}
	if jerr := json.Unmarshal(said, &o); err != nil || jerr != nil || o.Errors > 0 || o.Connections == 0 {
		return churn{}, fmt.Errorf("%w; %d connections, %d errors, the first: %s", errors.Join(err, jerr), o.Connections, o.Errors, o.FirstError)
	}
	return churn{o.Rate, cpu.Seconds() / float64(o.All)}, nil
}

// latency measures what a forwarder adds to the time of a round trip, open loop:
// 5,000 messages per second fall due whether or not others are back, each
// connection having its turn every 20 ms. It counts from when a message was due.
func (b *forwardBench) latency() error {
	echo, err := b.startEcho()
	if err != nil {
		return err
	}
	defer echo.stop()
	running, stop, err := b.startAll(connForwarders, "tcp", echo.address, place{})
	defer stop()
	if err != nil {
		return err
	}
	l := load{program: b.load, connections: 100, size: 64, duration: 2 * time.Second, warmup: 250 * time.Millisecond, interval: 20 * time.Millisecond}
	if b.short {
		l.duration, l.warmup = 100*time.Millisecond, 50*time.Millisecond
	}
	outcomes := make([][]outcome, len(running))
	err = b.eachRound(len(running), func(i int) error {
		l := l
		if l.pids, err = running[i].pids(); err != nil {
			return err
		}
		o, err := l.run(running[i].address)
		if err != nil {
			return running[i].failed(err)
		}
		outcomes[i] = append(outcomes[i], o)
		return nil
	})
	if err != nil {
		return fmt.Errorf("latency: %w", err)
	}
	if b.short {
		fmt.Println("forward: latency: every byte comes back")
		return nil
	}
	printAdded(outcomes, b.rounds)
	return nil
}

var addedQuantiles = []float64{0.5, 0.99, 0.999}

// printAdded prints the latencies less those without a forwarder, of each round.
func printAdded(outcomes [][]outcome, rounds int) {
	last := len(connForwarders) - 1 // direct
	added := func(i int, q float64) float64 {
		each := make([]float64, rounds)
		for round := range each {
			each[round] = latency(q)(outcomes[i][round]) - latency(q)(outcomes[last][round])
		}
		return median(each)
	}
	show := func(seconds float64) string {
		return time.Duration(seconds * 1e9).Round(100 * time.Nanosecond).String()
	}
	signed := func(seconds float64) string {
		if seconds < 0 {
			return show(seconds)
		}
		return "+" + show(seconds)
	}
	fmt.Printf("forward: latency added to round trips of 64 bytes, 5,000 per second open loop over 100 connections, medians of %d rounds\n", rounds)
	fmt.Printf("  %-24s %10s %10s %10s %10s %6s\n", "", "p50", "p99", "p99.9", "cpu/trip", "late")
	for i, f := range connForwarders {
		fmt.Printf("  %-24s", f.name)
		for _, q := range addedQuantiles {
			if i == last {
				fmt.Printf(" %10s", show(medianOf(outcomes[i], latency(q))))
			} else {
				fmt.Printf(" %10s", signed(added(i, q)))
			}
		}
		cpu := "-"
		if f.command != nil {
			cpu = show(medianOf(outcomes[i], func(o outcome) float64 { return o.cpu().Seconds() }))
		}
		fmt.Printf(" %10s %6s", cpu, strconv.FormatFloat(medianOf(outcomes[i], func(o outcome) float64 { return float64(o.Late) }), 'f', 0, 64))
		if f.name == haproxy.name {
			more := added(0, 0.99) - added(i, 0.99)
			fmt.Printf("  ft to it: p99 %s, target no more: %s", signed(more), met[more <= 0])
		}
		fmt.Println()
	}
}
