package secure

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

func TestServerThatCannotBe(t *testing.T) {
	pki := newPKI(t)
	cert, key := certFile(t, pki.server.cert), pki.server.keyFile(t)
	for _, tt := range []struct {
		name   string
		server Server
		want   string
	}{
		{"nothing", Server{}, "needs a certificate"},
		{"key alone", Server{KeyFile: key}, "needs a certificate"},
		{"both", Server{SelfSigned: true, CertFile: cert}, "self-signed or from files"},
		{"other key", Server{CertFile: cert, KeyFile: pki.root.keyFile(t)}, "does not match"},
		{"no client authority", Server{CertFile: cert, KeyFile: key, ClientCAFile: key}, "holds no certificate"},
		{"host with a space", Server{SelfSigned: true, Hosts: []string{"a b"}}, `"a b" is neither`},
		{"empty host", Server{SelfSigned: true, Hosts: []string{""}}, `"" is neither`},
		{"any host", Server{SelfSigned: true, Hosts: []string{"*"}}, `"*" is neither`},
		{"host with a port", Server{SelfSigned: true, Hosts: []string{"a:80"}}, `"a:80" is neither`},
		{"host that does not print", Server{SelfSigned: true, Hosts: []string{"\x1b"}}, `"\x1b" is neither`},
		{"long host", Server{SelfSigned: true, Hosts: []string{strings.Repeat("a", 64) + ".example"}}, "is neither"},
		{"empty protocol", Server{SelfSigned: true, ALPN: []string{""}}, "1 to 255"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := tt.server.Config()
			wantText(t, err, "TLS: ", tt.want)
		})
	}
}

func TestSelfSignedCertificateIsForItsHosts(t *testing.T) {
	long := strings.Repeat("long.", 20) + "example"
	for _, tt := range []struct {
		hosts, names []string
		other        string
	}{
		{nil, []string{"localhost", "127.0.0.1", "::1"}, "example.com"},
		{[]string{"a.example", "*.b.example", "2001:db8::1", "fe80::1%eth0", "a.example"}, []string{"a.example", "x.b.example", "2001:db8::1", "fe80::1"}, "localhost"},
		{[]string{long}, []string{long}, "localhost"},
	} {
		config, err := Server{SelfSigned: true, Hosts: tt.hosts}.Config()
		if err != nil {
			t.Fatal(err)
		}
		leaf := config.Certificates[0].Leaf
		roots := x509.NewCertPool()
		roots.AddCert(leaf)
		for _, name := range tt.names {
			if _, err := leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots}); err != nil {
				t.Errorf("hosts %q: %s: %v", tt.hosts, name, err)
			}
		}
		if err := leaf.VerifyHostname(tt.other); err == nil {
			t.Errorf("hosts %q: valid for %s", tt.hosts, tt.other)
		}
		begun, left := time.Since(leaf.NotBefore), time.Until(leaf.NotAfter)
		if begun < 59*time.Minute || begun > 61*time.Minute || left < 719*time.Hour || left > 720*time.Hour {
			t.Errorf("hosts %q: valid since %v, for %v, want an hour and 30 days", tt.hosts, begun, left)
		}
		if leaf.IsCA || leaf.KeyUsage&x509.KeyUsageCertSign != 0 {
			t.Error("the certificate may sign others")
		}
	}
	a, b := must(Server{SelfSigned: true}.Config()), must(Server{SelfSigned: true}.Config())
	if Fingerprint(a.Certificates[0].Leaf) == Fingerprint(b.Certificates[0].Leaf) {
		t.Error("two certificates are the same")
	}
}

func TestDescribeTellsWhatWasAgreed(t *testing.T) {
	pki := newPKI(t)
	server := must(Server{CertFile: certFile(t, pki.server.chain()...), KeyFile: pki.server.keyFile(t), ALPN: []string{"h2", "ft"}}.Config())
	trusting := Client{CAFile: certFile(t, pki.root.cert), ALPN: []string{"ft"}}
	for _, tt := range []struct {
		name    string
		client  Client
		version uint16
		want    string
		not     string
	}{
		{"TLS 1.3", trusting, tls.VersionTLS13, "TLS 1.3, cipher TLS_", "not verified"},
		{"TLS 1.2", trusting, tls.VersionTLS12, "TLS 1.2, cipher TLS_ECDHE", "not verified"},
		{"names", trusting, tls.VersionTLS13, "server name localhost\nprotocol ft (ALPN)\ncertificate 1: CN=Test Server, issued by CN=Test Intermediate, valid 20", "not verified"},
		{"chain", trusting, tls.VersionTLS13, Fingerprint(pki.server.cert) + ", for localhost, 127.0.0.1, ::1\ncertificate 2: CN=Test Intermediate, issued by CN=Test Root, valid 20", "<-"},
		{"insecure", Client{Insecure: true}, tls.VersionTLS13, "was not verified", "ALPN"},
		{"pin", Client{Pin: Fingerprint(pki.server.cert)}, tls.VersionTLS13, "was not verified", "ALPN"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			config := must(tt.client.Config("localhost"))
			config.MaxVersion = tt.version
			c, s := tcpPair(t)
			go Accept(t.Context(), s, server)
			conn, err := Connect(t.Context(), c, config)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			got := strings.Join(Describe(conn.ConnectionState()), "\n")
			if !strings.Contains(got, tt.want) || strings.Contains(got, tt.not) {
				t.Errorf("got %s\nwant %q in it, and not %q", got, tt.want, tt.not)
			}
		})
	}
}

func TestNetConnIsTheSocketBelow(t *testing.T) {
	c, s := tcpPair(t)
	go func() {
		conn, err := Accept(t.Context(), s, must(Server{SelfSigned: true}.Config()))
		if err == nil {
			io.Copy(conn, conn)
		}
	}()
	conn, err := Connect(t.Context(), c, must(Client{Insecure: true}.Config("localhost")))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, of := range []net.Conn{conn, conn.NetConn(), c} {
		if got := NetConn(of); got != c {
			t.Errorf("of %T: got %T, want the TCP connection", of, got)
		}
	}
	if conn.NetConn().(*heardConn).heard != nil {
		t.Error("what the peer said in the handshake is kept")
	}
}
