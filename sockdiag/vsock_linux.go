package sockdiag

import (
	"encoding/binary"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
)

// Sizes in include/uapi/linux/vm_sockets_diag.h, all in the byte order of the machine.
const (
	vsockRequestSize = 24 // struct vsock_diag_req
	vsockMessageSize = 32 // struct vsock_diag_msg
)

func (q Query) vsockRequest() request {
	b := make([]byte, vsockRequestSize)
	b[0] = unix.AF_VSOCK
	binary.NativeEndian.PutUint32(b[4:], uint32(q.States.orAll()))
	return request{what: "vsock", module: "vsock_diag", kind: unix.SOCK_DIAG_BY_FAMILY, body: b, decode: func(s *Socket, b []byte) (bool, error) {
		*s = Socket{}
		return true, decodeVsock(s, b)
	}}
}

// decodeVsock fills s from a struct vsock_diag_msg. The kernel tells no owner.
func decodeVsock(s *Socket, b []byte) error {
	if len(b) < vsockMessageSize {
		return truncated("vsock_diag message", len(b), vsockMessageSize)
	}
	s.Protocol = fivetuple.Vsock
	s.State = fivetuple.State(b[2])
	s.Name = vsockNumber(binary.NativeEndian.Uint32(b[4:])) + ":" + vsockNumber(binary.NativeEndian.Uint32(b[8:]))
	s.Inode = binary.NativeEndian.Uint32(b[20:])
	s.Cookie = cookie(b[24:])
	return nil
}

// vsockNumber writes a CID or port; all ones stand for any (vsock(7)).
func vsockNumber(n uint32) string {
	if n == unix.VMADDR_CID_ANY {
		return "*"
	}
	return strconv.FormatUint(uint64(n), 10)
}
