package prefork

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const counterSize = 8

// shareCounters makes memory for the counters in which each worker has pages of its own.
func (g *Group) shareCounters() (*os.File, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ran {
		return nil, errors.New("a group runs once")
	}
	size := slotSize(g.Counters)
	f, err := newMemory(g.Workers * size)
	if err != nil {
		return nil, err
	}
	if g.counters, err = mapCounters(f, 0, g.Workers*size); err != nil {
		f.Close()
		return nil, err
	}
	g.ran, g.stride = true, size/8
	return f, nil
}

// keepCounts lets go of the shared memory, and not of what was counted.
func (g *Group) keepCounts() {
	g.mu.Lock()
	defer g.mu.Unlock()
	kept := make([]atomic.Uint64, len(g.counters))
	for i := range kept {
		kept[i].Store(g.counters[i].Load())
	}
	unmapCounters(g.counters)
	g.counters = kept
}

// slotSize is the bytes of one worker's counters: whole pages, so that it maps its
// own alone and shares no cache line.
func slotSize(counters int) int {
	page := os.Getpagesize()
	return max(1, (counters*counterSize+page-1)/page) * page
}

// newMemory makes a file in memory that nobody can make shorter, under which
// counting would end in SIGBUS.
func newMemory(size int) (*os.File, error) {
	fd, err := unix.MemfdCreate("ft-counters", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "counters")
	if err = f.Truncate(int64(size)); err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("memory for counters: %w", err)
	}
	return f, nil
}

// mapCounters maps a part of the memory.
func mapCounters(f *os.File, offset, size int) ([]atomic.Uint64, error) {
	b, err := unix.Mmap(int(f.Fd()), int64(offset), size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	return unsafe.Slice((*atomic.Uint64)(unsafe.Pointer(&b[0])), size/counterSize), nil
}

func unmapCounters(c []atomic.Uint64) {
	_ = unix.Munmap(unsafe.Slice((*byte)(unsafe.Pointer(&c[0])), len(c)*counterSize))
}
