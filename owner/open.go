package owner

import "fmt"

// Open duplicates the descriptor, which needs Linux 5.6 and the right to trace the
// process (ptrace(2), PTRACE_MODE_ATTACH_REALCREDS), and 6.9 if it is that of a thread with
// descriptors of its own. The file, socket or pipe is then shared with the process, and the
// caller closes the duplicate. The error wraps [fs.ErrNotExist] if the process has ended or has
// no such descriptor any more, [fs.ErrPermission] if it may not be looked into, and
// [errors.ErrUnsupported] on an older kernel.
func (h Holder) Open() (int, error) {
	fd, err := open(h)
	if err != nil {
		return -1, fmt.Errorf("open descriptor %d of %v: %w", h.FD, h.Process, err)
	}
	return fd, nil
}

// OpenFD is Open for another descriptor of the same process, or thread if it has
// descriptors of its own.
func (h Holder) OpenFD(fd int) (int, error) {
	h.FD = fd
	return h.Open()
}
