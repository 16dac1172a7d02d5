package stream

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/acl"
	"github.com/fivetuple/fivetuple/internal/proxyheader"
	"github.com/fivetuple/fivetuple/secure"
)

// Defaults of a [Server].
const (
	DefaultHandshakeTimeout = 10 * time.Second
	DefaultHeaderTimeout    = 5 * time.Second
)

// handshake makes TLS of an accepted connection.
func (c *Conn) handshake() error {
	ctx, cancel := context.WithTimeout(c.ctx, cmp.Or(c.server.HandshakeTimeout, DefaultHandshakeTimeout))
	defer cancel()
	began := time.Now()
	secured, err := secure.Accept(ctx, c.raw, c.server.TLS)
	switch {
	case err == nil:
		c.Conn = secured
		c.secured.Store(secured)
		c.reader.init(secured)
		return nil
	case c.ctx.Err() != nil: // closed on this side
		return net.ErrClosed
	case errors.Is(err, io.EOF): // somebody looked whether the port is open
		return io.EOF
	case ctx.Err() != nil:
		err = fmt.Errorf("no TLS handshake within %v: %w", time.Since(began).Round(time.Millisecond), err)
	}
	c.setCause(causeHandshake, err)
	c.server.events.Error(c.tuple, err)
	return err
}

// TLS is what the handshake of the connection came to; false if it is not TLS.
func (c *Conn) TLS() (tls.ConnectionState, bool) {
	t := c.secured.Load()
	if t == nil {
		return tls.ConnectionState{}, false
	}
	return t.ConnectionState(), true
}

// introduce reads the header that a proxy sends first, and not a byte more, and
// takes on the client that it names.
func (c *Conn) introduce() error {
	timeout := cmp.Or(c.server.HeaderTimeout, DefaultHeaderTimeout)
	c.raw.SetReadDeadline(time.Now().Add(timeout))
	h, b, err := proxyheader.Read(c.raw)
	c.raw.SetReadDeadline(time.Time{})
	switch {
	case isTimeout(err):
		return fmt.Errorf("no PROXY header within %v, as the source is one of the proxies; got %s", timeout, quote(b))
	case err != nil && len(b) == 0:
		return errNoHeader
	case err != nil:
		return fmt.Errorf("not a PROXY header, which the source must send as it is one of the proxies: %w; got %s", err, quote(b))
	case h.Local:
		return nil
	}
	c.client = net.TCPAddrFromAddrPort(h.Client)
	c.tuple.Remote = fivetuple.IPAddress(h.Client)
	c.source = acl.Source(h.Client)
	return nil
}

// errNoHeader is a proxy that went away without a byte: it looks whether the
// server is alive.
var errNoHeader = errors.New("no PROXY header")

// quote shows the beginning of what a peer sent.
func quote(b []byte) string {
	const shown = 32
	if len(b) == 0 {
		return "nothing"
	}
	if len(b) > shown {
		return strconv.Quote(string(b[:shown])) + "..."
	}
	return strconv.Quote(string(b))
}
