package activation

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// installFilter shows every bind(2) that the calling thread, and what it will
// start, makes to the reader of the descriptor it returns (seccomp_unotify(2)).
// The filter cannot be removed. After an error there may be one all the same: the
// thread must end.
func installFilter() (notify int, err error) {
	audit, ok := auditArch[runtime.GOARCH]
	if !ok {
		return -1, fmt.Errorf("filter bind: %w on %s", errors.ErrUnsupported, runtime.GOARCH)
	}
	program := bindFilter(audit)
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	seccomp := func(flags uintptr) error {
		fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER|flags,
			uintptr(unsafe.Pointer(&prog)))
		if errno != 0 {
			return errno
		}
		notify = int(fd)
		return nil
	}
	// Once its bind is being answered a thread takes no signals but fatal ones (Linux 5.19).
	// Before that a signal may break a bind off after its descriptor was replaced; the
	// bind is then made again, upon the socket that was put there.
	install := func() error {
		err := seccomp(unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV)
		if err == unix.EINVAL {
			err = seccomp(0)
		}
		return err
	}
	err = install()
	if err == unix.EACCES { // neither CAP_SYS_ADMIN nor no_new_privs
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return -1, fmt.Errorf("filter bind: %w", os.NewSyscallError("prctl", err))
		}
		err = install()
	}
	switch {
	case err == unix.EBUSY:
		return -1, fmt.Errorf("filter bind: %w: this process already runs under such a filter, as in a run within a run", os.NewSyscallError("seccomp", err))
	case err != nil:
		return -1, fmt.Errorf("filter bind: %w: it needs Linux 5.9, and a container that allows it", os.NewSyscallError("seccomp", err))
	}
	// Linux 5.0 to 5.8 can notify but not replace a descriptor. No bind has the number 0.
	if err := ioctl(notify, unix.SECCOMP_IOCTL_NOTIF_ADDFD, unsafe.Pointer(&addFD{srcFD: uint32(notify)})); err != unix.ENOENT {
		unix.Close(notify)
		return -1, fmt.Errorf("filter bind: put a socket in place: %w: it needs Linux 5.9", os.NewSyscallError("ioctl", err))
	}
	return notify, nil
}

var auditArch = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}

// bindFilter is the classic BPF program over struct seccomp_data: nr at 0, arch at
// 4. The system calls of other ABIs have other numbers and pass: 32-bit ones by
// their arch, x32 by bit 30 of nr.
func bindFilter(audit uint32) []unix.SockFilter {
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	skipUnless := func(value uint32, skip uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: value, Jf: skip}
	}
	answer := func(action uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: action}
	}
	return []unix.SockFilter{
		load(4), skipUnless(audit, 3),
		load(0), skipUnless(unix.SYS_BIND, 1),
		answer(unix.SECCOMP_RET_USER_NOTIF),
		answer(unix.SECCOMP_RET_ALLOW),
	}
}

// notification is struct seccomp_notif of include/uapi/linux/seccomp.h, 80 bytes.
type notification struct {
	id    uint64
	tid   uint32 // as this process sees it, 0 if it does not
	flags uint32
	nr    int32
	arch  uint32
	ip    uint64
	args  [6]uint64
}

// response is struct seccomp_notif_resp, 24 bytes.
type response struct {
	id    uint64
	val   int64
	err   int32
	flags uint32
}

// addFD is struct seccomp_notif_addfd, 24 bytes.
type addFD struct {
	id         uint64
	flags      uint32
	srcFD      uint32
	newFD      uint32
	newFDFlags uint32
}

// ioctl returns the bare error number, and tries again upon EINTR.
func ioctl(fd int, request uint, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(arg))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno
		}
	}
}
