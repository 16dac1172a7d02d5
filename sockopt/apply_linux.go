package sockopt

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Apply sets the settings in order and reads each back. It stops at the first error; what was granted until then is
// returned with it. keepalive with times, and options with an IPv6 twin on an IPv6 socket, are several options: each has
// its own Granted.
//
// Errors name the option and what to do: they wrap [ErrSocket] when the option belongs to other sockets (found out
// before the kernel is asked), else the kernel's error number, such as unix.EPERM or unix.ENOPROTOOPT.
func Apply(fd int, settings ...Setting) ([]Granted, error) {
	if len(settings) == 0 {
		return nil, nil
	}
	sk, err := Identify(fd)
	if err != nil {
		return nil, err
	}
	var granted []Granted
	for _, s := range settings {
		if s.opt == nil {
			return granted, fmt.Errorf("set socket option: %w: empty setting", ErrValue)
		}
		for _, step := range expand(s, sk) {
			g, err := apply(fd, sk, step)
			if err != nil {
				return granted, fmt.Errorf("set %s: %w", step, err)
			}
			granted = append(granted, g)
		}
	}
	return granted, nil
}

// expand turns a setting into those the kernel knows.
func expand(s Setting, sk Sockets) []Setting {
	steps := []Setting{s}
	if s.opt.Kind == KeepAlive {
		steps[0].v.n = [3]int64{}
		for i, n := range s.v.n {
			if n != 0 {
				steps = append(steps, number(keepAliveParts[i], n))
			}
		}
	}
	if s.opt.Twin == "" || sk&IPv6 == 0 {
		return steps
	}
	if _, err := netip.ParseAddr(s.v.text); err == nil { // multicast-if by address: IPv4 only
		return steps
	}
	twin := Setting{lookup(s.opt.Twin), s.v}
	if sk&Raw != 0 { // net/ipv6/raw.c takes no IPv4 options
		return []Setting{twin}
	}
	return append(steps, twin)
}

func number(name string, n int64) Setting {
	return Setting{lookup(name), value{n: [3]int64{n}}}
}

// apply sets one option and reads it back.
func apply(fd int, sk Sockets, s Setting) (Granted, error) {
	o := s.opt
	if o.Access == ReadOnly {
		return Granted{}, ErrReadOnly
	}
	if err := o.admits(sk); err != nil {
		return Granted{}, err
	}
	if o.Kind == Group && sk != 0 && (s.v.group.Is6() && sk&IPv4 != 0 || s.v.group.Is4() && sk&(Raw|IPv6) == Raw|IPv6) {
		return Granted{}, fmt.Errorf("%w: the group %s is of another family than this %s socket", ErrSocket, s.v.group, sk)
	}
	level, raw, err := encode(s)
	if err != nil {
		return Granted{}, err
	}
	if err := unix.SetsockoptString(fd, level, o.Number, raw); err != nil {
		return Granted{}, explain(o, sk, os.NewSyscallError("setsockopt", err))
	}
	g := Granted{Option: *o, Asked: s.Value()}
	if o.Access == WriteOnly {
		return g, nil
	}
	got, err := read(fd, o, sk)
	if err != nil {
		// An option that is settable now but readable only later (mtu6 before connect) was set all the same.
		g.Note = "cannot be read back: " + err.Error()
		return g, nil
	}
	if o.wire == wireBuffer {
		return grantBuffer(fd, sk, s, got, g)
	}
	g.Got = got.Value()
	if got.v != s.v && g.Got != g.Asked && o.Kind != Interface && o.Kind != Hex {
		g.Note = "adjusted by the kernel"
	}
	return g, nil
}

// admits is the check of the socket kind, as an error that names both sides.
func (o *Option) admits(sk Sockets) error {
	if !o.Sockets.Admits(sk) {
		return fmt.Errorf("%w: %s is for %s sockets, this one is %s", ErrSocket, o.Constant, o.Sockets, sk)
	}
	if o.Level == levelIP && o.Kind != Group && sk&Raw != 0 && sk&IPv6 != 0 {
		return fmt.Errorf("%w: %s is for ipv4 sockets, this one is %s", ErrSocket, o.Constant, sk)
	}
	return nil
}

// grantBuffer judges a buffer size after it was set. The kernel stores twice of what it grants and stops at
// net.core.rmem_max or wmem_max (net/core/sock.c, sock_setsockopt); with a privilege the FORCE twin goes beyond.
func grantBuffer(fd int, sk Sockets, s, got Setting, g Granted) (Granted, error) {
	force, limit := "rcvbufforce", "rmem_max"
	if s.opt.Name == "sndbuf" {
		force, limit = "sndbufforce", "wmem_max"
	}
	asked := s.v.n[0]
	g.Got = got.Value()
	switch {
	case got.v.n[0] > 2*asked:
		g.Note = "the kernel's minimum"
		return g, nil
	case got.v.n[0] == 2*asked:
		g.Note = "doubled by the kernel for its bookkeeping"
		return g, nil
	}
	limit = "net.core." + limit
	capped := limit
	if text, err := os.ReadFile("/proc/sys/net/core/" + limit[len("net.core."):]); err == nil {
		capped += "=" + strings.TrimSpace(string(text))
	}
	forceErr := unix.SetsockoptInt(fd, s.opt.Level, lookup(force).Number, int(asked))
	got, err := read(fd, s.opt, sk)
	if err != nil {
		return g, fmt.Errorf("read back: %w", err)
	}
	g.Got = got.Value()
	if got.v.n[0] >= 2*asked {
		g.Note = "doubled by the kernel; over " + capped + ", so " + lookup(force).Constant + " was used"
		return g, nil
	}
	g.Less = true
	g.Note = fmt.Sprintf("capped by %s and doubled; %s: %v; raise it with sysctl -w %s=%d or run with CAP_NET_ADMIN",
		capped, lookup(force).Constant, forceErr, limit, asked)
	return g, nil
}

// explain adds to an error of the kernel what it means for this option.
func explain(o *Option, sk Sockets, err error) error {
	switch {
	case errors.Is(err, unix.ENOPROTOOPT), errors.Is(err, unix.EOPNOTSUPP):
		if sk&MPTCP != 0 {
			return fmt.Errorf("%s: %w: a Multipath TCP socket does not take it; make a plain TCP socket (in Go, SetMultipathTCP(false))", o.Constant, err)
		}
		return fmt.Errorf("%s: %w: this kernel does not take it on this socket (it came with Linux %s)", o.Constant, err, o.Since)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		if o.Privilege != "" {
			return fmt.Errorf("%s: %w: it needs %s", o.Constant, err, o.Privilege)
		}
	case errors.Is(err, unix.ENOENT) && o.Name == "congestion":
		return fmt.Errorf("%s: %w: no such algorithm in this kernel%s", o.Constant, err, available("congestion_control"))
	case errors.Is(err, unix.ENOENT) && o.Name == "ulp":
		return fmt.Errorf("%s: %w: no such protocol in this kernel%s", o.Constant, err, available("ulp"))
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%s: %w (%s)", o.Constant, err, interfaceNames())
	case errors.Is(err, unix.ENOTCONN):
		return fmt.Errorf("%s: %w: only on a connected socket", o.Constant, err)
	case errors.Is(err, unix.EISCONN):
		return fmt.Errorf("%s: %w: only before the socket is connected", o.Constant, err)
	}
	return fmt.Errorf("%s: %w (%s)", o.Constant, err, o.Doc)
}

func available(what string) string {
	text, err := os.ReadFile("/proc/sys/net/ipv4/tcp_available_" + what)
	if err != nil {
		return ""
	}
	return ", it has " + strings.Join(strings.Fields(string(text)), ", ")
}

// Identify returns the transport and the family of a socket, with MPTCP added for Multipath TCP. A family or protocol
// that no option here belongs to (vsock, netlink, SCTP) gives no transport.
func Identify(fd int) (Sockets, error) {
	if unix.SOL_SOCKET != levelSocket || unix.SO_RCVLOWAT != 18 { // MIPS, PowerPC, SPARC: the table's numbers are not theirs
		return 0, fmt.Errorf("socket options: %w on %s", errors.ErrUnsupported, runtime.GOARCH)
	}
	var get [3]int
	for i, number := range []int{unix.SO_DOMAIN, unix.SO_TYPE, unix.SO_PROTOCOL} {
		n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, number)
		if err != nil {
			return 0, fmt.Errorf("identify socket %s: %w", strconv.Itoa(fd), os.NewSyscallError("getsockopt", err))
		}
		get[i] = n
	}
	domain, kind, protocol := get[0], get[1], get[2]
	var sk Sockets
	switch domain {
	case unix.AF_UNIX:
		return Unix, nil
	case unix.AF_PACKET:
		return Packet, nil
	case unix.AF_INET:
		sk = IPv4
	case unix.AF_INET6:
		sk = IPv6
	default:
		return 0, nil
	}
	switch {
	case kind == unix.SOCK_RAW:
		return sk | Raw, nil
	case protocol == unix.IPPROTO_TCP:
		return sk | TCP, nil
	case protocol == unix.IPPROTO_MPTCP:
		return sk | TCP | MPTCP, nil
	case protocol == unix.IPPROTO_UDP, protocol == unix.IPPROTO_UDPLITE:
		return sk | UDP, nil
	case protocol == unix.IPPROTO_ICMP, protocol == unix.IPPROTO_ICMPV6:
		return sk | Ping, nil
	}
	return sk, nil
}
