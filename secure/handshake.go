package secure

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"slices"
	"sync/atomic"
)

// Connect does the handshake of a client on c, which it closes if that fails.
// Errors are explained, see [Explain], with what the peer said if that was no TLS.
// The context bounds the handshake alone.
func Connect(ctx context.Context, c net.Conn, config *tls.Config) (*tls.Conn, error) {
	h := &handshake{conn: &heardConn{Conn: c}}
	return h.do(ctx, tls.Client(h.conn, h.noticeRequest(config)))
}

// Accept is [Connect] for a server.
func Accept(ctx context.Context, c net.Conn, config *tls.Config) (*tls.Conn, error) {
	h := &handshake{conn: &heardConn{Conn: c}, server: true}
	return h.do(ctx, tls.Server(h.conn, config))
}

// Truncated says whether the peer of a connection that [Connect] or [Accept]
// made has ended the one below without a close_notify alert: whatever came may
// lack its end (RFC 8446 section 6.1), though Read returned [io.EOF]. It is known
// once Read has returned that, or [io.ErrUnexpectedEOF]. A reset is not meant, as
// Read says so itself. c may be wrapped by types with a NetConn method; of a
// connection without TLS it is false.
func Truncated(c net.Conn) bool {
	for {
		if heard, ok := c.(*heardConn); ok {
			return heard.ended.Load()
		}
		over, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return false
		}
		c = over.NetConn()
	}
}

// handshake is what is known of one when it fails.
type handshake struct {
	conn   *heardConn // nil if it was not ours
	server bool
	asked  bool // for a client certificate, when there was none to show
}

func (h *handshake) do(ctx context.Context, c *tls.Conn) (*tls.Conn, error) {
	if err := c.HandshakeContext(ctx); err != nil {
		c.NetConn().Close()
		return nil, h.explain(err)
	}
	h.conn.finish()
	return c, nil
}

// noticeRequest returns a configuration without a client certificate so that it
// notices when one is asked for.
func (h *handshake) noticeRequest(config *tls.Config) *tls.Config {
	if config.GetClientCertificate != nil || len(config.Certificates) > 0 {
		return config
	}
	config = config.Clone()
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		h.asked = true
		return new(tls.Certificate), nil
	}
	return config
}

// heardConn keeps the first and the last bytes that come until the handshake is
// done, and notices the end: package tls reads nothing after a close_notify.
type heardConn struct {
	net.Conn
	heard []byte
	last  []byte // as many as a plain alert has, at most
	done  bool
	ended atomic.Bool
}

func (c *heardConn) Read(b []byte) (int, error) {
	const most = 512
	n, err := c.Conn.Read(b)
	if !c.done {
		c.heard = append(c.heard, b[:min(n, most-len(c.heard))]...)
		c.last = append(c.last, b[max(0, n-plainAlert):n]...)
		c.last = slices.Clone(c.last[max(0, len(c.last)-plainAlert):])
	}
	if n == 0 && err == io.EOF {
		c.ended.Store(true)
	}
	return n, err
}

func (c *heardConn) finish() { c.heard, c.last, c.done = nil, nil, true }

// NetConn returns the connection below, as that of [tls.Conn] does.
func (c *heardConn) NetConn() net.Conn { return c.Conn }
