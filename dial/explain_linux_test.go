package dial

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"

	"github.com/fivetuple/fivetuple"
)

// failed is how package net puts what a system call said.
func failed(call string, errno syscall.Errno) error {
	return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError(call, errno)}
}

// The reasons that no test here can bring about.
func TestAdviceForRareReasons(t *testing.T) {
	source := Dialer{Source: netip.MustParseAddrPort("10.0.0.1:80")}
	v4, v6 := netip.MustParseAddrPort("192.0.2.1:80"), netip.MustParseAddrPort("[2001:db8::1]:80")
	for _, tt := range []struct {
		name string
		err  error
		want string
	}{
		{"low source port", source.explainTCP(failed("bind", syscall.EACCES), v4), "permission denied: the source port 80 needs CAP_NET_BIND_SERVICE: give one from net.ipv4.ip_unprivileged_port_start on"},
		{"no IPv6", Dialer{}.explainTCP(failed("socket", syscall.EAFNOSUPPORT), v6), "address family not supported by protocol: this machine has no IPv6"},
		{"forbidden", Dialer{}.explainTCP(failed("connect", syscall.EACCES), v4), "permission denied: a prohibit route, a firewall or a security module of this machine forbids it"},
		{"the kernel's timeout", Dialer{}.explainTCP(failed("connect", syscall.ETIMEDOUT), v4), "connection timed out: no answer: the machine is down, or a firewall drops what is sent there"},
		{"reset", Dialer{}.explainTCP(failed("connect", syscall.ECONNRESET), v4), "connection reset by peer: the peer, or something on the way, reset the connection while it was made"},
		{"another call", Dialer{}.explainTCP(failed("setsockopt", syscall.EINVAL), v4), "invalid argument"},
		{"vsock, nobody listens", explainVsock(failed("connect", syscall.ECONNRESET), 3), "connection reset by peer: nobody listens there"},
		{"vsock, no loopback", explainVsock(failed("connect", syscall.ENODEV), 1), "no such device: this kernel has no vsock loopback: load the module vsock_loopback"},
		{"vsock, no such context", explainVsock(failed("connect", syscall.ETIMEDOUT), 7), "connection timed out: no answer from context 7: is there such a virtual machine?"},
		{"vsock, no module", explainVsock(failed("socket", syscall.EAFNOSUPPORT), 7), "address family not supported by protocol: this kernel has no vsock: load the module vsock"},
	} {
		if got := tt.err.Error(); got != tt.want {
			t.Errorf("%s:\ngot  %s\nwant %s", tt.name, got, tt.want)
		}
	}
}

func TestVsockIsNotDialedWhenTheContextHasEnded(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Dialer{}.Dial(ctx, fivetuple.MustParseEndpoint("vsock://local:1"))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}
