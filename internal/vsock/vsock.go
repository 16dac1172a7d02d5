// Package vsock listens and connects on AF_VSOCK, the sockets between a virtual
// machine and its host, as package net does on TCP.
//
// It stands on vsock(7). What is refused because the kernel has no transport to a
// context, such as a loopback (CID 1) without the module vsock_loopback, is the
// kernel's ENODEV. Elsewhere than on Linux every call is an error that wraps
// [errors.ErrUnsupported].
package vsock

import (
	"context"
	"math"
	"net"
	"strconv"
	"syscall"
)

const (
	// Any stands for every context when listening, and for a port that the kernel chooses.
	Any = math.MaxUint32
	// Local is the context of this machine itself, VMADDR_CID_LOCAL.
	Local = 1
)

// Addr is the address of a vsock: a context (a machine) and a port in it.
type Addr struct{ CID, Port uint32 }

var _ net.Addr = Addr{}

// Network returns "vsock".
func (Addr) Network() string { return "vsock" }

// String returns "CID:PORT", as an endpoint has it after vsock://.
func (a Addr) String() string {
	cid := "*"
	if a.CID != Any {
		cid = strconv.FormatUint(uint64(a.CID), 10)
	}
	return cid + ":" + strconv.FormatUint(uint64(a.Port), 10)
}

// Config says how sockets are made. The zero value is good.
type Config struct {
	// Control is called with each socket that is made, before it is bound or connected,
	// as that of a [net.ListenConfig].
	Control func(network, address string, c syscall.RawConn) error
}

// Listen is [Config.Listen] with nothing configured.
func Listen(cid, port uint32) (net.Listener, error) {
	return Config{}.Listen(cid, port)
}

// Dial is [Config.Dial] with nothing configured.
func Dial(ctx context.Context, cid, port uint32) (net.Conn, error) {
	return Config{}.Dial(ctx, cid, port)
}
