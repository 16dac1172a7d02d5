package owner

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// walker is a BPF program that the kernel calls for every thread
// (Documentation/bpf/bpf_iterators.rst), and the memory that it writes to.
//
// It needs CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN, in the first user namespace;
// Linux 6.4; and a kernel that describes its types (CONFIG_DEBUG_INFO_BTF).
type walker struct {
	link     int
	area     []byte // areaHeader, then room for records
	capacity int
}

// record is a socket as the program writes it.
type record struct {
	files  uint64 // the address of the table of descriptors
	cookie uint64 // of the socket; 0 if it has none yet
	pid    uint32
	thread uint32
	fd     uint32
	inode  uint32 // 0: look at this thread in another way, it was changing
}

const (
	recordSize = int(unsafe.Sizeof(record{}))

	// The area begins with the number of records that there should be, in 8 bytes,
	// then how many sockets are wanted, and their inodes in 8 bytes each.
	areaWanted = 8
	areaHeader = areaWanted + 8*(1+wantedFew)

	// wantedFew is how many inodes the program looks for at most. The other
	// sockets then cost a quarter.
	wantedFew = 22 // which keeps the records at multiples of 64
)

// newWalker loads the program of one kernel, with room for so many records.
func newWalker(l layout, capacity int) (*walker, error) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		return nil, errors.ErrUnsupported // see instruction
	}
	size := areaHeader + capacity*recordSize
	area, err := bpf(unix.BPF_MAP_CREATE, &struct{ kind, key, value, entries, flags uint32 }{
		unix.BPF_MAP_TYPE_ARRAY, 4, uint32(size), 1, unix.BPF_F_MMAPABLE})
	if err != nil {
		return nil, fmt.Errorf("create a BPF map: %w", err)
	}
	defer unix.Close(area)
	w := &walker{capacity: capacity}
	if w.area, err = unix.Mmap(area, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, fmt.Errorf("map a BPF map: %w", err)
	}
	if w.link, err = loadAndAttach(l.function, l.program(area, capacity)); err != nil {
		unix.Munmap(w.area)
		return nil, err
	}
	return w, nil
}

func loadAndAttach(function uint32, program []instruction) (link int, err error) {
	// The kernel lets only programs that may be used under the GPL read its memory. This one, the
	// instructions that layout.program writes, may be used under the BSD licence
	// or the GPL, as its authors say here. That says nothing of the rest.
	license := []byte("Dual BSD/GPL\x00")
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&program[0])
	pin.Pin(&license[0])
	fd, err := bpf(unix.BPF_PROG_LOAD, &struct { // union bpf_attr of bpf(2)
		kind, count            uint32
		instructions, license  uintptr
		log                    [2]uint64
		version, flags         uint32
		name                   [16]byte
		ifindex, attachAs, btf uint32
		_                      [3]uint64
		_, function            uint32
	}{
		kind: unix.BPF_PROG_TYPE_TRACING, attachAs: unix.BPF_TRACE_ITER, function: function,
		count: uint32(len(program)), instructions: uintptr(unsafe.Pointer(&program[0])),
		license: uintptr(unsafe.Pointer(&license[0])),
	})
	if err != nil {
		return -1, fmt.Errorf("load a BPF program: %w", err)
	}
	defer unix.Close(fd)
	link, err = bpf(unix.BPF_LINK_CREATE, &struct{ program, target, attachAs, flags uint32 }{
		program: uint32(fd), attachAs: unix.BPF_TRACE_ITER})
	if err != nil {
		return -1, fmt.Errorf("attach a BPF program: %w", err)
	}
	return link, nil
}

func (w *walker) close() {
	unix.Close(w.link)
	unix.Munmap(w.area)
}

// walk looks for the sockets with these inodes, of which there are wantedFew at most,
// or for all if there are none. It returns the records, in the order of threads and descriptors, and how many
// there should be: more than there are where the capacity does not suffice. They are overwritten by
// the next walk.
func (w *walker) walk(ctx context.Context, few []uint32) (records []record, want int, err error) {
	clear(w.area[:areaHeader])
	head := unsafe.Slice((*uint64)(unsafe.Pointer(&w.area[areaWanted])), 1+wantedFew)
	head[0] = uint64(len(few))
	for i := range head[1:] {
		head[1+i] = math.MaxUint64 // no inode
	}
	for i, inode := range few {
		head[1+i] = uint64(inode)
	}
	// An iterator sees the PID namespace of the thread that creates it.
	fd, err := bpf(unix.BPF_ITER_CREATE, &struct{ link, flags uint32 }{link: uint32(w.link)})
	if err != nil {
		return nil, 0, fmt.Errorf("walk over the processes: %w", err)
	}
	defer unix.Close(fd)
	for {
		// Nothing is to be read, but the walk is done while it is tried. After a
		// million threads the kernel wants to be asked again.
		_, err := unix.Read(fd, make([]byte, 64))
		if err == nil {
			break
		}
		if err != unix.EAGAIN && err != unix.EINTR {
			return nil, 0, fmt.Errorf("walk over the processes: %w", err)
		}
		if ctx.Err() != nil {
			return nil, 0, ctx.Err()
		}
	}
	want = int(binary.NativeEndian.Uint64(w.area))
	return unsafe.Slice((*record)(unsafe.Pointer(&w.area[areaHeader])), min(want, w.capacity)), want, nil
}

// bpf is bpf(2), which returns a descriptor.
func bpf[T any](command int, attr *T) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(command), uintptr(unsafe.Pointer(attr)), unsafe.Sizeof(*attr))
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}
