package secure

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"
	"time"
)

// pairOf is our end of a connection that did its handshake, and the peer's with
// the TCP connection that carries it.
func pairOf(t *testing.T, version uint16, weAccept bool) (ours, peers *tls.Conn, below *net.TCPConn) {
	t.Helper()
	server := must(Server{SelfSigned: true}.Config())
	client := must(Client{Insecure: true}.Config("localhost"))
	client.MaxVersion = version
	c, s := tcpPair(t)
	type result struct {
		conn *tls.Conn
		err  error
	}
	accepted := make(chan result)
	go func() {
		conn, err := Accept(t.Context(), s, server)
		accepted <- result{conn, err}
	}()
	conn, err := Connect(t.Context(), c, client)
	other := <-accepted
	ok(errors.Join(err, other.err))
	if weAccept {
		return other.conn, conn, c.(*net.TCPConn)
	}
	return conn, other.conn, s.(*net.TCPConn)
}

func TestTruncatedIsAnEndWithoutGoodbye(t *testing.T) {
	for _, tt := range []struct {
		name string
		ends func(ours, peers *tls.Conn, below *net.TCPConn)
		err  error // of reading to the end
		want bool
	}{
		{"close", func(_, peers *tls.Conn, _ *net.TCPConn) { peers.Close() }, nil, false},
		{"half-close", func(_, peers *tls.Conn, _ *net.TCPConn) { peers.CloseWrite() }, nil, false},
		{"half-close, and then TCP's", func(_, peers *tls.Conn, below *net.TCPConn) { peers.CloseWrite(); below.CloseWrite() }, nil, false},
		{"TCP alone", func(_, _ *tls.Conn, below *net.TCPConn) { below.Close() }, nil, true},
		{"half of TCP alone", func(_, _ *tls.Conn, below *net.TCPConn) { below.CloseWrite() }, nil, true},
		{"in a record", func(_, _ *tls.Conn, below *net.TCPConn) {
			below.Write([]byte{recordData, 3, 3, 0, 99, 1, 2})
			below.Close()
		}, io.ErrUnexpectedEOF, true},
		{"reset", func(_, _ *tls.Conn, below *net.TCPConn) { below.SetLinger(0); below.Close() }, syscall.ECONNRESET, false},
		{"by us", func(ours, _ *tls.Conn, _ *net.TCPConn) { ours.Close() }, net.ErrClosed, false},
	} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			for _, weAccept := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, %s, we accept %v", tt.name, tls.VersionName(version), weAccept), func(t *testing.T) {
					ours, peers, below := pairOf(t, version, weAccept)
					fmt.Fprintln(peers, "answer")
					r := bufio.NewReader(ours)
					if line, err := r.ReadString('\n'); line != "answer\n" || err != nil || Truncated(ours) {
						t.Fatalf("got %q, %v, truncated %v", line, err, Truncated(ours))
					}
					tt.ends(ours, peers, below)
					_, err := io.Copy(io.Discard, r)
					if !errors.Is(err, tt.err) || Truncated(ours) != tt.want {
						t.Errorf("got %v, truncated %v, want %v, %v", err, Truncated(ours), tt.err, tt.want)
					}
				})
			}
		}
	}
}

// aroundConn is a connection over another, as those of servers are.
type aroundConn struct{ net.Conn }

func (c aroundConn) NetConn() net.Conn { return c.Conn }

func TestTruncatedLooksBelow(t *testing.T) {
	ours, _, below := pairOf(t, tls.VersionTLS13, false)
	below.Close()
	io.Copy(io.Discard, ours)
	plain, other := tcpPair(t)
	other.Close()
	io.Copy(io.Discard, plain)
	for _, tt := range []struct {
		c    net.Conn
		want bool
	}{{ours, true}, {aroundConn{aroundConn{ours}}, true}, {plain, false}, {aroundConn{plain}, false}, {tls.Client(plain, nil), false}, {nil, false}} {
		if got := Truncated(tt.c); got != tt.want {
			t.Errorf("%T: got %v", tt.c, got)
		}
	}
}

func TestOpenSSLServerThatIsKilledTruncates(t *testing.T) {
	pki := newPKI(t)
	config := must(Client{CAFile: certFile(t, pki.root.cert)}.Config("localhost"))
	for _, version := range []string{"-tls1_2", "-tls1_3"} {
		for _, kill := range []bool{true, false} {
			addr, server := startServerProcess(t, "-cert", certFile(t, pki.server.chain()...), "-cert_chain", certFile(t, pki.server.chain()...), "-key", pki.server.keyFile(t), version)
			tcp := must(net.Dial("tcp", addr))
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			conn, err := Connect(ctx, tcp, config)
			ok(err)
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(patience))
			fmt.Fprintln(conn, "hello")
			r := bufio.NewReader(conn)
			if line, err := r.ReadString('\n'); line != "olleh\n" || err != nil {
				t.Fatalf("%s: got %q, %v", version, line, err)
			}
			if kill {
				ok(server.Kill())
			} else {
				fmt.Fprintln(conn, "CLOSE") // which it understands
			}
			if _, err := io.Copy(io.Discard, r); err != nil || Truncated(conn) != kill {
				t.Errorf("%s, killed %v: got %v, truncated %v", version, kill, err, Truncated(conn))
			}
		}
	}
}

func TestOpenSSLClientThatIsKilledTruncates(t *testing.T) {
	config := must(Server{SelfSigned: true}.Config())
	config.SessionTicketsDisabled = true // one that the client has not read yet would make its end a reset
	for _, version := range []string{"-tls1_2", "-tls1_3"} {
		for _, kill := range []bool{true, false} {
			ln := must(net.Listen("tcp", "127.0.0.1:0"))
			ln.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
			client := startClient(t, ln.Addr().String(), version)
			tcp := must(ln.Accept())
			ln.Close()
			tcp.SetDeadline(time.Now().Add(patience))
			conn, err := Accept(t.Context(), tcp, config)
			ok(err)
			defer conn.Close()
			fmt.Fprintln(client.stdin, "hello")
			r := bufio.NewReader(conn)
			if line, err := r.ReadString('\n'); line != "hello\n" || err != nil {
				t.Fatalf("%s: got %q, %v", version, line, err)
			}
			if kill {
				ok(client.cmd.Process.Kill())
			} else {
				client.stdin.Close()
			}
			if _, err := io.Copy(io.Discard, r); err != nil || Truncated(conn) != kill {
				t.Errorf("%s, killed %v: got %v, truncated %v", version, kill, err, Truncated(conn))
			}
		}
	}
}
