package inspect

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/table"
)

// withDescriptor calls fn with a duplicate of an owner's descriptor, and closes it.
func withDescriptor(row table.Row, fn func(fd int) error) error {
	fd, err := open(row)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return fn(fd)
}

// open tries the owners in turn: one may be looked into where another may not.
func open(row table.Row) (int, error) {
	if len(row.Owners) == 0 {
		return -1, withoutOwner(row)
	}
	var failed, refused error
	for _, o := range row.Owners {
		fd, err := o.OpenFD(o.FD)
		if err == nil {
			if err = isSocket(fd, row); err == nil {
				return fd, nil
			}
			unix.Close(fd)
		}
		if errors.Is(err, fs.ErrPermission) {
			refused = err
		}
		failed = err
	}
	if refused != nil { // with more rights it would have worked
		return -1, refused
	}
	return -1, failed
}

// withoutOwner says why no process is known that holds the socket.
func withoutOwner(row table.Row) error {
	switch {
	case row.State == fivetuple.StateTimeWait || row.State == fivetuple.StateSynRecv || row.State == fivetuple.StateNewSynRecv:
		return fmt.Errorf("no process holds a socket in %s, and only a holder's descriptor tells its options: %w", row.State, fs.ErrNotExist)
	case row.Inode == 0:
		return fmt.Errorf("no process holds the socket (not yet accepted, or already closed by its process), and only a holder's descriptor tells its options: %w", fs.ErrNotExist)
	}
	return fmt.Errorf("the process that holds the socket is not known, and its options are read through its descriptor: run as root, or with CAP_SYS_PTRACE: %w", fs.ErrPermission)
}

// isSocket checks that the descriptor is the socket of the row. The number may
// have been closed and used again since the table was read.
func isSocket(fd int, row table.Row) error {
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return otherSocket(row, os.NewSyscallError("getsockopt SO_COOKIE", err))
	}
	if cookie == row.Cookie {
		return nil
	}
	// The row of a Multipath TCP socket is a subflow, with a cookie of its own
	// and the inode of the socket that the process holds.
	have, err := sockopt.Identify(fd)
	var st unix.Stat_t
	if err == nil && (have&sockopt.MPTCP != 0 || row.Cookie == 0) && unix.Fstat(fd, &st) == nil && uint32(st.Ino) == row.Inode {
		return nil
	}
	return otherSocket(row, nil)
}

func otherSocket(row table.Row, why error) error {
	err := fmt.Errorf("the descriptor of %s is another socket by now: try again: %w", row.Tuple(), fs.ErrNotExist)
	if why != nil {
		err = fmt.Errorf("%w: %w", err, why)
	}
	return err
}

// options reads the options of a socket and those of a new one beside it.
func options(fd int) ([]Option, error) {
	have, err := sockopt.GetAll(fd)
	if err != nil {
		return nil, err
	}
	return compared(have, freshLike(fd)), nil
}

// freshLike returns the options of a new socket of the same domain, type and
// protocol, none if it cannot be made (raw and packet sockets need CAP_NET_RAW).
func freshLike(fd int) []sockopt.Setting {
	var kind [3]int
	for i, option := range []int{unix.SO_DOMAIN, unix.SO_TYPE, unix.SO_PROTOCOL} {
		var err error
		if kind[i], err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, option); err != nil {
			return nil
		}
	}
	fresh, err := unix.Socket(kind[0], kind[1]|unix.SOCK_CLOEXEC, kind[2])
	if err != nil {
		return nil
	}
	defer unix.Close(fresh)
	all, err := sockopt.GetAll(fresh)
	if err != nil {
		return nil
	}
	return all
}

// siocOutqNsd is SIOCOUTQNSD of include/uapi/linux/sockios.h.
const siocOutqNsd = 0x894b

// queues asks a connected or datagram socket; a listening one has none.
func queues(fd int, network fivetuple.Network, state fivetuple.State) *Queues {
	if state == fivetuple.StateListen {
		return nil
	}
	var q Queues
	var err error
	if q.Recv, err = unix.IoctlGetInt(fd, unix.SIOCINQ); err != nil {
		return nil
	}
	if q.Send, err = unix.IoctlGetInt(fd, unix.SIOCOUTQ); err != nil {
		return nil
	}
	if network == fivetuple.TCP || network == fivetuple.MPTCP {
		if q.NotSent, err = unix.IoctlGetInt(fd, siocOutqNsd); err != nil {
			return nil
		}
	}
	return &q
}
