package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// bulkTargets are, by number of connections, what is to be had of a peer's rate.
var bulkTargets = map[int]map[string]goal{
	1: {haproxy.name: {least: 1.3}, socat.name: {least: 2}},
	8: {haproxy.name: {least: 1.2}},
}

// transfer is what one run of bulk came to.
type transfer struct {
	rate float64 // bit/s, of what arrived
	cpu  float64 // seconds of the forwarder's processor time for each GiB
}

// bulk measures one way from an iperf3 client to an iperf3 server.
func (b *forwardBench) bulk() error {
	iperf, err := b.startIperf()
	if err != nil {
		return err
	}
	defer iperf.stop()
	all := append(append([]forwarder{}, allForwarders...), direct)
	running, stop, err := b.startAll(all, "tcp", iperf.address, place{})
	defer stop()
	if err != nil {
		return err
	}
	for _, connections := range []int{1, 8} {
		outcomes := make([][]transfer, len(all))
		err := b.eachRound(len(all), func(i int) error {
			o, err := b.iperf(running[i], connections)
			outcomes[i] = append(outcomes[i], o)
			return err
		})
		if err != nil {
			return fmt.Errorf("bulk, %s: %w", many(connections, "connection"), err)
		}
		if b.short {
			fmt.Printf("forward: bulk, %s: all forwarders pass it\n", many(connections, "connection"))
			continue
		}
		fmt.Printf("forward: bulk by iperf3 over %s, medians of %d rounds\n", many(connections, "connection"), b.rounds)
		printBulk(all, outcomes, connections)
	}
	return nil
}

func printBulk(all []forwarder, outcomes [][]transfer, connections int) {
	rate := func(o transfer) float64 { return o.rate }
	cpu := func(o transfer) float64 { return o.cpu }
	fmt.Printf("  %-24s %10s %10s\n", "", "Gbit/s", "cpu s/GiB")
	for i, f := range all {
		fmt.Printf("  %-24s %10.2f", f.name, median(of(outcomes[i], rate))/1e9)
		if f.command != nil {
			fmt.Printf(" %10.3f", median(of(outcomes[i], cpu)))
		}
		if i > 0 {
			fmt.Printf("  ft to it: rate %s", bulkTargets[connections][f.name].verdict(ratios(of(outcomes[0], rate), of(outcomes[i], rate))))
		}
		if i > 0 && f.command != nil {
			var g goal
			if f.name == haproxy.name {
				g.most = 1
			}
			fmt.Printf("; cpu %s", g.verdict(ratios(of(outcomes[0], cpu), of(outcomes[i], cpu))))
		}
		fmt.Println()
	}
}

// of is something of each outcome.
func of[T any](outcomes []T, value func(T) float64) []float64 {
	values := make([]float64, len(outcomes))
	for i, o := range outcomes {
		values[i] = value(o)
	}
	return values
}

// startIperf starts an iperf3 server.
func (b *forwardBench) startIperf() (*forwarding, error) {
	return b.start(forwarder{"iperf3", "iperf3", func(_ *forwardBench, _, at, _ string) ([]string, error) {
		return []string{"iperf3", "-s", "-B", "127.0.0.1", "-p", portOf(at)}, nil
	}}, "tcp", "", place{})
}

// underWay is what may still be under way of a connection when iperf3 looks, which
// does not wait for it: the buffers of two legs, by tcp_wmem and tcp_rmem.
const underWay = 64 << 20

// iperf runs an iperf3 client through the forwarder.
func (b *forwardBench) iperf(r *forwarding, connections int) (transfer, error) {
	args := []string{"-c", "127.0.0.1", "-p", portOf(r.address), "-J", "-P", fmt.Sprint(connections)}
	if b.short {
		args = append(args, "-n", fmt.Sprint(connections*underWay*2))
	} else {
		args = append(args, "-t", "2")
	}
	cmd := exec.Command("iperf3", args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	watchdog := time.AfterFunc(30*time.Second, func() { cmd.Process.Kill() })
	defer watchdog.Stop()
	var said []byte
	cpu, err := r.cpuOf(func() (err error) {
		said, err = cmd.Output()
		return err
	})
	var report struct {
		Error string
		End   struct {
			Sent     struct{ Bytes float64 } `json:"sum_sent"`
			Received struct {
				Bytes float64
				Rate  float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		}
	}
	if jerr := json.Unmarshal(said, &report); err != nil || jerr != nil || report.Error != "" {
		return transfer{}, fmt.Errorf("iperf3 through %s: %w %s", r.forwarder.name, errors.Join(err, jerr), report.Error)
	}
	sent, received := report.End.Sent.Bytes, report.End.Received.Bytes
	if received > sent || received < sent-float64(connections*underWay) || received == 0 {
		return transfer{}, r.failed(fmt.Errorf("of %.0f bytes sent %.0f were received", sent, received))
	}
	return transfer{report.End.Received.Rate, cpu.Seconds() / (received / (1 << 30))}, nil
}

// bulkBesideIdle measures bulk through a forwarder of an ordinary user while
// 1,000 connections through it are idle, each of which has carried 256 KiB: a
// forwarder that keeps a pipe for each of them has none left for this one
// (pipe-user-pages-soft of proc_sys_fs(5)).
func (b *forwardBench) bulkBesideIdle() error {
	idle, most := 1000, 2*time.Second
	if b.short {
		idle, most = 50, 100*time.Millisecond
	}
	sink, err := startSink()
	if err != nil {
		return err
	}
	defer sink.close()
	all := []forwarder{ftForwarder, haproxy}
	without, with := make([][]float64, len(all)), make([][]float64, len(all))
	round := 0
	err = b.eachRound(len(all), func(i int) error {
		r, err := b.start(all[i], "tcp", sink.address(), place{ordinary: true})
		if err != nil {
			return err
		}
		defer r.stop()
		alone, beside, err := sink.compare(r.address, idle, most, round/len(all)%2 == 0)
		round++
		if err != nil {
			return r.failed(err)
		}
		without[i], with[i] = append(without[i], alone), append(with[i], beside)
		return nil
	})
	if err != nil {
		return fmt.Errorf("bulk beside idle connections: %w", err)
	}
	if b.short {
		fmt.Printf("forward: bulk beside %d idle connections: every byte arrives\n", idle)
		return nil
	}
	fmt.Printf("forward: bulk over 1 connection as an ordinary user, medians of %d rounds\n", b.rounds)
	fmt.Printf("  %-24s %10s %16s\n", "Gbit/s", "alone", fmt.Sprintf("beside %d idle", idle))
	for i, f := range all {
		g := goal{}
		if i == 0 {
			g.least = 0.9
		}
		fmt.Printf("  %-24s %10.2f %16.2f  ratio %s\n", f.name, median(without[i])/1e9, median(with[i])/1e9, g.verdict(ratios(with[i], without[i])))
	}
	return nil
}

// sink takes what comes, of any number of connections.
type sink struct {
	listener net.Listener
	received atomic.Int64
	open     sync.WaitGroup
}

func startSink() (*sink, error) {
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	listener, err := config.Listen(context.Background(), "tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &sink{listener: listener}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			s.open.Go(func() { s.take(conn) })
		}
	}()
	return s, nil
}

func (s *sink) address() string { return s.listener.Addr().String() }

func (s *sink) close() {
	s.listener.Close()
	s.open.Wait()
}

func (s *sink) take(conn net.Conn) {
	defer conn.Close()
	buffer := make([]byte, 64<<10)
	for {
		n, err := conn.Read(buffer)
		s.received.Add(int64(n))
		if err != nil {
			return
		}
	}
}

// compare measures bulk through the forwarder with and without idle connections,
// bit/s of what arrived, and checks that all did.
func (s *sink) compare(address string, idle int, duration time.Duration, aloneFirst bool) (alone, beside float64, err error) {
	if aloneFirst {
		if alone, err = s.bulk(address, duration); err != nil {
			return 0, 0, err
		}
	}
	conns, err := s.openIdle(address, idle)
	if err == nil {
		beside, err = s.bulk(address, duration)
	}
	for _, c := range conns {
		c.Close()
	}
	if err == nil && !aloneFirst {
		alone, err = s.bulk(address, duration)
	}
	return alone, beside, err
}

func (s *sink) openIdle(address string, n int) (conns []net.Conn, err error) {
	const first = 256 << 10
	s.received.Store(0)
	for range n {
		conn, err := net.Dial("tcp4", address)
		if err != nil {
			return conns, err
		}
		conns = append(conns, conn)
		if _, err := conn.Write(make([]byte, first)); err != nil {
			return conns, err
		}
	}
	return conns, s.await(int64(n) * first)
}

// await waits until so many bytes have arrived.
func (s *sink) await(bytes int64) error {
	for deadline := time.Now().Add(20 * time.Second); s.received.Load() != bytes; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("%d bytes arrived of %d", s.received.Load(), bytes)
		}
	}
	return nil
}

func (s *sink) bulk(address string, duration time.Duration) (rate float64, err error) {
	conn, err := net.Dial("tcp4", address)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	s.received.Store(0)
	began := time.Now()
	conn.SetWriteDeadline(began.Add(duration + 20*time.Second))
	block, sent := make([]byte, 128<<10), int64(0)
	for time.Since(began) < duration {
		n, err := conn.Write(block)
		sent += int64(n)
		if err != nil {
			return 0, err
		}
	}
	rate = float64(s.received.Load()) * 8 / time.Since(began).Seconds()
	return rate, s.await(sent)
}
