package table

import (
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple/owner"
)

// shutDown ends both directions of the socket through a holder's descriptor, if
// that is still the row's socket.
func shutDown(r *Row, h owner.Holder) error {
	fd, err := h.Open()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if !isSocket(fd, r) {
		return fmt.Errorf("descriptor %d of %v is another socket by now: %w", h.FD, h.Process, fs.ErrNotExist)
	}
	if err := unix.Shutdown(fd, unix.SHUT_RDWR); err != nil {
		return fmt.Errorf("shut down descriptor %d of %v: %w", h.FD, h.Process, err)
	}
	return nil
}

// isSocket tells by the cookie, or by the inode of a socket that the table gives none.
func isSocket(fd int, r *Row) bool {
	if r.Cookie != 0 {
		cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
		return err == nil && cookie == r.Cookie
	}
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK && r.Inode != 0 && st.Ino == uint64(r.Inode)
}
