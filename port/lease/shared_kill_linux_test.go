package lease

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
)

// How many processes there are, and how many leases each takes, where not 64 and 50.
const (
	processesVariable = "FT_LEASE_TEST_PROCESSES"
	leasesVariable    = "FT_LEASE_TEST_LEASES"
)

func fromEnvironment(t *testing.T, variable string, otherwise int) int {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
	return n
}

// 64 processes take and release 50 leases each, and half of them are killed
// meanwhile. That no port is held twice is for two referees to say: whoever has
// a lease binds the port, excluding all others, and locks a file for the port.
func TestSharedKilledProcesses(t *testing.T) {
	many, each := 64, 50
	if raceEnabled { // SQLite is then thirty times slower
		many, each = 16, 20
	}
	processes, leases := fromEnvironment(t, processesVariable, many), fromEnvironment(t, leasesVariable, each)
	dir := t.TempDir()
	path := filepath.Join(dir, "ports.db")
	s := openAt(t, path, Options{})
	progress, workers := workTogether(t, path, dir, processes, leases)

	victims := workers[:processes/2]
	rand.Shuffle(len(workers), func(i, j int) { workers[i], workers[j] = workers[j], workers[i] })
	// Each is killed when so much was done by all. What the others do alone is enough to get there.
	at := make([]int, len(victims))
	for i := range at {
		at[i] = rand.IntN((processes - len(victims)) * leases)
	}
	slices.Sort(at)
	done, killed := 0, 0
	for buffer := make([]byte, 1); ; done++ {
		for killed < len(victims) && at[killed] <= done {
			victims[killed].Process.Kill()
			killed++
		}
		if _, err := progress.Read(buffer); err == io.EOF {
			break // all have ended
		} else if err != nil {
			t.Fatal(err)
		}
	}
	ended := time.Now()
	if killed != len(victims) {
		t.Errorf("%d were killed, want %d", killed, len(victims))
	}
	bySignal := 0
	for _, w := range workers {
		switch w.Wait(); {
		case w.ProcessState.Sys().(syscall.WaitStatus).Signaled():
			bySignal++
		case !w.ProcessState.Success():
			t.Errorf("process %d: %v", w.Process.Pid, w.ProcessState)
		}
	}
	if bySignal == 0 || bySignal > killed {
		t.Errorf("%d died of the signal, want at most %d", bySignal, killed)
	}

	wantPorts(t, s)
	if faults, err := os.ReadFile(filepath.Join(dir, "faults")); err == nil {
		t.Errorf("ports were held twice:\n%s", faults)
	}
	for port := playground.First; port <= playground.Last; port++ {
		for _, protocol := range []fivetuple.Network{fivetuple.TCP, fivetuple.UDP} {
			acquire(t, s, Request{Protocol: protocol, Address: any4, Port: port, Name: "after"})
		}
	}
	if took := time.Since(ended); took > 2*time.Second {
		t.Errorf("it took %v until all ports could be had again, want 2 s at most", took)
	}
	wantIntact(t, s)
	t.Logf("%d leases by %d processes, %d of them killed", done, processes, bySignal)
}

// wantIntact wants SQLite to find nothing wrong with the file.
func wantIntact(t *testing.T, s *Shared) {
	t.Helper()
	s.turn <- struct{}{}
	defer s.endTurn()
	var verdict string
	if err := s.conn.QueryRowContext(t.Context(), "PRAGMA integrity_check").Scan(&verdict); err != nil || verdict != "ok" {
		t.Errorf("integrity: got %s, %v, want ok", verdict, err)
	}
}

// playground is where the processes get their ports: few enough that they meet.
var playground = fivetuple.PortRange{First: 50000, Last: 50199}

// workTogether starts processes of the role "worker". What is returned can be
// read one byte of for each lease, until all processes have ended.
func workTogether(t *testing.T, path, dir string, processes, leases int) (progress *os.File, workers []*exec.Cmd) {
	t.Helper()
	progress, theirs, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { progress.Close() })
	for i := range processes {
		w := player(t, "worker", path, dir, strconv.Itoa(i), strconv.Itoa(leases))
		w.Stdout = theirs
		w.Stderr = os.Stderr // a file, which no goroutine has to copy
		start(t, w)
		workers = append(workers, w)
	}
	theirs.Close()
	return progress, workers
}

// work takes and releases ports of the playground, and writes a byte for each.
func work(args []string) error {
	path, dir, number, leases := args[0], args[1], intArg(args, 2), intArg(args, 3)
	// The last registry to be closed empties its log: some do that all the time, as the command does.
	opensEachTime := number%4 == 0
	options := withOwnClaims(path, Options{Wait: time.Minute, Rest: -1}) // so that they get each other's ports
	s, err := Open(context.Background(), path, options)
	if err != nil {
		return err
	}
	for taken := 0; taken < leases; {
		err := workOnce(s, dir, number)
		switch {
		case errors.Is(err, ErrLeased), errors.Is(err, ErrInUse), errors.Is(err, ErrExhausted):
			continue
		case err != nil:
			return err
		}
		taken++
		if _, err := os.Stdout.Write([]byte{0}); err != nil {
			return err
		}
		if opensEachTime {
			if err := s.Close(); err != nil {
				return err
			}
			if s, err = Open(context.Background(), path, options); err != nil {
				return err
			}
		}
	}
	return s.Close()
}

// workOnce takes a port, holds it in the face of the referees, and releases it.
func workOnce(s *Shared, dir string, number int) error {
	r := Request{Range: playground, Protocol: fivetuple.TCP}
	if rand.IntN(4) == 0 {
		r.Protocol = fivetuple.UDP
	}
	if rand.IntN(2) == 0 {
		r.Name = fmt.Sprint("worker ", number%16)
	}
	if rand.IntN(3) == 0 {
		r.Range, r.Port = fivetuple.PortRange{}, playground.First+uint16(rand.IntN(playground.Len()))
	}
	r.Address = []netip.Addr{loopback, loopback.Next(), any4}[rand.IntN(3)]
	socket := -1
	defer func() { unix.Close(socket) }()
	bind := func(_ context.Context, at netip.AddrPort) (err error) {
		unix.Close(socket)
		socket, err = bindAlone(r.Protocol, at)
		return err
	}
	if rand.IntN(2) == 0 {
		r.Bind = bind
	}
	l, err := s.Acquire(context.Background(), r)
	if err != nil {
		return err
	}
	unlock, err := lockPort(dir, l)
	if err == nil && r.Bind == nil {
		time.Sleep(time.Duration(rand.IntN(3000)) * time.Microsecond) // nothing but the lease keeps others off
		err = bind(context.Background(), l.AddrPort())
	}
	if err != nil {
		return foundHeldTwice(dir, l, err)
	}
	time.Sleep(time.Duration(rand.IntN(3000)) * time.Microsecond) // it is held
	unix.Close(socket)
	socket = -1
	unlock()
	return s.Release(context.Background(), l)
}

// bindAlone binds a socket that shares its port with none, and listens.
func bindAlone(protocol fivetuple.Network, at netip.AddrPort) (fd int, err error) {
	kind := unix.SOCK_STREAM
	if protocol.IsDatagram() {
		kind = unix.SOCK_DGRAM
	}
	if fd, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, err
	}
	err = unix.Bind(fd, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()})
	if err == nil && kind == unix.SOCK_STREAM {
		err = unix.Listen(fd, 1)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// lockPort locks one file for each address of the playground that the lease
// covers. The kernel unlocks those of a process that is killed.
func lockPort(dir string, l Lease) (unlock func(), err error) {
	var locked []*os.File
	unlock = func() {
		for _, f := range locked {
			f.Close()
		}
	}
	for _, address := range []netip.Addr{loopback, loopback.Next()} {
		if l.Address != any4 && l.Address != address {
			continue
		}
		f, err := os.OpenFile(filepath.Join(dir, fmt.Sprint(l.Protocol, "-", address, "-", l.Port)), os.O_CREATE|os.O_RDWR, 0o600)
		if err == nil {
			locked = append(locked, f)
			err = flock(f, unix.LOCK_EX|unix.LOCK_NB)
		}
		if err != nil {
			unlock()
			return nil, err
		}
	}
	return unlock, nil
}

// foundHeldTwice notes a fault where it is found though this process is killed.
func foundHeldTwice(dir string, l Lease, reason error) error {
	fault := fmt.Errorf("lease %d, %v: %v", l.Fence, l, reason)
	f, err := os.OpenFile(filepath.Join(dir, "faults"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = fmt.Fprintln(f, fault)
	}
	return errors.Join(fault, err)
}
