package secure

import (
	"crypto/tls"
	"crypto/x509"
	"strings"
	"testing"
)

func TestClientThatCannotBe(t *testing.T) {
	pki := newPKI(t)
	ca := certFile(t, pki.root.cert)
	good := Fingerprint(pki.server.cert)
	for _, tt := range []struct {
		name   string
		client Client
		want   string
	}{
		{"no host", Client{}, "no host name"},
		{"pin and CA", Client{Pin: good, CAFile: ca}, "the pin or the CA file"},
		{"pin of another sum", Client{Pin: "sha1:00"}, "does not begin with sha256:"},
		{"short pin", Client{Pin: good[:len(good)-2]}, "64 hexadecimal digits"},
		{"long pin", Client{Pin: good + "00"}, "64 hexadecimal digits"},
		{"pin not hexadecimal", Client{Pin: "sha256:" + strings.Repeat("xy", 32)}, "64 hexadecimal digits"},
		{"pin that does not print", Client{Pin: "sha256:\x1b[31m"}, `\x1b[31m`},
		{"empty protocol", Client{Insecure: true, ALPN: []string{"h2", ""}}, "1 to 255"},
		{"long protocol", Client{Insecure: true, ALPN: []string{strings.Repeat("x", 256)}}, "256 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := tt.client.Config("")
			wantText(t, err, "TLS: ", tt.want)
		})
	}
}

func TestClientNamesTheHost(t *testing.T) {
	for _, tt := range []struct{ host, name, want string }{
		{"example.com", "", "example.com"},
		{"example.com", "other.example", "other.example"},
		{"127.0.0.1", "", "127.0.0.1"},
		{"fe80::1%eth0", "", "fe80::1"},
	} {
		config, err := Client{ServerName: tt.name}.Config(tt.host)
		if err != nil || config.ServerName != tt.want || config.InsecureSkipVerify || config.MinVersion != tls.VersionTLS12 {
			t.Errorf("%q, %q: got %+v, %v, want server name %q, verified, TLS 1.2 or newer", tt.host, tt.name, config, err, tt.want)
		}
	}
}

func TestPinTakesOneCertificateOnly(t *testing.T) {
	pki := newPKI(t)
	old := pki.intermediate.issue(t, "Old", expired, forNames("elsewhere.example"))
	for _, tt := range []struct {
		name string
		pin  string
		want string
	}{
		{"as printed", Fingerprint(old.cert), ""},
		{"upper case", strings.ToUpper(Fingerprint(old.cert)), ""},
		{"with colons", "sha256:" + colons(Fingerprint(old.cert)), ""},
		{"of its issuer", Fingerprint(pki.intermediate.cert), "not the pinned one"},
		{"of another", Fingerprint(pki.server.cert), "not the pinned one"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			// Insecure must not switch the pin off.
			for _, insecure := range []bool{false, true} {
				config, err := Client{Pin: tt.pin, Insecure: insecure}.Config("localhost")
				if err != nil {
					t.Fatal(err)
				}
				err = connectTo(t, config, old.pair(old.chain()...))
				if tt.want == "" {
					if err != nil {
						t.Errorf("got %v", err)
					}
					continue
				}
				wantText(t, err, tt.want, "it is "+Fingerprint(old.cert), "the pin is "+tt.pin, "certificate 1: CN=Old", "<- not the pinned one")
			}
		})
	}
}

func colons(fingerprint string) string {
	var b strings.Builder
	for i, c := range strings.TrimPrefix(fingerprint, pinPrefix) {
		if i > 0 && i%2 == 0 {
			b.WriteByte(':')
		}
		b.WriteRune(c)
	}
	return b.String()
}

func TestInsecureTakesAnyCertificate(t *testing.T) {
	pki := newPKI(t)
	old := pki.server.issue(t, "Old", expired, forNames("elsewhere.example"))
	config, err := Client{Insecure: true}.Config("localhost")
	if err != nil {
		t.Fatal(err)
	}
	if err := connectTo(t, config, old.pair(old.cert)); err != nil {
		t.Errorf("got %v", err)
	}
}

func TestCAFileTakesThePlaceOfTheSystemsRoots(t *testing.T) {
	pki, other := newPKI(t), newPKI(t)
	for _, tt := range []struct {
		name   string
		client Client
		want   string
	}{
		{"its root", Client{CAFile: certFile(t, other.root.cert, pki.root.cert)}, ""},
		{"the leaf itself", Client{CAFile: certFile(t, pki.server.cert)}, ""},
		{"another root", Client{CAFile: certFile(t, other.root.cert)}, "not trusted here"},
		{"the system's", Client{}, "not trusted here"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			config, err := tt.client.Config("127.0.0.1")
			if err != nil {
				t.Fatal(err)
			}
			err = connectTo(t, config, pki.server.pair(pki.server.chain()...))
			if tt.want == "" {
				if err != nil {
					t.Errorf("got %v", err)
				}
				return
			}
			wantText(t, err, tt.want)
		})
	}
}

func TestClientCertificateIsShownWhateverTheServerNames(t *testing.T) {
	pki := newPKI(t)
	otherRoot := (*identity)(nil).issue(t, "Other Root", authority)
	other := otherRoot.issue(t, "Other")
	client := Client{Insecure: true, CertFile: certFile(t, pki.server.chain()...), KeyFile: pki.server.keyFile(t)}
	config, err := client.Config("localhost")
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(otherRoot.cert) // which the request names
	server := &tls.Config{Certificates: []tls.Certificate{other.pair(other.cert)}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}
	_, serverErr := shake(t, config, server)
	wantText(t, serverErr, "certificate 2, CN=Test Intermediate, is issued by CN=Test Root, which is not trusted here", "file of client authorities", "certificate 1: CN=Test Server")
}
