package datagram

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/sockopt"
)

// ListenConfig says how to listen.
type ListenConfig struct {
	Options sockopt.Settings // set on the socket before it is bound
	// Mode is the permissions of a Unix socket's file. Default 0600.
	Mode fs.FileMode
	// Owner of a Unix socket's file: "user", "user:group" or ":group", each a
	// name or a number. Default: this process's user.
	Owner string
	// Interface, by name or index, is where a group is joined and the only one
	// that datagrams are received by; "" is the endpoint's, or for a group the
	// one that the routes name.
	Interface string
	// Sources, if not empty, are the only senders of the group to receive from:
	// source-specific multicast, RFC 4607. The network's routers know and send
	// nothing else.
	Sources []netip.Addr
	// Report, if not nil, is called with what the kernel granted of Options.
	Report func([]sockopt.Granted)
}

// Listen opens the socket of a UDP or Unix datagram endpoint whose service
// name, if it has one, is resolved.
//
// Where the host is a multicast group, the group is joined on the interface,
// and several sockets on one port receive it each: they have SO_REUSEADDR. On
// Linux such a socket is bound to the group and receives nothing else;
// elsewhere it also receives what comes to the port by other addresses.
//
// A Unix socket's file that nobody listens on is replaced; any other file at
// the path is an error. The file is removed when the Conn is closed, unless it
// was replaced.
func (lc ListenConfig) Listen(ctx context.Context, e fivetuple.Endpoint) (*Conn, error) {
	if err := check(e, lc.Options); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", e, err)
	}
	network, address, err := e.ListenArgs()
	if err != nil {
		return nil, err
	}
	c, err := lc.listen(ctx, e, network, address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", e, err)
	}
	return c, nil
}

func (lc ListenConfig) listen(ctx context.Context, e fivetuple.Endpoint, network, address string) (*Conn, error) {
	group, ok := e.Addr()
	isGroup := ok && group.IsMulticast()
	switch {
	case len(lc.Sources) > 0 && !isGroup:
		return nil, errors.New("sources go with a multicast group")
	case e.Network == fivetuple.Unixgram && lc.Interface != "":
		return nil, errors.New("an interface goes with udp://")
	case e.Network == fivetuple.Unixgram:
		return lc.listenUnix(ctx, e)
	}
	ifi, err := oneInterface(e.Zone, lc.Interface)
	switch {
	case err != nil:
		return nil, err
	case isGroup:
		return lc.listenGroup(ctx, netip.AddrPortFrom(group.WithZone(""), e.Ports.First), ifi)
	}
	var control controlFunc = tellDestination
	if lc.Interface != "" {
		control = sockopt.Combine(tellDestination, bindTo(ifi))
	}
	nlc := net.ListenConfig{Control: sockopt.Combine(control, lc.Options.ControlFunc(lc.Report))}
	pc, err := nlc.ListenPacket(ctx, network, address)
	if err != nil {
		return nil, notOpened(err, address)
	}
	c, err := newConn(pc.(*net.UDPConn))
	if err != nil {
		return nil, err
	}
	c.v6only = e.Network == fivetuple.UDP6
	for _, set := range lc.Options {
		if set.Option().Name == "v6only" {
			c.v6only = set.Int() != 0
		}
	}
	return c, nil
}

// check refuses the endpoints and options that belong to other packages.
func check(e fivetuple.Endpoint, options sockopt.Settings) error {
	if !e.Network.IsDatagram() {
		return fmt.Errorf("%s is not a datagram network: write udp:// or unixgram://: %w", e.Network, errors.ErrUnsupported)
	}
	if a, ok := e.Addr(); e.Zone != "" && (!ok || a.Is4() && !a.IsMulticast()) {
		return fmt.Errorf("%%%s goes with a group or an IPv6 address: use the option bindtodevice=%s", e.Zone, e.Zone)
	}
	for _, set := range options {
		if set.Option().Name == "gro" && e.Network.IsIP() {
			return fmt.Errorf("option gro would join datagrams into one: %w", errors.ErrUnsupported)
		}
	}
	return nil
}
