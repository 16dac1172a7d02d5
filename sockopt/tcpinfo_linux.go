package sockopt

import (
	"fmt"
	"os"
)

// GetTCPInfo reads TCP_INFO of a TCP socket; of a Multipath TCP one, that of its first subflow. For another socket the
// error wraps [ErrSocket].
func GetTCPInfo(fd int) (TCPInfo, error) {
	// Room for a kernel with a longer struct, so that Size tells.
	var buf [512]byte
	raw, err := getsockopt(fd, levelTCP, 11, buf[:])
	if err == nil {
		return DecodeTCPInfo(raw), nil
	}
	sk, idErr := Identify(fd)
	if idErr != nil {
		return TCPInfo{}, fmt.Errorf("get TCP_INFO: %w", idErr)
	}
	o := lookup("info")
	if idErr = o.admits(sk); idErr != nil {
		return TCPInfo{}, fmt.Errorf("get TCP_INFO: %w", idErr)
	}
	return TCPInfo{}, fmt.Errorf("get %w", explain(o, sk, os.NewSyscallError("getsockopt", err)))
}
