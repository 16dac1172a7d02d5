package activation

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// look is what takes the right of a debugger (ptrace(2)): to read a process's
// memory, and to copy its descriptor.
type look struct {
	TID     uint32
	FD      int32  // to copy, if Length is 0
	Address uint64 // of the memory
	Length  uint32 // bytes, at most maxLook
}

const maxLook = unix.SizeofSockaddrInet6

// look has another process look where the supervisor itself may not.
func (s *supervisor) look(l look) (memory []byte, fd int, err error) {
	call := "process_vm_readv"
	if l.Length == 0 {
		call = "pidfd_getfd"
	}
	var errno unix.Errno
	if s.asks < 0 {
		memory, fd, errno = l.here()
	} else if memory, fd, errno, err = l.ask(s.asks); err != nil {
		return nil, -1, fmt.Errorf("let the parent of the command look: %w", err)
	}
	if errno != 0 {
		return nil, -1, os.NewSyscallError(call, errno)
	}
	return memory, fd, nil
}

func (l look) here() (memory []byte, fd int, errno unix.Errno) {
	var err error
	if l.Length > 0 {
		memory, err = l.memory()
	} else {
		fd, err = l.descriptor()
	}
	if err != nil && !errors.As(err, &errno) {
		errno = unix.ESRCH // what /proc had of it was unlike a process
	}
	return memory, fd, errno
}

func (l look) memory() ([]byte, error) {
	b := make([]byte, min(l.Length, maxLook))
	local := []unix.Iovec{{Base: &b[0]}}
	local[0].SetLen(len(b))
	remote := []unix.RemoteIovec{{Base: uintptr(l.Address), Len: len(b)}}
	n, err := unix.ProcessVMReadv(int(l.TID), local, remote, 0)
	if err == nil && n < len(b) { // a part is not mapped
		err = unix.EFAULT
	}
	return b, err
}

func (l look) descriptor() (int, error) {
	task, err := openTask(l.TID)
	if err != nil {
		return -1, err
	}
	defer unix.Close(task)
	return unix.PidfdGetfd(task, int(l.FD), 0)
}

// ask is here, by the process at the other end.
func (l look) ask(conn int) (memory []byte, fd int, errno unix.Errno, err error) {
	question, err := binary.Append(nil, binary.NativeEndian, l)
	if err != nil {
		return nil, -1, 0, err
	}
	if err := unix.Sendto(conn, question, unix.MSG_NOSIGNAL, nil); err != nil {
		return nil, -1, 0, os.NewSyscallError("send", err)
	}
	answer, fds, err := receiveMessage(conn)
	switch {
	case err != nil:
		return nil, -1, 0, err
	case len(answer) < 4:
		return nil, -1, 0, errors.New("it has ended")
	}
	fd, errno = -1, unix.Errno(binary.NativeEndian.Uint32([]byte(answer)))
	if len(fds) > 0 {
		fd = fds[0]
	} else if l.Length == 0 && errno == 0 { // too many are open here (recvmsg(2), MSG_CTRUNC)
		errno = unix.EMFILE
	}
	return []byte(answer[4:]), fd, errno, nil
}

// answerLooks looks for the supervisor at the other end until that has ended.
func answerLooks(conn int) {
	question := make([]byte, binary.Size(look{}))
	for {
		n, err := ignoringEINTR(func() (int, error) { return unix.Read(conn, question) })
		if err != nil || n < len(question) {
			return
		}
		var l look
		if _, err := binary.Decode(question, binary.NativeEndian, &l); err != nil {
			return
		}
		memory, fd, errno := l.here()
		answer := append(binary.NativeEndian.AppendUint32(nil, uint32(errno)), memory...)
		var rights []byte
		if l.Length == 0 && errno == 0 {
			rights = unix.UnixRights(fd)
		}
		err = unix.Sendmsg(conn, answer, rights, nil, unix.MSG_NOSIGNAL)
		if rights != nil {
			unix.Close(fd)
		}
		if err != nil {
			return
		}
	}
}

// mayLookInto asks for a descriptor that no process has: the right to is tried first.
func mayLookInto(pidfd int) error {
	const none = 1<<31 - 1
	_, err := unix.PidfdGetfd(pidfd, none, 0)
	if err == unix.EBADF {
		return nil
	}
	return fmt.Errorf("the supervisor may not look into the command (%w); "+
		"kernel.yama.ptrace_scope over 1, or a container, may forbid it", os.NewSyscallError("pidfd_getfd", err))
}

// openTask returns a pidfd of the thread, since threads may have descriptors of
// their own; before Linux 6.9 of its process.
func openTask(tid uint32) (int, error) {
	fd, err := unix.PidfdOpen(int(tid), unix.PIDFD_THREAD)
	if err == unix.EINVAL {
		tgid, errStatus := field(fmt.Sprintf("/proc/%d/status", tid), "Tgid:", 10)
		if errStatus != nil {
			return -1, errStatus
		}
		fd, err = unix.PidfdOpen(tgid, 0)
	}
	return fd, err
}

// field reads a number out of a file of /proc.
func field(file, name string, base int) (int, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(text) {
		if value, ok := bytes.CutPrefix(line, []byte(name)); ok {
			n, err := strconv.ParseUint(string(bytes.TrimSpace(value)), base, 32)
			return int(n), err
		}
	}
	return 0, fmt.Errorf("read %s: no %s", file, name)
}
