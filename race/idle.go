package main

import (
	"errors"
	"fmt"
	"time"
)

// idleRace measures the user memory of a connection on which nothing happens,
// after one message went to and fro: RssAnon with many connections less that
// with none, divided.
func idleRace(s settings) error {
	c, err := compile()
	if err != nil {
		return err
	}
	defer c.remove()
	gnet, net, epoll, err := c.peers()
	if err != nil {
		return err
	}
	const most = 500 // bytes
	servers := []server{
		{"ft listen echo", []string{s.ft, "listen", "127.0.0.1:0", "echo"}},
		gnet,
		{"ft, engine goroutines", []string{s.ft, "listen", "127.0.0.1:0", "--engine", "goroutines", "echo"}},
		net,
		epoll,
	}
	l := load{program: c.load, connections: 18_000, size: 64, keep: true}
	quiet := time.Second
	if s.short {
		l.connections, quiet = 1000, 50*time.Millisecond
	}
	bytes := make([][]int, len(servers))
	for round := range s.rounds {
		for turn := range servers {
			i := (round + turn) % len(servers)
			each, err := idleMemory(servers[i], l, quiet)
			if err != nil {
				return fmt.Errorf("%s: %w", servers[i].name, err)
			}
			bytes[i] = append(bytes[i], each)
		}
	}
	fmt.Printf("idle: user memory of a connection, of %d used once\n", l.connections)
	ours, theirs := median(bytes[0]), median(bytes[1])
	verdict := ""
	if !s.short { // with few connections what the server has anyway counts for too much
		verdict = fmt.Sprintf("  target %d: %s, target %s's: %s", most, met[ours <= most], gnet.name, met[ours <= theirs])
	}
	for i, server := range servers {
		fmt.Printf("  %-24s %6d bytes%s\n", server.name, median(bytes[i]), verdict)
		verdict = ""
	}
	return nil
}

func idleMemory(s server, l load, quiet time.Duration) (each int, err error) {
	r, err := s.start("")
	if err != nil {
		return 0, err
	}
	defer r.stop()
	once := l
	once.connections = 1
	_, without, err := memoryUnder(r, once, quiet)
	if err != nil {
		return 0, err
	}
	with, _, err := memoryUnder(r, l, quiet)
	return (with - without) / l.connections, err
}

// memoryUnder is the server's memory while the connections are kept, and after.
func memoryUnder(r *running, l load, quiet time.Duration) (during, after int, err error) {
	under, err := l.start(r.address)
	if err != nil {
		return 0, 0, err
	}
	pids := []int{r.cmd.Process.Pid}
	if _, err = under.result(); err == nil {
		during, err = settledMemory(pids, quiet)
	}
	if err = errors.Join(err, under.end()); err == nil {
		after, err = settledMemory(pids, quiet)
	}
	return during, after, err
}
