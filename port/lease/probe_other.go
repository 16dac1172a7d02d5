//go:build !linux

package lease

import (
	"context"
	"net"
	"net/netip"

	"github.com/fivetuple/fivetuple"
)

// probe opens the port as the net package would, and closes it again. It does
// not set SO_REUSEPORT: a port that others share is in use. On BSD, which macOS
// is here, a listener on another address that overlaps is not always noticed,
// as SO_REUSEADDR, which net sets, lets both be.
func probe(ctx context.Context, r Request, at netip.AddrPort) error {
	network := r.Protocol.String()
	if at.Addr().Is4() {
		network = r.Protocol.Protocol().String() + "4"
	}
	var config net.ListenConfig
	if r.Protocol.Protocol() == fivetuple.UDP {
		conn, err := config.ListenPacket(ctx, network, at.String())
		if err != nil {
			return err
		}
		return conn.Close()
	}
	config.SetMultipathTCP(false)
	listener, err := config.Listen(ctx, network, at.String())
	if err != nil {
		return err
	}
	return listener.Close()
}
