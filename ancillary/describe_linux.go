package ancillary

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
)

func describe(f *os.File) (text string, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return "", err
	}
	var describeErr error
	err = raw.Control(func(fd uintptr) { text, describeErr = describeDescriptor(int(fd)) })
	return text, cmp.Or(err, describeErr)
}

func describeDescriptor(fd int) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", os.NewSyscallError("fstat", err)
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return "", os.NewSyscallError("fcntl F_GETFL", err)
	}
	path := pathOf(fd)
	if flags&unix.O_PATH != 0 {
		return "path of " + fileKind(st) + " " + path, nil
	}
	if kind, ok := strings.CutPrefix(path, "anon_inode:"); ok {
		return strings.Trim(kind, "[]"), nil // "eventfd", "pidfd", "bpf-map"
	}
	if name, ok := strings.CutPrefix(path, "/memfd:"); ok {
		return fmt.Sprintf("memory file %s (%d bytes)", strings.TrimSuffix(name, " (deleted)"), st.Size), nil
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFSOCK:
		return describeSocket(fd)
	case unix.S_IFREG:
		return fmt.Sprintf("%s %s (%d bytes)", fileKind(st), path, st.Size), nil
	case unix.S_IFIFO:
		return describePipe(flags, path), nil
	}
	return fileKind(st) + " " + path, nil
}

// pathOf is the name that the kernel has for an open file, proc_pid_fd(5).
func pathOf(fd int) string {
	path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return "of unknown name"
	}
	return path
}

func fileKind(st unix.Stat_t) string {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "regular file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFCHR:
		return "character device"
	case unix.S_IFBLK:
		return "block device"
	case unix.S_IFIFO:
		return "pipe"
	case unix.S_IFLNK:
		return "symbolic link"
	case unix.S_IFSOCK:
		return "socket file"
	}
	return "file of an unknown kind"
}

func describePipe(flags int, path string) string {
	what := "a pipe"
	if !strings.HasPrefix(path, "pipe:") {
		what = "the named pipe " + path
	}
	switch flags & unix.O_ACCMODE {
	case unix.O_RDONLY:
		return "read end of " + what
	case unix.O_WRONLY:
		return "write end of " + what
	}
	return "both ends of " + what
}

func describeSocket(fd int) (string, error) {
	var option [4]int
	for i, name := range []int{unix.SO_DOMAIN, unix.SO_TYPE, unix.SO_PROTOCOL, unix.SO_ACCEPTCONN} {
		var err error
		if option[i], err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, name); err != nil {
			return "", os.NewSyscallError("getsockopt", err)
		}
	}
	kind := socketKind(option[0], option[1], option[2])
	local := address(unix.Getsockname(fd))
	peer, err := unix.Getpeername(fd)
	remote := address(peer, err)
	if _, isUnix := peer.(*unix.SockaddrUnix); isUnix && err == nil && remote == "" {
		remote = "an unnamed socket"
	}
	switch {
	case option[3] != 0:
		return fmt.Sprintf("%s socket listening on %s", kind, local), nil
	case remote != "" && local == "":
		return fmt.Sprintf("%s socket connected to %s", kind, remote), nil
	case remote != "":
		return fmt.Sprintf("%s socket connected from %s to %s", kind, local, remote), nil
	case local != "":
		return fmt.Sprintf("%s socket bound to %s", kind, local), nil
	}
	return kind + " socket, not bound or connected", nil
}

func socketKind(domain, kind, protocol int) string {
	switch domain {
	case unix.AF_UNIX:
		return map[int]string{unix.SOCK_STREAM: "Unix stream", unix.SOCK_DGRAM: "Unix datagram", unix.SOCK_SEQPACKET: "Unix seqpacket"}[kind]
	case unix.AF_INET, unix.AF_INET6:
		return inetKind(kind, protocol)
	case unix.AF_VSOCK:
		return "vsock"
	case unix.AF_NETLINK:
		return "netlink"
	case unix.AF_PACKET:
		return "packet"
	}
	return fmt.Sprintf("address family %d", domain)
}

func inetKind(kind, protocol int) string {
	switch {
	case kind == unix.SOCK_RAW:
		return "raw IP"
	case protocol == unix.IPPROTO_TCP:
		return "TCP"
	case protocol == unix.IPPROTO_MPTCP:
		return "Multipath TCP"
	case protocol == unix.IPPROTO_UDP:
		return "UDP"
	case protocol == unix.IPPROTO_ICMP, protocol == unix.IPPROTO_ICMPV6:
		return "ICMP"
	}
	return fmt.Sprintf("IP protocol %d", protocol)
}

// address is "" where a socket has none.
func address(sa unix.Sockaddr, err error) string {
	if err != nil {
		return ""
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return inetAddress(netip.AddrFrom4(sa.Addr), sa.Port)
	case *unix.SockaddrInet6:
		return inetAddress(netip.AddrFrom16(sa.Addr), sa.Port)
	case *unix.SockaddrUnix:
		return unixName(sa.Name)
	case *unix.SockaddrVM:
		if sa.CID == math.MaxUint32 {
			return fmt.Sprintf("*:%d", sa.Port)
		}
		return fmt.Sprintf("%d:%d", sa.CID, sa.Port)
	}
	return ""
}

// unixName takes away what package unix calls a socket without a name.
func unixName(name string) string {
	if name == "@" {
		return ""
	}
	return name
}

func inetAddress(addr netip.Addr, port int) string {
	if port == 0 && addr.IsUnspecified() {
		return ""
	}
	return fivetuple.IPAddress(netip.AddrPortFrom(addr, uint16(port))).String()
}
