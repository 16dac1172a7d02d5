package doctor

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// diagnostics are those of one kind of sockets (sock_diag(7)).
type diagnostics struct {
	request []byte // that lists none, or few
	level   Level  // of their lack
	effect  string
	module  string
}

var (
	tcpDiag    = diagnostics{inetRequest(unix.IPPROTO_TCP), Problem, "ft cannot list TCP sockets.", "tcp_diag"}
	udpDiag    = diagnostics{inetRequest(unix.IPPROTO_UDP), Warning, "ft cannot list UDP sockets.", "udp_diag"}
	unixDiag   = diagnostics{familyRequest(unix.AF_UNIX, 24), Warning, "ft cannot list Unix sockets.", "unix_diag"}
	mptcpDiag  = diagnostics{mptcpRequest(), Note, "Multipath TCP connections cannot be told from plain ones.", "mptcp_diag"}
	rawDiag    = diagnostics{inetRequest(unix.IPPROTO_RAW), Note, "Raw sockets cannot be listed over netlink.", "raw_diag"}
	packetDiag = diagnostics{familyRequest(unix.AF_PACKET, 20), Note, "Packet sockets cannot be listed over netlink.", "af_packet_diag"}
)

// inetRequest is a struct inet_diag_req_v2 that asks for sockets in none of the states.
func inetRequest(protocol uint8) []byte {
	b := make([]byte, 56)
	b[0], b[1] = unix.AF_INET, protocol
	return b
}

// mptcpRequest says the protocol, which does not fit its byte, in an attribute.
func mptcpRequest() []byte {
	const attribute = 3 // INET_DIAG_REQ_PROTOCOL, since Linux 5.9
	b := inetRequest(unix.IPPROTO_MPTCP & 0xff)
	b = binary.NativeEndian.AppendUint16(b, 8)
	b = binary.NativeEndian.AppendUint16(b, attribute)
	return binary.NativeEndian.AppendUint32(b, unix.IPPROTO_MPTCP)
}

// familyRequest is a struct unix_diag_req, for no state, or packet_diag_req.
func familyRequest(family uint8, size int) []byte {
	b := make([]byte, size)
	b[0] = family
	return b
}

func diag(d diagnostics) func(*machine) ([]Finding, error) {
	return func(*machine) ([]Finding, error) {
		err := ask(netlink.Header{Type: unix.SOCK_DIAG_BY_FAMILY, Flags: netlink.Request | netlink.Dump}, d.request)
		switch {
		case err == nil:
			return fine("yes")
		case errors.Is(err, unix.ENOENT) || unsupported(err):
			return bad(d.level, "no", d.effect, "modprobe "+d.module+"; if there is none, another kernel")
		}
		return nil, err
	}
}

// diagDestroy asks to destroy a socket that cannot exist: no socket has local
// and remote port 0. ENOENT says that it was looked for.
func diagDestroy(*machine) ([]Finding, error) {
	const sockDestroy = 21 // SOCK_DESTROY, linux/sock_diag.h
	err := ask(netlink.Header{Type: sockDestroy, Flags: netlink.Request | netlink.Acknowledge}, inetRequest(unix.IPPROTO_TCP))
	switch {
	case errors.Is(err, unix.ENOENT):
		return fine("yes")
	case unsupported(err):
		return bad(Note, "no", "ft kill cannot destroy a connection, and falls back to shutting it down through its process.",
			"another kernel, with CONFIG_INET_DIAG_DESTROY")
	}
	return nil, err
}

// unsupported says whether the kernel does not know what was asked.
func unsupported(err error) bool {
	return slices.ContainsFunc([]error{
		unix.EOPNOTSUPP, unix.EINVAL, unix.ENOSYS, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT, unix.ENOPROTOOPT, unix.ESOCKTNOSUPPORT,
	}, func(known error) bool { return errors.Is(err, known) })
}

// ask sends one request of socket diagnostics and reads the answer.
func ask(header netlink.Header, request []byte) error {
	c, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		return fmt.Errorf("open sock_diag netlink: %w", err)
	}
	defer c.Close()
	if _, err := c.Execute(netlink.Message{Header: header, Data: request}); err != nil {
		return fmt.Errorf("ask sock_diag: %w", err)
	}
	return nil
}

const btfPath = "sys/kernel/btf/vmlinux"

const btfFix = "another kernel, with CONFIG_DEBUG_INFO_BTF"

func btf(m *machine) ([]Finding, error) {
	_, err := os.Stat(filepath.Join(m.root, btfPath))
	switch {
	case err == nil:
		return fine("yes")
	case errors.Is(err, fs.ErrNotExist):
		return bad(Note, "no", "BPF programs cannot know the kernel's types: owners of sockets are found by reading /proc.", btfFix)
	}
	return nil, renamed(err, "/"+btfPath)
}

// bpfIterators looks for the function that stands for the iterator over the
// descriptors of tasks, among the names of the BTF.
func bpfIterators(m *machine) ([]Finding, error) {
	types, err := os.ReadFile(filepath.Join(m.root, btfPath))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, renamed(err, "/"+btfPath)
	}
	if bytes.Contains(types, []byte("\x00bpf_iter_task_file\x00")) {
		return fine("yes")
	}
	return bad(Note, "no", "Owners of sockets are found by reading /proc, which is slower with many descriptors.", "a kernel from Linux 5.8 on, with CONFIG_BPF_SYSCALL and BTF")
}

// pidfdGetfd copies a descriptor of this process.
func pidfdGetfd(*machine) ([]Finding, error) {
	const effect = "ft inspect cannot read or set the options of other processes' sockets."
	pidfd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err == nil {
		defer unix.Close(pidfd)
		var fd int
		if fd, err = unix.PidfdGetfd(pidfd, pidfd, 0); err == nil {
			unix.Close(fd)
			return fine("yes")
		}
	}
	if errors.Is(err, unix.ENOSYS) {
		return bad(Note, "no", effect, "a kernel from Linux 5.6 on; or a container whose seccomp filter allows it")
	}
	return bad(Note, "no: "+err.Error(), effect, "a container whose seccomp filter allows pidfd_getfd")
}

func mptcp(*machine) ([]Finding, error) {
	const effect = "Programs that ask for Multipath TCP fail, or fall back to TCP."
	err := opens(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
	switch {
	case err == nil:
		return fine("yes")
	case errors.Is(err, unix.ENOPROTOOPT):
		return bad(Note, "off", effect, "sysctl -w net.mptcp.enabled=1")
	case unsupported(err):
		return bad(Note, "no", effect, "another kernel, with CONFIG_MPTCP")
	}
	return nil, os.NewSyscallError("socket", err)
}

// ipv6 binds a UDP port of ::1, which nothing is sent to.
func ipv6(*machine) ([]Finding, error) {
	const effect = "Programs that listen on :: or ::1, or connect to IPv6 addresses, fail."
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return bad(Note, "no: "+err.Error(), effect, "start the kernel without ipv6.disable=1")
	}
	defer unix.Close(fd)
	err = unix.Bind(fd, &unix.SockaddrInet6{Addr: [16]byte{15: 1}})
	switch {
	case err == nil:
		return fine("yes")
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return bad(Note, "off: there is no ::1", effect, "sysctl -w net.ipv6.conf.all.disable_ipv6=0")
	}
	return nil, os.NewSyscallError("bind", err)
}

func tun(*machine) ([]Finding, error) {
	const device = "/dev/net/tun"
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
		return fine("yes")
	}
	if errors.Is(err, fs.ErrPermission) {
		return fine("yes, not for this user")
	}
	return bad(Note, fmt.Sprintf("no: open %s: %v", device, err), "Tunnels, such as those of VPNs, cannot be made.",
		"modprobe tun; start a container with --device="+device)
}

// packetSockets opens one of no protocol, which gets no packets.
func packetSockets(*machine) ([]Finding, error) {
	err := opens(unix.AF_PACKET, unix.SOCK_DGRAM, 0)
	switch {
	case err == nil:
		return fine("yes")
	case errors.Is(err, unix.EPERM):
		return fine("yes, with CAP_NET_RAW")
	case unsupported(err):
		return bad(Note, "no", "Packets cannot be captured.", "modprobe af_packet; if there is none, another kernel")
	}
	return nil, os.NewSyscallError("socket", err)
}

func congestionControl(m *machine) ([]Finding, error) {
	used, err := m.sysctlText("net.ipv4.tcp_congestion_control")
	if err != nil {
		return nil, err
	}
	available, err := m.sysctlText("net.ipv4.tcp_available_congestion_control")
	if err != nil {
		return nil, err
	}
	return fine(fmt.Sprintf("%s, of %s", used, available))
}

func udpSegmentation(*machine) ([]Finding, error) {
	const udpSegment = 103 // UDP_SEGMENT, linux/udp.h, since Linux 4.18
	return udpOption(udpSegment, 1200, "Each datagram takes a system call of its own to send: QUIC servers take more CPU.")
}

func udpCoalescing(*machine) ([]Finding, error) {
	const udpGRO = 104 // UDP_GRO, linux/udp.h, since Linux 5.0
	return udpOption(udpGRO, 1, "Each datagram takes a pass of its own through the kernel to be received: QUIC servers take more CPU.")
}

// udpOption sets an option of a socket that is closed again.
func udpOption(option, value int, effect string) ([]Finding, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_UDP, option, value); err != nil {
		return bad(Note, "no: "+err.Error(), effect, "a kernel from Linux 5.0 on")
	}
	return fine("yes")
}

func cgroup2(m *machine) ([]Finding, error) {
	mounts, err := m.mounts()
	if err != nil {
		return nil, err
	}
	for _, mount := range mounts {
		if mount.kind == "cgroup2" {
			return fine("mounted on " + mount.point)
		}
	}
	return bad(Note, "not mounted", "The units and containers of sockets that no process holds are not known.", "mount -t cgroup2 none /sys/fs/cgroup")
}
