package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"time"
)

// clientsRace is no race but a proof: 100,000 clients at once on one port, each
// with a message every two seconds for a minute, and none of them fails. A
// process may have 20,000 descriptors here, so it takes six workers to serve
// them and as many loads, each with source addresses of its own.
func clientsRace(s settings) error {
	c, err := compile()
	if err != nil {
		return err
	}
	defer c.remove()
	const workers = 6
	clients, l := 100_000, load{program: c.load, size: 64, duration: time.Minute, warmup: 10 * time.Second, interval: 2 * time.Second}
	if s.short {
		clients, l.duration, l.warmup = 6000, time.Second, 2*time.Second
	}
	r, err := server{"ft listen", []string{s.ft, "listen", "127.0.0.1:0", "--workers", strconv.Itoa(workers), "echo"}}.start("")
	if err != nil {
		return err
	}
	defer r.stop()
	pids, err := r.withWorkers(workers)
	if err != nil {
		return err
	}
	without, err := settledMemory(pids, time.Second)
	if err != nil {
		return err
	}
	loads, err := startClients(l, r, pids, clients)
	if err != nil {
		return err
	}
	time.Sleep(l.warmup + l.duration/2)
	failed := checkEstablished(s.ft, r.port(), clients)
	with, err := memory(pids)
	failed = errors.Join(failed, err)
	least, most, err := spread(pids[1:])
	failed = errors.Join(failed, err)
	all, err := endClients(loads)
	if failed = errors.Join(failed, err); failed != nil {
		return failed
	}
	fmt.Printf("clients: %d at once on one port of ft listen --workers %d, each with %d bytes every %v for %v\n", clients, workers, l.size, l.interval, l.duration)
	due := int(l.duration.Seconds() / l.interval.Seconds() * float64(clients))
	fmt.Printf("  %-24s %d of %d round trips, %d late, 0 errors\n", "served", count(all.Histogram), due, all.Late)
	fmt.Printf("  %-24s %d by ss and by ft ls; %d to %d descriptors a worker\n", "ESTABLISHED", clients, least, most)
	fmt.Printf("  %-24s %v\n", "connected in", time.Duration(all.Connect*1e9).Round(time.Millisecond))
	fmt.Printf("  %-24s p50 %v, p99 %v, p99.9 %v, longest %v\n", "latency", quantile(all.Histogram, 0.5), quantile(all.Histogram, 0.99), quantile(all.Histogram, 0.999), quantile(all.Histogram, 1))
	fmt.Printf("  %-24s %.2f s, %.0f%% of a processor, %v for a round trip\n", "processor time, server", all.ServerCPU, 100*all.ServerCPU/l.duration.Seconds(), all.cpu())
	fmt.Printf("  %-24s %d bytes a connection\n", "user memory, server", (with-without)/clients)
	return nil
}

// withWorkers waits for the workers, and returns the ids of the server and of them.
func (r *running) withWorkers(n int) (pids []int, err error) {
	for range 100 {
		if pids, err = r.processes(); err != nil || len(pids) == n+1 {
			return pids, err
		}
		time.Sleep(50 * time.Millisecond)
	}
	return nil, fmt.Errorf("the server has %d workers, not %d", len(pids)-1, n)
}

// startClients starts the loads, the first of which measures the server's processor time.
func startClients(l load, r *running, pids []int, clients int) ([]*loading, error) {
	const processes = 6
	l.pids = pids
	var loads []*loading
	for n := range processes {
		l.connections = clients*(n+1)/processes - clients*n/processes
		l.source = fmt.Sprintf("127.0.%d.1", n+1)
		under, err := l.start(r.address)
		if err != nil {
			return nil, err
		}
		loads = append(loads, under)
		l.pids = nil
	}
	return loads, nil
}

// endClients puts together what the loads found.
func endClients(loads []*loading) (all outcome, err error) {
	for _, under := range loads {
		o, failed := under.result()
		err = errors.Join(err, failed, under.end())
		all.RoundTrips += o.RoundTrips
		all.ServerCPU += o.ServerCPU
		all.Late += o.Late
		all.Connect = max(all.Connect, o.Connect)
		all.Histogram = append(all.Histogram, o.Histogram...)
	}
	slices.SortFunc(all.Histogram, func(a, b [2]int64) int { return int(a[0] - b[0]) })
	return all, err
}

// checkEstablished asks ss and ft how many connections the port has.
func checkEstablished(ft, port string, want int) error {
	for _, command := range [][]string{
		{"ss", "-Htn", "state", "established", "sport = :" + port},
		{ft, "ls", "-o", "ndjson", "--columns", "proto,state,local,remote", "tcp and state established and sport = :" + port},
	} {
		out, err := exec.Command(command[0], command[1:]...).Output()
		if err != nil {
			return fmt.Errorf("%s: %w", command[0], err)
		}
		if got := bytes.Count(out, []byte("\n")); got != want {
			return fmt.Errorf("%s finds %d established connections on the port, not %d", command[0], got, want)
		}
	}
	return nil
}

// spread is how many descriptors the worker has that has least, and the one that has most.
func spread(pids []int) (least, most int, err error) {
	for i, pid := range pids {
		fds, err := countFiles(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			return 0, 0, err
		}
		if i == 0 {
			least = fds
		}
		least, most = min(least, fds), max(most, fds)
	}
	return least, most, nil
}

func countFiles(folder string) (int, error) {
	d, err := os.Open(folder)
	if err != nil {
		return 0, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil && err != io.EOF {
		return 0, err
	}
	return len(names), nil
}
