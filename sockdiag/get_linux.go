package sockdiag

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
)

func get(ctx context.Context, s Socket, details Details) (Socket, error) {
	got, err := lookUp(ctx, s, details)
	if errors.Is(err, fs.ErrNotExist) && !isConnection(s) {
		got, err = search(ctx, s, details)
	}
	if err != nil {
		return Socket{}, fmt.Errorf("read socket %s again: %w", s.Tuple(), err)
	}
	return got, nil
}

var errGone = fmt.Errorf("it is gone: %w", fs.ErrNotExist)

// isConnection says whether the kernel can tell a socket by its ends alone.
func isConnection(s Socket) bool { return s.Protocol == fivetuple.TCP && s.Remote.IsValid() }

// lookUp asks for one socket, without a dump, where the kernel can do that.
func lookUp(ctx context.Context, s Socket, details Details) (got Socket, err error) {
	q := Query{Details: details}
	d := &decoder{details: details, zones: zoneNames{}}
	var body []byte
	var decode func([]byte) error
	switch {
	case s.Protocol == fivetuple.TCP || s.Protocol == fivetuple.UDP || s.Protocol == fivetuple.UDPLite:
		id := s
		if s.Protocol != fivetuple.TCP { // udp_dump_one takes the ends the other way round
			id.Local, id.Remote = s.Remote, s.Local
		}
		body = exactRequest(id, q.extensions())
		decode = func(b []byte) error {
			got = Socket{Protocol: s.Protocol}
			return d.inet(&got, b)
		}
	case s.Protocol.IsUnix():
		body = q.unixBody()
		binary.NativeEndian.PutUint32(body[8:], s.Inode)
		putCookie(body[16:], s.Cookie)
		decode = func(b []byte) error {
			got = Socket{}
			return decodeUnix(&got, b)
		}
	default:
		return Socket{}, errGone
	}
	c, err := dial()
	if err != nil {
		return Socket{}, err
	}
	defer c.close()
	err = c.do(ctx, unix.SOCK_DIAG_BY_FAMILY, body, decode)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESTALE) {
		err = errGone
	}
	return got, err
}

// search goes through the sockets of the same protocol and ports.
func search(ctx context.Context, s Socket, details Details) (got Socket, err error) {
	q := Query{Protocols: []fivetuple.Network{s.Protocol}, Details: details}
	if s.Protocol.IsIP() || s.Protocol == fivetuple.MPTCP || s.Protocol == fivetuple.UDPLite || s.Protocol == fivetuple.SCTP {
		q.LocalPort, q.RemotePort = s.Local.Port(), s.Remote.Port()
	}
	if s.Protocol == fivetuple.TCP {
		q.States = ListeningOrBound
	}
	err = errGone
	dumpErr := dump(ctx, q, func(found *Socket) bool {
		if s.Cookie != 0 && found.Cookie == s.Cookie || s.Cookie == 0 && found.Inode == s.Inode {
			got, err = *found, nil
		}
		return err != nil
	})
	if dumpErr != nil && err != nil {
		err = dumpErr
	}
	return got, err
}

// exactRequest asks for the one socket that has the ends and the cookie.
func exactRequest(s Socket, extensions uint8) []byte {
	family := uint8(unix.AF_INET)
	if s.Local.Addr().Is6() || s.Remote.Addr().Is6() {
		family = unix.AF_INET6
	}
	b := Query{}.inetRequest(family, map[fivetuple.Network]uint32{
		fivetuple.TCP: unix.IPPROTO_TCP, fivetuple.UDP: unix.IPPROTO_UDP, fivetuple.UDPLite: unix.IPPROTO_UDPLITE,
	}[s.Protocol])
	b[2] = extensions
	binary.BigEndian.PutUint16(b[8:], s.Local.Port())
	binary.BigEndian.PutUint16(b[10:], s.Remote.Port())
	copy(b[12:], s.Local.Addr().AsSlice())
	copy(b[28:], s.Remote.Addr().AsSlice())
	binary.NativeEndian.PutUint32(b[44:], s.Interface)
	putCookie(b[48:], s.Cookie)
	return b
}

// putCookie is the inverse of [cookie]. 0 asks for any (INET_DIAG_NOCOOKIE).
func putCookie(b []byte, cookie uint64) {
	if cookie == 0 {
		cookie = math.MaxUint64
	}
	binary.NativeEndian.PutUint32(b, uint32(cookie))
	binary.NativeEndian.PutUint32(b[4:], uint32(cookie>>32))
}
