package secure

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

func TestRefusedCertificatesAreExplainedWithTheChain(t *testing.T) {
	pki := newPKI(t)
	oldCA := pki.root.issue(t, "Old Intermediate", authority, expired)
	underOld := oldCA.issue(t, "Under Old")
	alone := (*identity)(nil).issue(t, "Alone")
	stranger := newPKI(t)
	leafAsCA := pki.server.issue(t, "Under A Leaf")
	forClients := pki.intermediate.issue(t, "For Clients", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
	bad := pki.intermediate.issue(t, "Bad \x1b[31mRed\x00\u202e", expired, forNames("a.example"))
	oldRoot := (*identity)(nil).issue(t, "Old Root", authority, expired)
	underOldRoot := oldRoot.issue(t, "Under Old Root")
	ca := certFile(t, pki.root.cert, oldRoot.cert)
	with := func(id *identity, chain ...*x509.Certificate) tls.Certificate { return id.pair(chain...) }
	chainOf := func(id *identity) tls.Certificate { return id.pair(id.chain()...) }
	for _, tt := range []struct {
		name string
		cert tls.Certificate
		want []string
	}{
		{"expired", chainOf(pki.intermediate.issue(t, "Old", expired)),
			[]string{"certificate 1, CN=Old, has expired on ", "the clock here says", "certificate 1: CN=Old, ", "<- expired 3 days ago", "certificate 2: CN=Test Intermediate, issued by CN=Test Root", "--pin sha256:"}},
		{"not yet valid", chainOf(pki.intermediate.issue(t, "Young", notYetValid)),
			[]string{"certificate 1, CN=Young, is not valid before ", "set the clock", "<- not valid for another 3 days"}},
		{"wrong name", chainOf(pki.intermediate.issue(t, "Other", forNames("a.example", "b.example"))),
			[]string{"is for a.example, b.example, not for localhost", "connect by a name that it is for", "<- not for localhost"}},
		{"common name only", chainOf(pki.intermediate.issue(t, "localhost", forNames())),
			[]string{"is for no host, not for localhost", "common name localhost does not count"}},
		{"a hundred names", chainOf(pki.intermediate.issue(t, "Many", forNames(manyNames(100)...))),
			[]string{"h9.example and 90 more, not for localhost"}},
		{"self-signed", chainOf(alone),
			[]string{"the peer's certificate is self-signed and not trusted here", "--pin " + Fingerprint(alone.cert), "compare the fingerprint", "issued by itself", "<- self-signed"}},
		{"unknown root, sent", with(stranger.server, append(stranger.server.chain(), stranger.root.cert)...),
			[]string{"--cafile FILE", "not trusted here"}},
		{"unknown root, not sent", chainOf(stranger.server),
			[]string{"issued by CN=Test Root, which is not trusted here and was not sent", "certificate 2: CN=Test Intermediate", "<- its issuer is not trusted here"}},
		{"intermediate forgotten", with(pki.server, pki.server.cert),
			[]string{"certificate 1, CN=Test Server, is issued by CN=Test Intermediate, which is not trusted here and was not sent", "forgotten an intermediate"}},
		{"expired intermediate", chainOf(underOld),
			[]string{"certificate 2, CN=Old Intermediate, has expired", "certificate 2: CN=Old Intermediate, issued by CN=Test Root"}},
		{"expired root", chainOf(underOldRoot),
			[]string{"the authority CN=Old Root is trusted here but out of date", "renew it in the CA file"}},
		{"signed by a leaf", with(leafAsCA, leafAsCA.chain()...),
			[]string{"certificate 1: CN=Under A Leaf", "<- "}},
		{"for clients", chainOf(forClients),
			[]string{"not valid: certificate specifies an incompatible key usage", "<- refused"}},
		{"unprintable", chainOf(bad),
			[]string{`CN=Bad \x1b[31mRed`, "has expired"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			config, err := Client{CAFile: ca}.Config("localhost")
			if err != nil {
				t.Fatal(err)
			}
			err = connectTo(t, config, tt.cert)
			wantText(t, err, append(tt.want, "TLS: ")...)
			var e *HandshakeError
			if !errors.As(err, &e) || len(e.Chain) != len(tt.cert.Certificate) || strings.Contains(e.Reason, "\n") {
				t.Errorf("got %+v, want a reason of one line and a chain of %d", e, len(tt.cert.Certificate))
			}
			var verification *tls.CertificateVerificationError
			if !errors.As(err, &verification) {
				t.Errorf("got %T, want the error of package tls wrapped", e.Err)
			}
		})
	}
}

func manyNames(n int) (names []string) {
	for i := range n {
		names = append(names, fmt.Sprintf("h%d.example", i))
	}
	return names
}

func TestLongChainIsCutShort(t *testing.T) {
	pki := newPKI(t)
	config := must(Client{CAFile: certFile(t, pki.root.cert)}.Config("localhost"))
	chain := []*x509.Certificate{pki.server.cert}
	for range 99 {
		chain = append(chain, pki.server.cert)
	}
	var e *HandshakeError
	if err := connectTo(t, config, pki.server.pair(chain...)); !errors.As(err, &e) || len(e.Chain) != 11 || e.Chain[10] != "and 90 certificates more" {
		t.Errorf("got %v, want 10 certificates of 100", err)
	}
}

func TestExplainKeepsWhatTheErrorSaysAround(t *testing.T) {
	pki := newPKI(t)
	c, s := tcpPair(t)
	go tls.Server(s, &tls.Config{Certificates: []tls.Certificate{pki.server.pair(pki.server.cert)}}).Handshake()
	config, err := Client{}.Config("localhost")
	if err != nil {
		t.Fatal(err)
	}
	err = tls.Client(c, config).Handshake()
	for _, tt := range []struct{ err, want string }{
		{Explain(err).Error(), "TLS: certificate 1, "},
		{Explain(fmt.Errorf("connect tls://h:1: %w", err)).Error(), "connect tls://h:1: certificate 1, "},
		{Explain(fmt.Errorf("%w, sadly", err)).Error(), "TLS: certificate 1, "},
		{Explain(Explain(fmt.Errorf("x: %w", err))).Error(), "x: certificate 1, "},
	} {
		if !strings.HasPrefix(tt.err, tt.want) {
			t.Errorf("got %q, want %q at the beginning", tt.err, tt.want)
		}
	}
}

func TestExplainLeavesOtherErrorsAlone(t *testing.T) {
	for _, err := range []error{nil, io.EOF, errors.New("connection refused"), context.DeadlineExceeded, &net.OpError{Op: "remote error", Err: io.EOF}} {
		if got := Explain(err); got != err {
			t.Errorf("got %v, want %v as it was", got, err)
		}
	}
}

func TestPeersThatSpeakNoTLS(t *testing.T) {
	say := func(text string) func(net.Conn) {
		return func(c net.Conn) {
			io.WriteString(c, text)
			c.(*net.TCPConn).CloseWrite()
			io.Copy(io.Discard, c)
		}
	}
	closing := func(c net.Conn) { c.Close() }
	reset := func(c net.Conn) {
		c.Read(make([]byte, 1))
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
	for _, tt := range []struct {
		name    string
		play    func(net.Conn)
		client  []string
		server  []string
		wrapped error
	}{
		{"HTTP", say("HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\n"),
			[]string{`the peer does not speak TLS: it said "HTTP/1.1 400 Bad Request": connect to it without TLS`},
			[]string{`it said "HTTP/1.1 400 Bad Request": let it connect with TLS`}, nil},
		{"escape sequences", say("\x1b[2J\x1b]0;title\x07 and a long text that goes on and on and on and on and on and on and on and on and on"),
			[]string{`it said "\x1b[2J\x1b]0;title\a and`}, []string{`it said "\x1b[2J`}, nil},
		{"an empty line first", say("\r\nlogin: "), []string{`it said "\r\nlogin: "`}, []string{`\r\nlogin: `}, nil},
		{"binary", say("\x00\x01\x02\x03\x04\xff\xfe"), []string{`it said "\x00\x01\x02\x03\x04\xff\xfe"`}, []string{"does not speak TLS"}, nil},
		{"less than a header", say("no\n"), []string{"closed the connection during the handshake"}, []string{"closed the connection"}, io.ErrUnexpectedEOF},
		{"echo", func(c net.Conn) { io.Copy(c, c) }, []string{"the peer does not speak TLS: it sends back what it gets: connect to it without TLS"}, nil, nil},
		{"end at once", closing, []string{"closed the connection during the handshake: it may not speak TLS here"}, []string{"and sent nothing"}, nil},
		{"reset", reset, []string{"closed the connection during the handshake"}, nil, nil},
		{"old TLS", say("\x15\x03\x01\x00\x02\x02\x46"), []string{`refused with the alert "protocol version not supported" (70): it speaks no version`, "let the peer speak TLS 1.2"}, nil, nil},
		{"unknown alert", say("\x15\x03\x01\x00\x02\x02\xc8"), []string{`alert "alert(200)" (200)`}, nil, nil},
		{"encrypted data", say("\x17\x03\x03\x40\x00" + strings.Repeat("x", 0x4000)), []string{"TLS: "}, []string{"TLS: "}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			config, err := Client{Insecure: true}.Config("localhost")
			if err != nil {
				t.Fatal(err)
			}
			if tt.client != nil {
				err := peer(t, tt.play, func(ctx context.Context, c net.Conn) (*tls.Conn, error) { return Connect(ctx, c, config) })
				wantText(t, err, tt.client...)
				if tt.wrapped != nil && !errors.Is(err, tt.wrapped) {
					t.Errorf("got %v, want %v wrapped", err, tt.wrapped)
				}
			}
			if tt.server != nil {
				server := must(Server{SelfSigned: true}.Config())
				err := peer(t, tt.play, func(ctx context.Context, c net.Conn) (*tls.Conn, error) { return Accept(ctx, c, server) })
				wantText(t, err, tt.server...)
			}
		})
	}
}

func TestSilentPeerIsWaitedForAsLongAsTheContextSays(t *testing.T) {
	config := must(Client{Insecure: true}.Config("localhost"))
	server := must(Server{SelfSigned: true}.Config())
	for name, tt := range map[string]struct {
		handshake func(context.Context, net.Conn) (*tls.Conn, error)
		want      string
	}{
		"client": {func(ctx context.Context, c net.Conn) (*tls.Conn, error) { return Connect(ctx, c, config) }, "did not answer in time: it may not speak TLS here"},
		"server": {func(ctx context.Context, c net.Conn) (*tls.Conn, error) { return Accept(ctx, c, server) }, "sent nothing in time"},
	} {
		t.Run(name, func(t *testing.T) {
			err := peer(t, func(net.Conn) {}, func(ctx context.Context, c net.Conn) (*tls.Conn, error) {
				ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
				defer cancel()
				return tt.handshake(ctx, c)
			})
			wantText(t, err, tt.want)
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v, want context.DeadlineExceeded wrapped", err)
			}
		})
	}
}

func TestVersionsAndProtocolsThatDoNotMeet(t *testing.T) {
	server := must(Server{SelfSigned: true, ALPN: []string{"h2"}}.Config())
	old := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}
	clientErr, serverErr := shake(t, old, server)
	wantText(t, clientErr, `alert "protocol version not supported"`)
	wantText(t, serverErr, "client offered only unsupported versions: [TLS 1.1 TLS 1.0]", "let the peer speak TLS 1.2")

	oldServer := server.Clone()
	oldServer.MinVersion, oldServer.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	config := must(Client{Insecure: true}.Config("localhost"))
	clientErr, _ = shake(t, config, oldServer)
	wantText(t, clientErr, "version", "let the peer speak TLS 1.2")

	config = must(Client{Insecure: true, ALPN: []string{"\x1b[2J"}}.Config("localhost"))
	clientErr, serverErr = shake(t, config, server)
	wantText(t, clientErr, `alert "no application protocol" (120)`, "ALPN", "offer others, or none")
	wantText(t, serverErr, "unsupported application protocols", `\x1b[2J`)
}

func TestClientCertificateThatIsMissingIsToldToBothSides(t *testing.T) {
	pki := newPKI(t)
	for name, version := range map[string]uint16{"TLS 1.2": tls.VersionTLS12, "TLS 1.3": tls.VersionTLS13} {
		t.Run(name, func(t *testing.T) {
			server := must(Server{SelfSigned: true, ClientCAFile: certFile(t, pki.root.cert)}.Config())
			server.MaxVersion = version
			config := must(Client{Insecure: true}.Config("localhost"))
			clientErr, serverErr := shake(t, config, server)
			wantText(t, clientErr, "it wants a client certificate", "give a certificate and its key")
			wantText(t, serverErr, "client didn't provide a certificate")

			good := Client{Insecure: true, CertFile: certFile(t, pki.server.chain()...), KeyFile: pki.server.keyFile(t)}
			if clientErr, serverErr := shake(t, must(good.Config("localhost")), server); clientErr != nil || serverErr != nil {
				t.Errorf("with a certificate: got %v, %v", clientErr, serverErr)
			}
		})
	}
}

func TestClientThatDoesNotTrustTheServerIsToldOfThere(t *testing.T) {
	_, serverErr := shake(t, must(Client{}.Config("localhost")), must(Server{SelfSigned: true}.Config()))
	wantText(t, serverErr, `alert "bad certificate" (42): it refuses the certificate it was shown: let it trust`)
}
