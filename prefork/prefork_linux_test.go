package prefork

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestClientsOfAKilledWorkersBacklogAreServedByItsSuccessor(t *testing.T) {
	f, address := tcp(t, "127.0.0.1:0")
	other, undisturbed := tcp(t, "127.0.0.1:0")
	g := &Group{Command: command("worker"), Workers: 2, Sockets: [][]*os.File{{f}, {other}}, Counters: counters}
	run(t, g)
	first, bystander := connect(t, address), connect(t, undisturbed)
	suspend(t, first.process)
	const waiting = 20
	var clients []*client
	for range waiting {
		c, err := dial(address)
		ok(t, err)
		defer c.Close()
		clients = append(clients, c)
	}
	ok(t, syscall.Kill(first.process, syscall.SIGKILL))
	for _, c := range clients {
		if err := c.greeted(); err != nil || c.process == first.process {
			t.Fatalf("a client that waited: served by %d: %v", c.process, err)
		}
		ok(t, c.echo())
	}
	if _, err := first.r.ReadByte(); err == nil {
		t.Error("a client of the dead worker is still served")
	}
	ok(t, bystander.echo())
	if again := connect(t, undisturbed); again.process != bystander.process {
		t.Errorf("the other worker was started anew")
	}
	if got := g.Worker(0, accepted); got != 1+waiting {
		t.Errorf("worker 0 and its successor counted %d, want %d", got, 1+waiting)
	}
	if got := g.Total(accepted); got != 1+waiting+2 {
		t.Errorf("all counted %d, want %d", got, 1+waiting+2)
	}
}

func TestKillingAWorkerUnderLoadDisturbsOnlyItsOwnClients(t *testing.T) {
	const workers, kills = 3, 5
	g := &Group{Command: command("worker"), Workers: workers, Counters: counters}
	address := "127.0.0.1:0"
	for range workers {
		var f *os.File
		f, address = tcp(t, address)
		g.Sockets = append(g.Sockets, []*os.File{f})
	}
	start := g.Command
	started := make(chan time.Time, workers+kills)
	g.Command = func(n int) *exec.Cmd {
		started <- time.Now()
		return start(n)
	}
	stop := run(t, g)

	var served, broken atomic.Int64
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				switch err := roundTrip(address); {
				case err == nil:
					served.Add(1)
				case errors.Is(err, syscall.ECONNREFUSED):
					t.Errorf("refused: %v", err)
				default:
					broken.Add(1)
				}
			}
		})
	}
	for range workers {
		<-started
	}
	var replaced, answered time.Duration
	for range kills {
		victim := connect(t, address)
		begin := time.Now()
		ok(t, syscall.Kill(victim.process, syscall.SIGKILL))
		replaced = max(replaced, (<-started).Sub(begin))
		eventually(t, "there is a successor", func() bool {
			c := connect(t, address)
			c.Close()
			return c.worker == victim.worker && c.process != victim.process
		})
		answered = max(answered, time.Since(begin))
	}
	cancel()
	wg.Wait()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if replaced > time.Second {
		t.Errorf("a successor took %v", replaced)
	}
	// A worker's clients are those it had accepted: all of them it has counted, but
	// perhaps the last before each kill, and each broken one is of them.
	lost := g.Total(accepted) - g.Total(ended)
	if got := broken.Load(); got > int64(lost)+kills {
		t.Errorf("%d clients lost their connection, and the workers that were killed had %d", got, lost)
	}
	t.Logf("%d clients served, %d of killed workers lost theirs; a successor is started within %v and answers within %v", served.Load(), broken.Load(), replaced, answered)
}

func roundTrip(address string) error {
	c, err := dial(address)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.greeted(); err != nil {
		return err
	}
	return c.echo()
}

func TestClientsAreRefusedOnceTheGroupStops(t *testing.T) {
	f, address := tcp(t, "127.0.0.1:0")
	other, stubborn := tcp(t, "127.0.0.1:0")
	g := &Group{Workers: 2, Sockets: [][]*os.File{{f}, {other}}, Counters: counters, Command: func(n int) *exec.Cmd {
		return command([]string{"worker", "stubborn"}[n])(n)
	}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	connect(t, address)
	last := connect(t, stubborn)
	f.Close()
	cancel()
	eventually(t, "clients are refused", func() bool {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	select {
	case err := <-done:
		t.Errorf("the group had ended before: %v", err)
	default:
	}
	ok(t, syscall.Kill(last.process, syscall.SIGKILL))
	if err := <-done; err != nil {
		t.Errorf("run: %v", err)
	}
}

func TestDatagramsWaitForTheSuccessor(t *testing.T) {
	f, address := udp(t, "127.0.0.1:0")
	g := &Group{Command: command("worker"), Workers: 1, Sockets: [][]*os.File{{f}}, Counters: counters}
	run(t, g)
	c, err := net.Dial("udp", address)
	ok(t, err)
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	ask := func() (pid int) {
		t.Helper()
		b := make([]byte, 100)
		n, err := c.Read(b)
		ok(t, err)
		var worker int
		_, err = fmt.Sscan(string(b[:n]), &worker, &pid)
		ok(t, err)
		return pid
	}
	fmt.Fprint(c, "one")
	first := ask()
	suspend(t, first)
	const waiting = 10
	for range waiting {
		fmt.Fprint(c, "more")
	}
	ok(t, syscall.Kill(first, syscall.SIGKILL))
	for range waiting {
		if pid := ask(); pid == first {
			t.Error("answered by the dead worker")
		}
	}
}

func TestWorkersGetTheirOwnSocketsBesideTheCommandsFiles(t *testing.T) {
	const workers = 3
	g := &Group{Workers: workers, Counters: counters}
	var addresses []string
	for range workers {
		one, a := tcp(t, "127.0.0.1:0")
		two, b := tcp(t, "127.0.0.1:0")
		g.Sockets = append(g.Sockets, []*os.File{one, two})
		addresses = append(addresses, a, b)
	}
	extra, err := os.Open(os.DevNull)
	ok(t, err)
	t.Cleanup(func() { extra.Close() }) // after the group's end
	g.Command = func(n int) *exec.Cmd {
		cmd := command("worker")(n)
		cmd.ExtraFiles = []*os.File{extra}
		cmd.Env = append(cmd.Env, "LISTEN_FDS=1")
		return cmd
	}
	run(t, g)
	for i, address := range addresses {
		if c := connect(t, address); c.worker != i/2 {
			t.Errorf("socket %d is served by worker %d", i, c.worker)
		}
	}
}

// Several workers may accept from one socket. Starting one must not take O_NONBLOCK
// from it, which they share.
func TestStartingAWorkerLeavesASharedSocketNonBlocking(t *testing.T) {
	f, address := tcp(t, "127.0.0.1:0")
	serving := make(chan struct{})
	g := &Group{Workers: 2, Sockets: [][]*os.File{{f}, {f}}, Counters: counters, Command: func(n int) *exec.Cmd {
		if n == 0 {
			return command("worker")(n)
		}
		<-serving
		return command("idle")(n)
	}}
	run(t, g)
	connect(t, address)
	close(serving)
	eventually(t, "the other worker has started", func() bool { return g.Worker(1, accepted) == 1 })
	raw, err := f.SyscallConn()
	ok(t, err)
	ok(t, raw.Control(func(fd uintptr) {
		flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
		if err != nil || flags&unix.O_NONBLOCK == 0 {
			t.Errorf("flags of the socket: %x, %v: want O_NONBLOCK", flags, err)
		}
	}))
}

func TestNoWorkerOutlivesItsParent(t *testing.T) {
	for _, tt := range []struct {
		name string
		role string
		end  func(pid int) error
		want string
	}{
		{"kill -9", "worker", func(pid int) error { return syscall.Kill(pid, syscall.SIGKILL) }, "signal: killed"},
		{"kill -9, and workers that ignore SIGTERM", "stubborn", func(pid int) error { return syscall.Kill(pid, syscall.SIGKILL) }, "signal: killed"},
		{"a signal it does not handle", "worker", func(pid int) error { return syscall.Kill(pid, syscall.SIGTERM) }, "signal: terminated"},
		{"ctrl-c, which the workers get twice", "worker", func(pid int) error { return syscall.Kill(-pid, syscall.SIGINT) }, "<nil>"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			one, oneAt := tcp(t, "127.0.0.1:0")
			two, twoAt := tcp(t, "127.0.0.1:0")
			cmd := command("parent")(0)
			cmd.Args = append(cmd.Args, tt.role)
			cmd.ExtraFiles = []*os.File{one, two}
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			ok(t, cmd.Start())
			var waits []func()
			for _, at := range []string{oneAt, twoAt} {
				waits = append(waits, watch(t, connect(t, at).process))
			}
			ok(t, tt.end(cmd.Process.Pid))
			if got := fmt.Sprint(cmd.Wait()); got != tt.want {
				t.Errorf("the parent: got %s, want %s", got, tt.want)
			}
			for _, wait := range waits {
				wait()
			}
		})
	}
}

func TestAWorkerThatNeverLivesIsGivenUp(t *testing.T) {
	for _, tt := range []struct {
		name    string
		command func(int) *exec.Cmd
		want    string
	}{
		{"it fails", command("crash"), "worker 1 died within 1s of its start 10 times in a row, the last time of: exit status 3"},
		{"it ends", command("once"), "its own will (exit status 0)"},
		{"it is not there", func(int) *exec.Cmd { return exec.Command("/no/such/program") }, "no such file or directory"},
		{"there is none", func(int) *exec.Cmd { return nil }, "there is no command"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			healthy, deaths := command("worker"), 0
			g := &Group{Workers: 2, Counters: counters, Command: func(n int) *exec.Cmd {
				if n == 0 {
					return healthy(n)
				}
				return tt.command(n)
			}, OnExit: func(n int, state *os.ProcessState, err error) { deaths += n }}
			begin := time.Now()
			err := g.Run(t.Context())
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if deaths < maxYoung { // more if the machine is so busy that one lived
				t.Errorf("%d deaths, want %d", deaths, maxYoung)
			}
			if took := time.Since(begin); took < 2*time.Second {
				t.Errorf("gave up after %v, without pauses", took)
			}
			if tt.name == "it ends" && g.Total(accepted) != uint64(deaths) {
				t.Errorf("after the end: counted %d, want %d", g.Total(accepted), deaths)
			}
		})
	}
}

func TestPausesGrowToASecond(t *testing.T) {
	want := []time.Duration{0, 0, 10, 20, 40, 80, 160, 320, 640, 1000}
	for deaths, want := range want {
		if got := pauseAfter(deaths); got != want*time.Millisecond {
			t.Errorf("%d deaths: got %v, want %v", deaths, got, want*time.Millisecond)
		}
	}
}

func TestAWorkerThatDoesNotEndIsKilled(t *testing.T) {
	f, address := tcp(t, "127.0.0.1:0")
	g := &Group{Command: command("stubborn"), Workers: 1, Sockets: [][]*os.File{{f}}, Counters: counters, Grace: 50 * time.Millisecond}
	stop := run(t, g)
	gone := watch(t, connect(t, address).process)
	err := stop()
	if !errors.Is(err, ErrKilled) || !strings.Contains(err.Error(), "worker 0 did not end within 50ms of SIGTERM") {
		t.Errorf("got %v, want %v", err, ErrKilled)
	}
	gone()
}

func TestWhatAWorkerLeavesBehindHoldsNothingUp(t *testing.T) {
	pids := make(chan int, 1)
	g := &Group{Workers: 1, Command: func(int) *exec.Cmd {
		cmd := exec.Command("sh", "-c", "sleep 30 & echo $!; wait")
		cmd.Stdout = writerFunc(func(b []byte) (int, error) { // over a pipe, which the sleep keeps open
			var pid int
			fmt.Sscan(string(b), &pid)
			pids <- pid
			return len(b), nil
		})
		return cmd
	}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	sleep := <-pids
	defer syscall.Kill(sleep, syscall.SIGKILL)
	cancel()
	select {
	case err := <-done:
		ok(t, err)
	case <-time.After(patience):
		t.Error("waits for what the worker has left")
		syscall.Kill(sleep, syscall.SIGKILL)
		<-done
	}
}

type writerFunc func([]byte) (int, error)

func (w writerFunc) Write(b []byte) (int, error) { return w(b) }

func TestGroupsThatCannotBeAreRefused(t *testing.T) {
	for _, tt := range []struct {
		g    *Group
		want string
	}{
		{&Group{}, "there is no command"},
		{&Group{Command: command("worker")}, "0 workers: want at least one"},
		{&Group{Command: command("worker"), Workers: 1, Counters: -1}, "-1 counters"},
		{&Group{Command: command("worker"), Workers: 2, Sockets: make([][]*os.File, 1)}, "sockets for 1 workers, of which there are 2"},
		{&Group{Command: command("worker"), Workers: 1, Sockets: [][]*os.File{{nil}}}, "a socket of worker 0: invalid argument"},
	} {
		if err := tt.g.Run(t.Context()); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want %q", err, tt.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	g := &Group{Command: command("worker"), Workers: 1}
	ok(t, g.Run(ctx))
	if err := g.Run(ctx); err == nil {
		t.Error("a group ran twice")
	}
}

func TestCountersOutliveRunAndTakeWhatTheParentAdds(t *testing.T) {
	g := &Group{Command: command("worker"), Workers: 2, Counters: 3000} // more than a page
	if got := g.Total(2999); got != 0 {
		t.Errorf("before Run: got %d", got)
	}
	stop := run(t, g)
	eventually(t, "the group runs", func() bool {
		g.Add(0, 2999, 1)
		return g.Total(2999) > 0
	})
	before := g.Total(2999)
	g.Add(1, 2999, 5)
	ok(t, stop())
	g.Add(1, 0, 7)
	if got := g.Total(2999); got != before+5 {
		t.Errorf("after Run: got %d, want %d", got, before+5)
	}
	if got := g.Worker(1, 0); got != 7 {
		t.Errorf("after Run: got %d, want 7", got)
	}
}

func TestInheritedTellsWhatIsWrong(t *testing.T) {
	if _, _, _, err := Inherited(); !errors.Is(err, ErrNotWorker) {
		t.Errorf("no worker: got %v, want %v", err, ErrNotWorker)
	}
	null, err := os.Open(os.DevNull)
	ok(t, err)
	defer null.Close()
	for value, want := range map[string]string{
		"":                                 "which no parent has set",
		"1":                                "which no parent has set",
		"0:3:1:1:1":                        "which no parent has set",
		"0:3:1:x":                          "which no parent has set",
		"-1:3:1:1":                         "which no parent has set",
		"0:0:1:1":                          "which no parent has set",
		"0:3:-1:1":                         "which no parent has set",
		"0:1000000000:1:1":                 "descriptor 1000000000 fstat: bad file descriptor",
		"0:03:1:1":                         "which no parent has set",
		fmt.Sprintf("0:%d:1:1", null.Fd()): "has the mode 20000, want 10000",
	} {
		t.Setenv(variable, value)
		if _, _, _, err := Inherited(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", value, err, want)
		}
		if _, set := os.LookupEnv(variable); set {
			t.Errorf("%q: %s is still set", value, variable)
		}
	}
}

func FuzzPassing(f *testing.F) {
	f.Add("0:3:1:16")
	f.Fuzz(func(t *testing.T, s string) {
		var p passing
		if err := p.parse(s); err == nil && p.String() != variable+"="+s {
			t.Errorf("%q was read as %s", s, p)
		}
	})
}

func BenchmarkAdd(b *testing.B) {
	f, err := newMemory(slotSize(counters))
	ok(b, err)
	defer f.Close()
	values, err := mapCounters(f, 0, slotSize(counters))
	ok(b, err)
	defer unmapCounters(values)
	c := &Counters{values}
	b.ReportAllocs()
	for b.Loop() {
		c.Add(accepted, 1)
	}
}
