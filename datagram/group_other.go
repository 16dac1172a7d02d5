//go:build !linux

package datagram

import (
	"context"
	"net"
	"net/netip"
)

// bindGroup leaves it to Go's net package, which binds to all addresses, with
// the options that let several sockets share the port.
func bindGroup(ctx context.Context, group netip.AddrPort, _ *net.Interface, control controlFunc) (*net.UDPConn, error) {
	nlc := net.ListenConfig{Control: control}
	pc, err := nlc.ListenPacket(ctx, "udp", group.String())
	if err != nil {
		return nil, err
	}
	return pc.(*net.UDPConn), nil
}
