package prefork

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

// kit is what workers get.
type kit struct {
	alive, ours *os.File // the read end of the pipe, and the parent's
	memory      *os.File
	sockets     [][]*os.File
	counters    int
}

func (g *Group) newKit() (*kit, error) {
	switch {
	case g.Command == nil:
		return nil, errNoCommand
	case g.Workers < 1:
		return nil, fmt.Errorf("%d workers: want at least one", g.Workers)
	case g.Counters < 0:
		return nil, fmt.Errorf("%d counters", g.Counters)
	case g.Sockets != nil && len(g.Sockets) != g.Workers:
		return nil, fmt.Errorf("sockets for %d workers, of which there are %d", len(g.Sockets), g.Workers)
	}
	k := &kit{counters: g.Counters, sockets: make([][]*os.File, g.Workers)}
	if err := k.fill(g); err != nil {
		k.close()
		return nil, err
	}
	return k, nil
}

func (k *kit) fill(g *Group) (err error) {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return os.NewSyscallError("pipe2", err)
	}
	k.alive, k.ours = os.NewFile(uintptr(pipe[0]), "alive"), os.NewFile(uintptr(pipe[1]), "alive")
	for n, sockets := range g.Sockets {
		for _, f := range sockets {
			c, err := duplicate(f)
			if err != nil {
				return fmt.Errorf("a socket of worker %d: %w", n, err)
			}
			k.sockets[n] = append(k.sockets[n], c)
		}
	}
	k.memory, err = g.shareCounters()
	return err
}

// equip adds to a command what a worker needs.
func (k *kit) equip(cmd *exec.Cmd, n int) {
	first := 3 + len(cmd.ExtraFiles)
	cmd.ExtraFiles = append(cmd.ExtraFiles, k.alive, k.memory)
	cmd.ExtraFiles = append(cmd.ExtraFiles, k.sockets[n]...)
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = append(cmd.Env, passing{n, first, len(k.sockets[n]), k.counters}.String())
	if cmd.WaitDelay == 0 { // what a worker has left behind may hold its output open
		cmd.WaitDelay = time.Second
	}
}

func (k *kit) close() {
	for _, f := range []*os.File{k.alive, k.ours, k.memory} {
		f.Close() // a nil file says that it is closed
	}
	for n := range k.sockets {
		k.closeSockets(n)
	}
}

// closeSockets closes the copies of worker n's, once no other takes its place.
func (k *kit) closeSockets(n int) {
	for _, f := range k.sockets[n] {
		f.Close()
	}
	k.sockets[n] = nil
}

// duplicate makes a copy that starting a process does not set to blocking mode, as
// it does a file of package net: that mode is the open file description's, and so
// that of workers which have it already. Nor does the copy wake this process when
// clients come.
func duplicate(f *os.File) (copied *os.File, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	cerr := raw.Control(func(fd uintptr) {
		var c int
		if c, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3); err != nil {
			err = os.NewSyscallError("fcntl", err)
			return
		}
		copied, err = quietFile(c, f.Name())
	})
	return copied, cmp.Or(cerr, err)
}

// quietFile makes a file of a descriptor for which the runtime does not poll: that
// is decided by the mode that it has at this moment.
func quietFile(fd int, name string) (*os.File, error) {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err == nil {
		err = unix.SetNonblock(fd, false)
	}
	if err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	f := os.NewFile(uintptr(fd), name)
	return f, os.NewSyscallError("fcntl", unix.SetNonblock(fd, flags&unix.O_NONBLOCK != 0))
}

// passing says in the environment what a worker was given: from descriptor first on
// the end of a pipe, the memory of the counters, and the sockets.
type passing struct{ n, first, sockets, counters int }

const variable = "FT_PREFORK"

func (p passing) String() string {
	return fmt.Sprintf("%s=%d:%d:%d:%d", variable, p.n, p.first, p.sockets, p.counters)
}

func (p *passing) parse(s string) error {
	n, err := fmt.Sscanf(s, "%d:%d:%d:%d", &p.n, &p.first, &p.sockets, &p.counters)
	if err != nil || n != 4 || p.n < 0 || p.first < 3 || p.sockets < 0 || p.counters < 0 || p.String() != variable+"="+s {
		return fmt.Errorf("%s=%q, which no parent has set", variable, s)
	}
	return nil
}
