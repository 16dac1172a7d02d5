package join

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple/secure"
)

// unsent is how many bytes the kernel holds for the peer of e: written and not
// acknowledged (tcp(7), SIOCOUTQ), or not read by it (unix(7)). It moves while a write
// to a slow peer has not returned yet. 0 for what has no such queue.
func unsent(e End) (n int) {
	conn, ok := e.(net.Conn)
	if !ok {
		return 0
	}
	c, ok := secure.NetConn(conn).(syscall.Conn)
	if !ok {
		return 0
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	raw.Control(func(fd uintptr) {
		n, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ)
	})
	return n
}
