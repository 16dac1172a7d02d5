package secure

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"testing"
	"time"
)

const patience = 20 * time.Second

// shake lets a client and a server of ours meet. The client reads until the end,
// since with TLS 1.3 it is only then that it learns what the server thinks of it.
func shake(t *testing.T, client, server *tls.Config) (clientErr, serverErr error) {
	t.Helper()
	c, s := tcpPair(t)
	served := make(chan error)
	go func() {
		conn, err := Accept(t.Context(), s, server)
		if err == nil {
			conn.Close()
		}
		served <- err
	}()
	conn, clientErr := Connect(t.Context(), c, client)
	if clientErr == nil {
		_, err := io.Copy(io.Discard, conn)
		clientErr = Explain(err)
		conn.Close()
	}
	return clientErr, <-served
}

// connectTo returns what a client makes of a server with a certificate.
func connectTo(t *testing.T, client *tls.Config, cert tls.Certificate) error {
	t.Helper()
	err, _ := shake(t, client, &tls.Config{Certificates: []tls.Certificate{cert}})
	return err
}

func tcpPair(t *testing.T) (client, server net.Conn) {
	t.Helper()
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	defer ln.Close()
	client = must(net.Dial("tcp", ln.Addr().String()))
	server = must(ln.Accept())
	for _, c := range []net.Conn{client, server} {
		c.SetDeadline(time.Now().Add(patience))
		t.Cleanup(func() { c.Close() })
	}
	return client, server
}

// peer plays the other end of a handshake by hand.
func peer(t *testing.T, play func(net.Conn), handshake func(context.Context, net.Conn) (*tls.Conn, error)) error {
	t.Helper()
	c, other := tcpPair(t)
	go play(other)
	conn, err := handshake(t.Context(), c)
	if err == nil {
		conn.Close()
		return nil
	}
	if _, werr := c.Write(nil); werr == nil {
		t.Error("the connection is open after a handshake that failed")
	}
	return err
}
