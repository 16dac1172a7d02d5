package prefork

import (
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func inherited() (int, []*os.File, *Counters, error) {
	value, set := os.LookupEnv(variable)
	if !set {
		return 0, nil, nil, fmt.Errorf("take what a worker is given: %w (%s is not set)", ErrNotWorker, variable)
	}
	if err := os.Unsetenv(variable); err != nil {
		return 0, nil, nil, err
	}
	n, sockets, counters, err := takeOver(value)
	if err != nil {
		return 0, nil, nil, fmt.Errorf("take what a worker is given: %w", err)
	}
	return n, sockets, counters, nil
}

func takeOver(value string) (n int, sockets []*os.File, counters *Counters, err error) {
	var p passing
	if err := p.parse(value); err != nil {
		return 0, nil, nil, err
	}
	alive, memory, firstSocket := p.first, p.first+1, p.first+2
	for fd := p.first; fd < firstSocket+p.sockets; fd++ {
		want := uint32(unix.S_IFSOCK)
		switch fd {
		case alive:
			want = unix.S_IFIFO
		case memory:
			want = unix.S_IFREG
		}
		if err := checkDescriptor(fd, want); err != nil {
			return 0, nil, nil, fmt.Errorf("%s=%s: descriptor %d %w", variable, value, fd, err)
		}
	}
	// Only now: an *os.File closes its descriptor when it is dropped.
	shared := os.NewFile(uintptr(memory), "counters")
	defer shared.Close()
	if counters, err = workerCounters(shared, p); err != nil {
		return 0, nil, nil, err
	}
	if err := unix.SetNonblock(alive, true); err != nil {
		return 0, nil, nil, os.NewSyscallError("fcntl", err)
	}
	go endWith(os.NewFile(uintptr(alive), "alive"))
	for i := range p.sockets {
		sockets = append(sockets, os.NewFile(uintptr(firstSocket+i), fmt.Sprintf("socket %d", i)))
	}
	return p.n, sockets, counters, nil
}

func checkDescriptor(fd int, kind uint32) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT != kind {
		return fmt.Errorf("has the mode %o, want %o", st.Mode&unix.S_IFMT, kind)
	}
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC)
	return os.NewSyscallError("fcntl", err)
}

func workerCounters(f *os.File, p passing) (*Counters, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	size := slotSize(p.counters)
	if need := int64(p.n+1) * int64(size); info.Size() < need {
		return nil, fmt.Errorf("the memory for counters has %d bytes, want at least %d", info.Size(), need)
	}
	values, err := mapCounters(f, p.n*size, size)
	if err != nil {
		return nil, err
	}
	return &Counters{values[:p.counters:p.counters]}, nil
}

// endWith ends this process when the parent is gone, which closes its end of the
// pipe. Unlike PR_SET_PDEATHSIG(2const) that does not hang on the thread that
// started this process.
func endWith(alive *os.File) {
	_, _ = alive.Read(make([]byte, 1)) // nothing is ever written
	_ = unix.Kill(os.Getpid(), syscall.SIGTERM)
	time.Sleep(orphanGrace)
	_ = unix.Kill(os.Getpid(), syscall.SIGKILL)
}
