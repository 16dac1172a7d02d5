package sockdiag

import (
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/printable"
)

// Sizes and numbers in include/uapi/linux/unix_diag.h, all in the byte order
// of the machine.
const (
	unixRequestSize = 24 // struct unix_diag_req
	unixMessageSize = 16 // struct unix_diag_msg

	showName   = 0x01 // UDIAG_SHOW_NAME
	showPeer   = 0x04 // UDIAG_SHOW_PEER
	showQueues = 0x10 // UDIAG_SHOW_RQLEN
	showMemory = 0x20 // UDIAG_SHOW_MEMINFO
	showUID    = 0x40 // UDIAG_SHOW_UID

	unixDiagName   = 0 // UNIX_DIAG_NAME, sun_path without padding
	unixDiagPeer   = 2 // UNIX_DIAG_PEER, __u32 inode
	unixDiagQueues = 4 // UNIX_DIAG_RQLEN, struct unix_diag_rqlen: two __u32
	unixDiagMemory = 5 // UNIX_DIAG_MEMINFO, __u32 each
	unixDiagUID    = 7 // UNIX_DIAG_UID, __u32
)

func (q Query) unixRequest(wanted kinds) request {
	return request{
		what: "unix", module: "unix_diag", kind: unix.SOCK_DIAG_BY_FAMILY,
		body: q.unixBody(),
		decode: func(s *Socket, b []byte) (bool, error) {
			*s = Socket{}
			err := decodeUnix(s, b)
			return wanted.has(s.Protocol), err
		},
	}
}

func (q Query) unixBody() []byte {
	show := uint32(showName | showPeer | showQueues | showUID)
	if q.Details&WithMemory != 0 {
		show |= showMemory
	}
	b := make([]byte, unixRequestSize)
	b[0] = unix.AF_UNIX
	binary.NativeEndian.PutUint32(b[4:], uint32(q.States.orAll()))
	binary.NativeEndian.PutUint32(b[12:], show)
	return b
}

// decodeUnix fills s from a struct unix_diag_msg and its attributes.
func decodeUnix(s *Socket, b []byte) error {
	if len(b) < unixMessageSize {
		return truncated("unix_diag message", len(b), unixMessageSize)
	}
	switch kind := b[1]; kind {
	case unix.SOCK_STREAM:
		s.Protocol = fivetuple.Unix
	case unix.SOCK_DGRAM:
		s.Protocol = fivetuple.Unixgram
	case unix.SOCK_SEQPACKET:
		s.Protocol = fivetuple.Seqpacket
	default:
		return fmt.Errorf("unix_diag message of unknown socket type %d", kind)
	}
	s.State = fivetuple.State(b[2])
	s.Inode = binary.NativeEndian.Uint32(b[4:])
	s.Cookie = cookie(b[8:])
	return decodeUnixAttributes(s, b[unixMessageSize:])
}

func decodeUnixAttributes(s *Socket, b []byte) error {
	for len(b) > 0 {
		kind, value, rest, err := nextAttribute(b)
		if err != nil {
			return err
		}
		if want := unixAttributeSize(kind); len(value) < want {
			return truncated(fmt.Sprintf("unix_diag attribute %d", kind), len(value), want)
		}
		switch kind {
		case unixDiagName:
			s.Name = unixName(value)
		case unixDiagPeer:
			s.PeerInode = binary.NativeEndian.Uint32(value)
		case unixDiagQueues:
			s.RecvQueue = binary.NativeEndian.Uint32(value)
			s.SendQueue = binary.NativeEndian.Uint32(value[4:])
		case unixDiagMemory:
			s.Memory = decodeMemory(value)
		case unixDiagUID:
			s.UID = binary.NativeEndian.Uint32(value)
		}
		b = rest
	}
	return nil
}

// unixAttributeSize is the least size of an attribute's value.
func unixAttributeSize(kind uint16) int {
	switch kind {
	case unixDiagPeer, unixDiagUID:
		return 4
	case unixDiagQueues:
		return 8
	}
	return 0
}

// unixName writes the bytes of sun_path as [Socket.Name] describes. An
// abstract name begins with NUL and may contain more; a path ends at the first.
func unixName(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	if b[0] == 0 {
		return "@" + printable.Escape(string(b[1:]))
	}
	return escaped(b)
}

// escaped is the text up to the first NUL, fit to be shown.
func escaped(b []byte) string {
	text, _, _ := strings.Cut(string(b), "\x00")
	return printable.Escape(text)
}
