package main

import (
	"errors"
	"fmt"
	"time"
)

// idle measures the user memory of a pair of connections on which nothing
// happens, after one message went to and fro: RssAnon of all processes of the
// forwarder with many pairs, less that with none, divided.
func (b *forwardBench) idle() error {
	const most = 5 << 10 // bytes
	pairs, quiet := 5000, time.Second
	if b.short {
		pairs, quiet = 200, 50*time.Millisecond
	}
	echo, err := b.startEcho()
	if err != nil {
		return err
	}
	defer echo.stop()
	all := []forwarder{ftForwarder, haproxy, nginx}
	for _, size := range []int{64, 64 << 10} {
		l := load{program: b.load, connections: pairs, size: size, keep: true}
		bytes := make([][]float64, len(all))
		err := b.eachRound(len(all), func(i int) error {
			r, err := b.start(all[i], "tcp", echo.address, place{})
			if err != nil {
				return err
			}
			defer r.stop()
			each, err := r.idleMemory(l, quiet)
			if err != nil {
				return r.failed(err)
			}
			bytes[i] = append(bytes[i], each)
			return nil
		})
		if err != nil {
			return fmt.Errorf("idle pairs: %w", err)
		}
		if b.short { // with few pairs what the forwarder has anyway counts for too much
			fmt.Printf("forward: %d idle pairs, after %d bytes: all are kept\n", pairs, size)
			continue
		}
		fmt.Printf("forward: user memory of an idle pair, of %d that carried %d bytes each way, medians of %d rounds\n", pairs, size, b.rounds)
		for i, f := range all {
			each, verdict := median(bytes[i]), ""
			if i == 0 {
				verdict = fmt.Sprintf("  target %d: %s", most, met[each <= most])
			}
			fmt.Printf("  %-24s %6.0f bytes%s\n", f.name, each, verdict)
		}
	}
	return nil
}

// idleMemory is that of one pair.
func (r *forwarding) idleMemory(l load, quiet time.Duration) (each float64, err error) {
	once := l
	once.connections = 1
	without, err := r.memoryUnder(once, quiet)
	if err != nil {
		return 0, err
	}
	with, err := r.memoryUnder(l, quiet)
	return float64(with-without) / float64(l.connections), err
}

// memoryUnder is the memory while the connections are kept.
func (r *forwarding) memoryUnder(l load, quiet time.Duration) (during int, err error) {
	pids, err := r.pids()
	if err != nil {
		return 0, err
	}
	under, err := l.start(r.address)
	if err != nil {
		return 0, err
	}
	if _, err = under.result(); err == nil {
		during, err = settledMemory(pids, quiet)
	}
	return during, errors.Join(err, under.end())
}
