package lease

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestSharedLeaseEndsWithItsOwner(t *testing.T) {
	s := newShared(t, Options{})
	owner, process := newOwner(t)
	acquire(t, s, Request{Port: 50000, Owner: owner, TTL: time.Hour})
	acquire(t, s, Request{Port: 50001, Owner: owner})
	acquire(t, s, Request{Port: 50002})
	refused(t, s, Request{Port: 50000}, ErrLeased)
	wantPorts(t, s, 50000, 50001, 50002)
	process.Process.Kill()
	if err := waitState(process.Process.Pid, unix.WEXITED); err != nil { // it is a zombie: nobody has reaped it
		t.Fatal(err)
	}
	wantPorts(t, s, 50002)
	acquire(t, s, Request{Port: 50000})
	process.Wait()
	wantPorts(t, s, 50000, 50002)
	acquire(t, s, Request{Port: 50001})
}

// A later process with the pid of the owner keeps no lease alive.
func TestSharedOwnerIsPidAndStart(t *testing.T) {
	s := newShared(t, Options{})
	owner, _ := newOwner(t)
	slash := strings.LastIndexByte(owner.Start, '/')
	ticks, err := strconv.ParseUint(owner.Start[slash+1:], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	for i, start := range []string{
		fmt.Sprint(owner.Start[:slash+1], ticks-1),
		fmt.Sprint(owner.Start[:slash+1], ticks+1),
		"another-boot/1/2/" + fmt.Sprint(ticks),
	} {
		earlier := owner
		earlier.Start = start
		port := 50000 + uint16(i)
		acquire(t, s, Request{Port: port, Owner: earlier})
		acquire(t, s, Request{Port: port, Owner: owner})
	}
	wantPorts(t, s, 50000, 50001, 50002)
	// Processes of another container cannot be seen, so they are believed to live.
	boot, _, _ := strings.Cut(owner.Start, "/")
	hidden := owner
	hidden.Start = boot + "/container/2/1"
	acquire(t, s, Request{Port: 50003, Owner: hidden})
	refused(t, s, Request{Port: 50003}, ErrLeased)
	wantPorts(t, s, 50000, 50001, 50002, 50003)
}

// What the owner has forked is not the owner.
func TestSharedLeaseOfAnOwnerThatForksAndExits(t *testing.T) {
	s := newShared(t, Options{})
	cmd := exec.Command("sh", "-c", "exec 3<&0; cat <&3 & echo $!; wait")
	r, w, err := os.Pipe() // no StdinPipe, which Wait closes: the child would end, too
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	cmd.Stdin = r
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	start(t, cmd)
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Kill(child, unix.SIGKILL) })
	owner, err := OwnerOf(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	acquire(t, s, Request{Port: 50000, Owner: owner})
	wantPorts(t, s, 50000)
	kill(cmd)
	if err := unix.Kill(child, 0); err != nil {
		t.Fatalf("the child of the owner: %v", err)
	}
	wantPorts(t, s)
	acquire(t, s, Request{Port: 50000})
}

// restart makes of everything in the file what the machine left before it was
// started anew.
func restart(t *testing.T, s *Shared) {
	t.Helper()
	boot := bootOf(s.view)
	edit(t, s, "UPDATE leases SET namespace = replace(namespace, ?1, 'before'), start = replace(start, ?1, 'before'), boot = 'before', "+
		"expires_since = 1000 * 3600e9, ended_since = 1000 * 3600e9", boot) // that clock had run for long
	edit(t, s, "UPDATE leases SET expires_since = NULL WHERE expires IS NULL")
	edit(t, s, "UPDATE leases SET ended_since = NULL WHERE ended IS NULL")
	edit(t, s, "UPDATE machine SET main_namespace = replace(main_namespace, ?1, 'before')", boot)
}

func TestSharedDetachedLeasesOutliveTheMachine(t *testing.T) {
	s := newShared(t, Options{})
	for _, r := range []Request{
		{Port: 50000, Detached: true, TTL: time.Hour},
		{Port: 50001, Detached: true, TTL: time.Minute},
		{Port: 50002},
		{Port: 50003, TTL: time.Hour},
	} {
		acquire(t, s, r)
	}
	freed := acquire(t, s, Request{Name: "api", Port: 50005})
	release(t, s, freed)
	restart(t, s)
	setClock(t, s, 2*time.Minute) // the time of day goes on while it is off
	refused(t, s, Request{Port: 50000}, ErrLeased)
	for _, port := range []uint16{50001, 50002, 50003} {
		acquire(t, s, Request{Port: port})
	}
	wantPorts(t, s, 50000, 50001, 50002, 50003)
	if got := acquire(t, s, Request{Name: "api"}); got.Port != freed.Port {
		t.Errorf("got port %d after the restart, want %d, which the name had last", got.Port, freed.Port)
	}
	l := list(t, s)[0]
	if left := time.Until(l.Expires); left < 57*time.Minute || left > 58*time.Minute {
		t.Errorf("the detached lease lasts %v more, want 58 minutes", left)
	}
	l, err := s.Renew(t.Context(), l, 3*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pass(t, s, 3*time.Hour-time.Second)
	wantPorts(t, s, 50000, 50001, 50002, 50003, freed.Port)
	release(t, s, l)
	wantPorts(t, s, 50001, 50002, 50003, freed.Port)
}

// Before anything is changed the leases are the same: nobody has to ask for a port to see them.
func TestSharedLeasesAreListedAfterARestartOfTheMachine(t *testing.T) {
	s := newShared(t, Options{})
	acquire(t, s, Request{Port: 50000, Detached: true, TTL: time.Hour})
	restart(t, s)
	wantPorts(t, s, 50000)
	r, err := OpenReadOnly(t.Context(), s.path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	wantPorts(t, r, 50000)
	if _, err := s.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantPorts(t, r, 50000)
}

func TestSharedSettingTheClockEndsNothingAndProlongsNothing(t *testing.T) {
	for _, ahead := range []time.Duration{-48 * time.Hour, 48 * time.Hour} {
		t.Run(fmt.Sprint(ahead), func(t *testing.T) {
			s := newShared(t, Options{})
			l := acquire(t, s, Request{Port: 50001, TTL: time.Hour})
			release(t, s, acquire(t, s, Request{Range: onePort, Name: "api"}))
			setClock(t, s, ahead)
			if got := list(t, s); len(got) != 1 {
				t.Errorf("got %v, want the lease", got)
			} else if left := time.Until(got[0].Expires); left > time.Hour || left < 59*time.Minute {
				t.Errorf("the lease lasts %v more, want an hour", left)
			}
			refused(t, s, Request{Range: onePort, Name: "db"}, ErrExhausted) // at rest
			setClock(t, s, ahead)
			pass(t, s, time.Minute)
			acquire(t, s, Request{Range: onePort, Name: "db"})
			pass(t, s, 58*time.Minute)
			wantPorts(t, s, 50000, 50001)
			if _, err := s.Renew(t.Context(), l, time.Hour); err != nil {
				t.Error(err)
			}
			setClock(t, s, ahead)
			pass(t, s, time.Hour-time.Second)
			wantPorts(t, s, 50000, 50001)
			pass(t, s, time.Second)
			wantPorts(t, s, 50000)
		})
	}
}
