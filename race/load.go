package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"
)

// load is what c/load.c does to a server. Zero values are its own defaults.
type load struct {
	program     string
	cpu         string // "" for all
	connections int
	size        int           // bytes of a message
	duration    time.Duration // measured, after the warm-up
	warmup      time.Duration
	interval    time.Duration // between the messages of a connection; 0: at once
	keep        bool          // one message on each connection, then keep them
	source      string        // the first source address; "" for its own
	pids        []int         // whose processor time is measured
}

// outcome is what it printed.
type outcome struct {
	RoundTrips int        `json:"round_trips"`
	Rate       float64    `json:"rate"`
	Connect    float64    `json:"connect_s"`
	ServerCPU  float64    `json:"server_cpu_s"`
	Late       int        `json:"late"` // messages of a paced load not sent, the last one not being back
	Errors     int        `json:"errors"`
	FirstError string     `json:"first_error"`
	Histogram  [][2]int64 `json:"histogram"` // the longest of a step, ns, and how many messages
}

// loading is a load under way.
type loading struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   io.ReadCloser
}

func (l load) start(address string) (*loading, error) {
	seconds := func(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', -1, 64) }
	command := []string{l.program, "-j", "-c", strconv.Itoa(l.connections), "-s", strconv.Itoa(l.size), "-d", seconds(l.duration), "-w", seconds(l.warmup), "-i", seconds(l.interval)}
	if l.keep {
		command = append(command, "-k")
	}
	if l.source != "" {
		command = append(command, "-f", l.source)
	}
	for _, pid := range l.pids {
		command = append(command, "-p", strconv.Itoa(pid))
	}
	cmd := pinned(l.cpu, append(command, address))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	return &loading{cmd, stdin, out}, cmd.Start()
}

// result waits for the outcome. A load that keeps its connections still does.
func (l *loading) result() (outcome, error) {
	var o outcome
	if err := json.NewDecoder(l.out).Decode(&o); err != nil {
		return o, fmt.Errorf("the load ended early: %w", errors.Join(err, l.end()))
	}
	if o.Errors > 0 {
		return o, fmt.Errorf("%d errors, the first: %s", o.Errors, o.FirstError)
	}
	return o, nil
}

// end closes the connections that are kept.
func (l *loading) end() error {
	l.stdin.Close()
	return l.cmd.Wait()
}

func (l load) run(address string) (outcome, error) {
	under, err := l.start(address)
	if err != nil {
		return outcome{}, err
	}
	o, err := under.result()
	return o, errors.Join(err, under.end())
}

// quantile is the latency that so large a part of the messages did not exceed.
func quantile(histogram [][2]int64, q float64) time.Duration {
	all, below := count(histogram), int64(0)
	for _, step := range histogram {
		if below += step[1]; float64(below) >= q*float64(all) {
			return time.Duration(step[0])
		}
	}
	return 0
}

func count(histogram [][2]int64) (messages int64) {
	for _, step := range histogram {
		messages += step[1]
	}
	return messages
}

// cpu is the processor time of the server for one round trip.
func (o outcome) cpu() time.Duration {
	return time.Duration(o.ServerCPU * 1e9 / float64(max(o.RoundTrips, 1)))
}
