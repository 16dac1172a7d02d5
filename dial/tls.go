package dial

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/secure"
)

// handshake makes a TLS connection of a TCP one, which it closes if it fails.
func (d Dialer) handshake(ctx context.Context, conn net.Conn, e fivetuple.Endpoint) (net.Conn, error) {
	config := d.TLS.Clone()
	if config == nil {
		config = new(tls.Config)
	}
	if config.ServerName == "" {
		config.ServerName = hostOf(e)
	}
	tc, err := secure.Connect(ctx, conn, config)
	if err != nil {
		stage := fmt.Sprintf("TLS handshake with %s", conn.RemoteAddr())
		return nil, d.cut(ctx, stage, fmt.Errorf("%s: %w", stage, err))
	}
	return tc, nil
}

// hostOf is the name or address of the machine that an endpoint is on.
func hostOf(e fivetuple.Endpoint) string {
	if e.Host == "" || e.Host == fivetuple.AnyHost {
		return "localhost"
	}
	return e.Host
}
