package stream

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/pires/go-proxyproto"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/acl"
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
	c.server.recordError(c.tuple, err)
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

// introduce reads the header that a proxy sends first and takes on the client
// that it names.
func (c *Conn) introduce() error {
	c.raw.SetReadDeadline(time.Now().Add(cmp.Or(c.server.HeaderTimeout, DefaultHeaderTimeout)))
	b, err := readProxyHeader(c.raw)
	c.raw.SetReadDeadline(time.Time{})
	switch {
	case err != nil && len(b) == 0 && !isTimeout(err):
		return errNoHeader
	case isTimeout(err):
		return fmt.Errorf("no PROXY header within %v, as the source is one of the proxies; got %s", cmp.Or(c.server.HeaderTimeout, DefaultHeaderTimeout), quote(b))
	case err != nil:
		return fmt.Errorf("%w; got %s", err, quote(b))
	}
	h, err := proxyproto.Read(bufio.NewReader(bytes.NewReader(b)))
	if err != nil {
		return fmt.Errorf("%w: %w; got %s", errProxyHeader, err, quote(b))
	}
	if h.Command.IsLocal() { // the proxy speaks for itself
		return nil
	}
	client, _, ok := h.TCPAddrs()
	if !ok {
		return fmt.Errorf("%w: it names no TCP client but %v", errProxyHeader, h.SourceAddr)
	}
	c.client = client
	c.tuple.Remote = fivetuple.AddressOf(client)
	c.source = acl.Source(c.tuple.Remote.AddrPort)
	return nil
}

// errNoHeader is a proxy that went away without a byte: it looks whether the
// server is alive.
var errNoHeader = errors.New("no PROXY header")

var errProxyHeader = errors.New("not a PROXY header, which the source must send as it is one of the proxies")

// maxProxyHeader is the longest line of version 1; of version 2 it is the most
// that follows the first 16 bytes, of 65535 that could.
const (
	maxProxyLine   = 107
	maxProxyHeader = 4096
)

// readProxyHeader reads a header as the PROXY protocol's sections 2.1 and 2.2
// have it, and not a byte more: what follows is read by TLS or by a command. It
// returns what came with an error, too.
func readProxyHeader(r io.Reader) ([]byte, error) {
	v1, v2 := proxyproto.SIGV1, proxyproto.SIGV2
	b := make([]byte, 0, 128)
	more := func(most int) error { // a single read
		n, err := r.Read(b[len(b) : len(b)+most])
		b = b[:len(b)+n]
		if n > 0 {
			return nil
		}
		return cmp.Or(err, io.ErrNoProgress)
	}
	for len(b) < len(v2) { // version 1 is longer than that, too
		if err := more(len(v2) - len(b)); err != nil {
			return b, err
		}
		if !bytes.HasPrefix(v2, b) && !bytes.HasPrefix(v1, b[:min(len(b), len(v1))]) {
			return b, errProxyHeader
		}
	}
	if bytes.HasPrefix(b, v1) {
		for b[len(b)-1] != '\n' {
			if len(b) == maxProxyLine {
				return b, errProxyHeader
			}
			if err := more(1); err != nil {
				return b, err
			}
		}
		return b, nil
	}
	const fixed = 16
	for len(b) < fixed {
		if err := more(fixed - len(b)); err != nil {
			return b, err
		}
	}
	length := int(b[14])<<8 | int(b[15])
	if length > maxProxyHeader {
		return b, fmt.Errorf("%w: it says to be %d bytes long, over %d", errProxyHeader, fixed+length, fixed+maxProxyHeader)
	}
	b = append(make([]byte, 0, fixed+length), b...)
	for len(b) < fixed+length {
		if err := more(fixed + length - len(b)); err != nil {
			return b, err
		}
	}
	return b, nil
}

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
