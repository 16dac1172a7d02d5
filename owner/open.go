package owner

import "fmt"

// OpenFD duplicates descriptor fd of the process, which needs Linux 5.6 and the
// right to trace it (ptrace(2), PTRACE_MODE_ATTACH_REALCREDS). The file, socket or pipe is
// then shared with the process, and the caller closes the duplicate. The error wraps [fs.ErrNotExist] if
// the process has ended or has no such descriptor, [fs.ErrPermission] if it may not be
// looked into, and [errors.ErrUnsupported] on an older kernel.
func (p Process) OpenFD(fd int) (int, error) {
	return Holder{Process: p, FD: fd}.Open()
}

// Open duplicates the descriptor as [Process.OpenFD] does. That of a thread with
// descriptors of its own needs Linux 6.9.
func (h Holder) Open() (int, error) {
	fd, err := open(h)
	if err != nil {
		return -1, fmt.Errorf("open descriptor %d of %v: %w", h.FD, h.Process, err)
	}
	return fd, nil
}
