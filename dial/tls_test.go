package dial

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple"
)

// tlsServer echoes over TLS. Its certificate is for example.com and 127.0.0.1.
func tlsServer(t *testing.T) (e fivetuple.Endpoint, roots *x509.CertPool) {
	t.Helper()
	https := httptest.NewUnstartedServer(nil) // for its certificate alone
	https.StartTLS()
	config, cert := https.TLS.Clone(), https.Certificate()
	https.Close()
	config.NextProtos = []string{"echo"}
	echo(t, tls.NewListener(listen(t, "tcp", "127.0.0.1:0"), config), &e)
	roots = x509.NewCertPool()
	roots.AddCert(cert)
	e.Network = fivetuple.TLS
	return e, roots
}

// echo serves a listener, whose endpoint it fills in.
func echo(t *testing.T, ln net.Listener, e *fivetuple.Endpoint) {
	t.Helper()
	*e = fivetuple.MustParseEndpoint(ln.Addr().String())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conn.SetDeadline(time.Now().Add(10 * time.Second))
			io.Copy(conn, conn)
			conn.Close()
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
}

func mustConfig(roots *x509.CertPool) *tls.Config {
	return &tls.Config{RootCAs: roots, NextProtos: []string{"echo"}}
}

func wantEcho(t *testing.T, conn net.Conn) {
	t.Helper()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, "hello"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(conn, b); err != nil || string(b) != "hello" {
		t.Errorf("got %q, %v, want hello", b, err)
	}
}

func TestTLSVerifiesThePeer(t *testing.T) {
	e, roots := tlsServer(t)
	for _, tt := range []struct {
		name   string
		host   string
		config *tls.Config
		fails  bool
	}{
		{"no configuration", "", nil, true},
		{"address in the certificate", "", &tls.Config{RootCAs: roots}, false},
		{"host in the certificate", "example.com", &tls.Config{RootCAs: roots}, false},
		{"host not in the certificate", "other.test", &tls.Config{RootCAs: roots}, true},
		{"name given", "other.test", &tls.Config{RootCAs: roots, ServerName: "example.com"}, false},
		{"name given is wrong", "", &tls.Config{RootCAs: roots, ServerName: "other.test"}, true},
		{"insecure", "other.test", &tls.Config{InsecureSkipVerify: true}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := e
			if tt.host != "" {
				e.Host = tt.host
			}
			if tt.config != nil {
				tt.config.NextProtos = []string{"echo"}
			}
			d := Dialer{TLS: tt.config, Timeout: 5 * time.Second, Resolver: names{&reply{err: notFound()}, &reply{addrs: []string{"127.0.0.1"}}}}
			conn, err := d.Dial(t.Context(), e)
			if tt.fails {
				var bad *tls.CertificateVerificationError
				if !errors.As(err, &bad) {
					t.Fatalf("got %v, want that the certificate is bad", err)
				}
				wantError(t, err, nil, "connect "+e.String()+": TLS handshake with 127.0.0.1:", "certificate")
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if tt.config.ServerName == "" == (tt.name == "name given") {
				t.Errorf("the caller's configuration has been changed: ServerName is %q", tt.config.ServerName)
			}
			if got := conn.(*tls.Conn).ConnectionState().NegotiatedProtocol; got != "echo" {
				t.Errorf("negotiated %q, want echo", got)
			}
			wantEcho(t, conn)
		})
	}
}

func TestTLSHandshakeThatDoesNotEndIsTimedOut(t *testing.T) {
	ln := listen(t, "tcp", "127.0.0.1:0")
	acceptAll(t, ln)
	_, err := Dialer{Timeout: 200 * ms}.Dial(t.Context(), fivetuple.MustParseEndpoint("tls://"+ln.Addr().String()))
	wantError(t, err, context.DeadlineExceeded, "timed out after ", "TLS handshake with "+ln.Addr().String())
}

func TestPeerThatDoesNotSpeakTLS(t *testing.T) {
	ln := listen(t, "tcp", "127.0.0.1:0")
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := ln.Accept()
		if err == nil {
			io.WriteString(conn, "220 mail.test ESMTP\r\n")
			io.Copy(io.Discard, conn)
			conn.Close()
		}
	}()
	_, err := Dialer{Timeout: 5 * time.Second}.Dial(t.Context(), fivetuple.MustParseEndpoint("tls://"+ln.Addr().String()))
	var record tls.RecordHeaderError
	if !errors.As(err, &record) || !strings.Contains(err.Error(), "TLS handshake with") {
		t.Errorf("got %v, want a RecordHeaderError", err)
	}
	ln.Close()
	<-done
}
