package dial

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
)

// withAdvice adds to an error of the kernel what it means and what to do.
func withAdvice(err error, format string, args ...any) error {
	return fmt.Errorf("%w: %s", err, fmt.Sprintf(format, args...))
}

// strip takes off what package net and os put around the reason of a failed
// connection. call is the system call that gave it, if one did.
func strip(err error) (call string, reason error) {
	for {
		switch e := err.(type) {
		case *net.OpError:
			err = e.Err
		case *os.SyscallError:
			return e.Syscall, e.Err
		default:
			return "", err
		}
	}
}

// explainTCP is for what connecting to one address met.
func (d Dialer) explainTCP(err error, to netip.AddrPort) error {
	call, err := strip(err)
	switch {
	case call == "bind":
		return d.explainSource(err)
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return explainFiles(err)
	case errors.Is(err, syscall.EAFNOSUPPORT):
		return withAdvice(err, "this machine has no %s", familyOf(to.Addr()))
	}
	if call != "connect" {
		return err
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return withAdvice(err, "nobody listens there, or a firewall rejects it")
	case errors.Is(err, syscall.ENETUNREACH):
		return withAdvice(err, "this machine has no %s route to it%s: see `ip route get %s`", familyOf(to.Addr()), d.through(), to.Addr().WithZone(""))
	case errors.Is(err, syscall.EHOSTUNREACH):
		return withAdvice(err, "no machine answers for the address, or a router on the way has no route%s", d.through())
	case errors.Is(err, syscall.ETIMEDOUT):
		return withAdvice(err, "%s", d.silent())
	case errors.Is(err, syscall.ECONNRESET):
		return withAdvice(err, "the peer, or something on the way, reset the connection while it was made")
	case errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, syscall.EADDRINUSE):
		return withAdvice(err, "%s", d.noSource(to))
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return withAdvice(err, "a prohibit route, a firewall or a security module of this machine forbids it")
	case errors.Is(err, syscall.EINVAL) && to.Addr().IsLinkLocalUnicast():
		return withAdvice(err, "a link-local address needs the interface it is on: write [%s%%NAME]:%d, NAME of %s", to.Addr().WithZone(""), to.Port(), interfaceNames())
	}
	return err
}

func (d Dialer) silent() string {
	return "no answer" + d.through() + ": the machine is down, or a firewall drops what is sent there"
}

func explainFiles(err error) error {
	return withAdvice(err, "no descriptor is left for the socket: close some, or raise the limit (ulimit -n)")
}

// explainSource is for what bind(2) says of Source.
func (d Dialer) explainSource(err error) error {
	addr, port := d.Source.Addr(), d.Source.Port()
	switch {
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return withAdvice(err, "the source address %s is none of this machine's: it has %s", addr, ownAddresses(addr))
	case errors.Is(err, syscall.EADDRINUSE):
		return withAdvice(err, "the source port %d is in use: give another, or 0 for any; `ft who %d` shows by whom", port, port)
	case errors.Is(err, syscall.EACCES):
		return withAdvice(err, "the source port %d needs CAP_NET_BIND_SERVICE: give one from net.ipv4.ip_unprivileged_port_start on", port)
	case errors.Is(err, syscall.EINVAL) && addr.IsLinkLocalUnicast():
		return withAdvice(err, "a link-local source address needs its interface: write %s%%NAME", addr.WithZone(""))
	}
	return withAdvice(err, "the socket could not be bound to the source %s", d.Source)
}

// noSource is why connect(2) finds no source address and port.
func (d Dialer) noSource(to netip.AddrPort) string {
	if port := d.Source.Port(); port != 0 {
		return fmt.Sprintf("the source port %d has a connection there already, or had one less than a minute ago (TIME_WAIT): give another, or wait", port)
	}
	return fmt.Sprintf("this machine has no %s address to connect from%s, or all its ephemeral ports (net.ipv4.ip_local_port_range) are connected there", familyOf(to.Addr()), d.through())
}

// through names the interface that connections have to take.
func (d Dialer) through() string {
	if d.Interface == "" {
		return ""
	}
	return " through " + d.Interface
}

// ownAddresses lists the addresses of this machine of the family of a.
func ownAddresses(a netip.Addr) string {
	const enough = 16
	all, err := net.InterfaceAddrs()
	if err != nil {
		return "none to be seen: " + err.Error()
	}
	var addrs []string
	for _, one := range all {
		prefix, err := netip.ParsePrefix(one.String())
		switch {
		case err != nil || prefix.Addr().Is4() != a.Is4():
		case len(addrs) == enough:
			return strings.Join(addrs, ", ") + " and more"
		default:
			addrs = append(addrs, prefix.Addr().String())
		}
	}
	if len(addrs) == 0 {
		return fmt.Sprintf("no %s address", familyOf(a))
	}
	return strings.Join(addrs, ", ")
}
