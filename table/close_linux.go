package table

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple/owner"
)

// shutDown ends both directions of the socket through a holder's descriptor, if
// that is still the row's socket.
func shutDown(r *Row, h owner.Holder) error {
	fd, err := h.OpenFD(h.FD)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil || r.Cookie != 0 && cookie != r.Cookie {
		return fmt.Errorf("descriptor %d of %v is another socket by now: %w", h.FD, h.Process, errors.Join(err, fs.ErrNotExist))
	}
	if err := unix.Shutdown(fd, unix.SHUT_RDWR); err != nil {
		return fmt.Errorf("shut down descriptor %d of %v: %w", h.FD, h.Process, err)
	}
	return nil
}
