// Package ancillary is what travels beside the bytes of a Unix socket: who the
// peer is, and open files, which the receiver then holds as well.
//
// It stands on Linux's SO_PEERCRED and SCM_RIGHTS, see unix(7), and works on
// connections of the networks unix, unixpacket and unixgram. On other systems
// each function returns an error that wraps [errors.ErrUnsupported].
package ancillary

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/printable"
)

// MaxFiles is how many files one message takes (SCM_MAX_FD of the kernel's
// include/net/scm.h).
const MaxFiles = 253

var (
	// ErrNoCredentials is returned for a socket that has no peer the kernel
	// knows of: one that is not connected, an unixgram one unless it is of a
	// socketpair(2), or one that is not of the Unix domain.
	ErrNoCredentials = errors.New("the kernel knows no peer of this socket")

	// ErrFilesLost is returned when the kernel could not hand over all files of a message.
	ErrFilesLost = errors.New("files of the message are lost: this process may open no more (ulimit -n), or a security module keeps them from it")

	errEmpty = errors.New("needs at least one byte, with which files travel")
)

// Credentials are the process that was at the other end of a Unix socket when
// it connected, listened, or made the pair. It may have handed the socket on.
type Credentials struct {
	PID int    // 0: not known, the process is in a PID namespace that is not seen from here
	UID uint32 // effective; 65534 (kernel.overflowuid) for a user that this user namespace does not map
	GID uint32 // effective, as UID
}

// String returns "pid 12 uid 1000 gid 1000".
func (c Credentials) String() string {
	if c.PID == 0 {
		return fmt.Sprintf("pid unknown uid %d gid %d", c.UID, c.GID)
	}
	return fmt.Sprintf("pid %d uid %d gid %d", c.PID, c.UID, c.GID)
}

// PeerCredentials returns who is at the other end of a connection (SO_PEERCRED,
// unix(7)), or an error that wraps [ErrNoCredentials]. Of a listener it returns
// the process that made it listen.
func PeerCredentials(c syscall.Conn) (Credentials, error) {
	cred, err := peerCredentials(c)
	if err != nil {
		return Credentials{}, fmt.Errorf("peer credentials: %w", err)
	}
	return cred, nil
}

// SendFiles sends b, of at least one byte, and with it up to [MaxFiles] open
// files, which stay open here. On a stream they come with the first byte of b; if
// the rest of it fails the peer may have them already. The connection's write
// deadline holds, and a unixgram one must be connected.
func SendFiles(c *net.UnixConn, b []byte, files ...*os.File) error {
	var err error
	switch {
	case len(b) == 0:
		err = errEmpty
	case len(files) > MaxFiles:
		err = fmt.Errorf("a message takes %d files at most: send the others with another", MaxFiles)
	default:
		err = sendFiles(c, b, files)
	}
	if err != nil {
		return fmt.Errorf("send %d files over %s: %w", len(files), name(c), err)
	}
	return nil
}

// ReceiveFiles reads into b, of at least one byte, as c.Read does, and returns
// the files that came with these bytes: close-on-exec, and the caller's to close.
// Bytes that have files begin a read, so those of two messages never come as one.
// It returns [io.EOF] at the end of a unix or unixpacket connection; an empty
// record on the latter cannot be told from the end.
//
// If not all files could be had, the error wraps [ErrFilesLost]; if b is too short
// for the record (unixpacket, unixgram) it wraps [io.ErrShortBuffer]. Both return
// the n bytes that came and close the files.
//
// A plain Read of c closes the files of a peer that sends some: the kernel does.
func ReceiveFiles(c *net.UnixConn, b []byte) (n int, files []*os.File, err error) {
	if len(b) == 0 {
		err = errEmpty
	} else {
		n, files, err = receiveFiles(c, b)
	}
	if err != nil && err != io.EOF {
		err = fmt.Errorf("receive files over %s: %w", name(c), err)
	}
	return n, files, err
}

// Describe says in a few words what an open file is, to be shown to a person:
// "regular file /tmp/a (12 bytes)", "TCP socket listening on 127.0.0.1:80",
// "read end of a pipe". Names that do not print are escaped.
func Describe(f *os.File) string {
	text, err := describe(f)
	if err != nil {
		return fmt.Sprintf("unknown file: %v", err)
	}
	return printable.Escape(text)
}

// name is the connection's end that has a name.
func name(c *net.UnixConn) string {
	for _, a := range []net.Addr{c.LocalAddr(), c.RemoteAddr()} {
		if at := fivetuple.AddressOf(a); !at.IsZero() {
			return a.Network() + " " + printable.Escape(at.String())
		}
	}
	return "an unnamed Unix socket"
}
