//go:build unix

package scan

import "syscall"

// judge returns what an error of socket(2) or connect(2) shows about a port. Linux
// makes one of these errors of most ICMP messages: icmp_err_convert in
// net/ipv4/icmp.c, icmpv6_err_convert in net/ipv6/icmp.c.
func judge(e syscall.Errno) (State, string) {
	switch e {
	case syscall.ECONNREFUSED:
		return Closed, "connection refused"
	case syscall.ECONNRESET, syscall.EPIPE:
		// A reset in answer to the SYN would have been ECONNREFUSED.
		return Open, "connected, then reset"
	case syscall.ETIMEDOUT:
		return Filtered, "timed out"
	case syscall.EHOSTUNREACH:
		return Filtered, "no route to host"
	case syscall.EHOSTDOWN:
		return Filtered, "host is down"
	case syscall.ENETUNREACH:
		return Filtered, "network is unreachable"
	case syscall.EACCES:
		return Filtered, "prohibited"
	case syscall.ENOPROTOOPT:
		return Filtered, "protocol is unreachable"
	}
	// Also EPERM: a policy of this machine forbids the probe.
	return Failed, e.Error()
}

// isShortage tells the errors that pass when fewer sockets are open.
func isShortage(e syscall.Errno) bool {
	switch e {
	case syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL, syscall.EAGAIN:
		return true
	}
	return false
}
