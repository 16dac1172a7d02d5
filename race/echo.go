package main

import (
	"fmt"
	"time"
)

// echoRace counts round trips, and how long they take, by the number of
// connections and the size of a message. The load compares every byte.
//
// Where two processors stand on the host can change the rate of the same server
// threefold, for seconds or minutes. So the rounds are many and short, the
// servers take turns at beginning, and what is compared with the target is the
// median of the ratios of each round. With -cpu 0 all share one processor,
// which is far from what a server does but repeats within a few percent.
func echoRace(s settings) error {
	c, err := compile()
	if err != nil {
		return err
	}
	defer c.remove()
	gnet, net, epoll, err := c.peers()
	if err != nil {
		return err
	}
	servers := []server{{"ft listen echo", []string{s.ft, "listen", "127.0.0.1:0", "echo"}}, gnet, net, epoll}
	for _, connections := range []int{1, 50, 1000, 10_000} {
		for _, size := range []int{64, 16 << 10} {
			l := load{program: c.load, cpu: s.cpu, connections: connections, size: size, duration: 750 * time.Millisecond, warmup: 250 * time.Millisecond}
			if connections > 1000 { // a round trip takes so long that few fit in
				l.duration *= 2
			}
			rounds := 2*s.rounds + 1
			if s.short {
				l.duration, l.warmup, rounds = 50*time.Millisecond, 10*time.Millisecond, 1
			}
			outcomes, err := echoRounds(servers, l, rounds)
			if err != nil {
				return err
			}
			if s.short { // too short to be compared
				fmt.Printf("echo: %d connections x %d bytes: all servers send every byte back\n", connections, size)
				continue
			}
			fmt.Printf("echo: %d connections x %d bytes, medians of %d rounds\n", connections, size, rounds)
			printEcho(servers, outcomes)
		}
	}
	return nil
}

// echoRounds returns the outcomes by server and round.
func echoRounds(servers []server, l load, rounds int) ([][]outcome, error) {
	outcomes := make([][]outcome, len(servers))
	at := make([]*running, len(servers))
	for i, server := range servers {
		r, err := server.start(l.cpu)
		if err != nil {
			return nil, err
		}
		defer r.stop()
		at[i] = r
	}
	for round := range rounds {
		for turn := range servers {
			i := (round + turn) % len(servers)
			l.pids = []int{at[i].cmd.Process.Pid}
			o, err := l.run(at[i].address)
			if err != nil {
				return nil, fmt.Errorf("%s, %d connections x %d bytes: %w", servers[i].name, l.connections, l.size, err)
			}
			outcomes[i] = append(outcomes[i], o)
		}
	}
	return outcomes, nil
}

func rate(o outcome) float64 { return o.Rate }

func latency(q float64) func(outcome) float64 {
	return func(o outcome) float64 { return quantile(o.Histogram, q).Seconds() }
}

// medianOf is the median of something of the outcomes.
func medianOf(outcomes []outcome, value func(outcome) float64) float64 {
	values := make([]float64, len(outcomes))
	for i, o := range outcomes {
		values[i] = value(o)
	}
	return median(values)
}

// medianRatio is the median of the ratios of the rounds.
func medianRatio(ours, theirs []outcome, value func(outcome) float64) float64 {
	ratios := make([]float64, len(ours))
	for i := range ours {
		ratios[i] = value(ours[i]) / value(theirs[i])
	}
	return median(ratios)
}

// printEcho prints the table, and compares the first server with the better of
// the second and third, for the rate and for the latency.
func printEcho(servers []server, outcomes [][]outcome) {
	fmt.Printf("  %-24s %10s %10s %10s %10s %10s\n", "", "trips/s", "p50", "p99", "p99.9", "cpu/trip")
	for i, server := range servers {
		of := func(value func(outcome) float64) float64 { return medianOf(outcomes[i], value) }
		show := func(value func(outcome) float64) string {
			return time.Duration(of(value) * 1e9).Round(100 * time.Nanosecond).String()
		}
		fmt.Printf("  %-24s %10.0f %10s %10s %10s %10s\n", server.name, of(rate), show(latency(0.5)), show(latency(0.99)), show(latency(0.999)),
			show(func(o outcome) float64 { return o.cpu().Seconds() }))
	}
	fastest, quickest := 1, 1
	if medianOf(outcomes[2], rate) > medianOf(outcomes[1], rate) {
		fastest = 2
	}
	p99 := latency(0.99)
	if medianOf(outcomes[2], p99) < medianOf(outcomes[1], p99) {
		quickest = 2
	}
	faster, longer := medianRatio(outcomes[0], outcomes[fastest], rate), medianRatio(outcomes[0], outcomes[quickest], p99)
	fmt.Printf("  rate: %.3f of %s, target 1.00: %s; p99: %.3f of %s, target 1.00: %s\n",
		faster, servers[fastest].name, met[faster >= 1], longer, servers[quickest].name, met[longer <= 1])
}
