package secure

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestBadFilesAreNamedWithTheReason(t *testing.T) {
	pki := newPKI(t)
	dir := t.TempDir()
	cert, key := certFile(t, pki.server.cert), pki.server.keyFile(t)
	otherKey := pki.root.keyFile(t)
	empty := writeFile(t, "empty.pem", nil)
	text := writeFile(t, "text.pem", []byte("no such thing\n"))
	der := writeFile(t, "cert.der", pki.server.cert.Raw)
	broken := writeFile(t, "broken.pem", []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	encrypted := filepath.Join(dir, "encrypted.pem")
	openssl(t, "pkey", "-in", key, "-aes256", "-passout", "pass:x", "-out", encrypted)
	traditional := filepath.Join(dir, "traditional.pem")
	openssl(t, "ec", "-in", key, "-aes256", "-passout", "pass:x", "-out", traditional)
	missing := filepath.Join(dir, "missing.pem")
	for _, tt := range []struct {
		name   string
		client Client
		want   []string
	}{
		{"missing CA", Client{CAFile: missing}, []string{"CA file", missing, "no such file"}},
		{"missing certificate", Client{CertFile: missing}, []string{"certificate file", missing, "no such file"}},
		{"missing key", Client{CertFile: cert, KeyFile: missing}, []string{"key file", missing, "no such file"}},
		{"directory", Client{CAFile: dir}, []string{"CA file", dir, "is a directory"}},
		{"endless", Client{CAFile: "/dev/zero"}, []string{"/dev/zero is longer than 16 MiB"}},
		{"empty", Client{CAFile: empty}, []string{empty, "is empty"}},
		{"not PEM", Client{CAFile: text}, []string{text, "is not PEM"}},
		{"DER", Client{CertFile: der}, []string{der, "DER", "openssl x509 -inform der"}},
		{"CA that is a key", Client{CAFile: key}, []string{key, "no certificate, but PRIVATE KEY"}},
		{"broken CA", Client{CAFile: broken}, []string{broken, "malformed certificate"}},
		{"certificate that is a key", Client{CertFile: key}, []string{key, "no certificate, but PRIVATE KEY"}},
		{"key that is a certificate", Client{CertFile: cert, KeyFile: cert}, []string{cert, "no private key, but CERTIFICATE"}},
		{"no key beside", Client{CertFile: cert}, []string{cert, "no private key"}},
		{"other key", Client{CertFile: cert, KeyFile: otherKey}, []string{cert, otherKey, "private key does not match"}},
		{"encrypted key", Client{CertFile: cert, KeyFile: encrypted}, []string{encrypted, "passphrase", "openssl pkey"}},
		{"encrypted key, old format", Client{CertFile: cert, KeyFile: traditional}, []string{traditional, "passphrase", "openssl pkey"}},
		{"key alone", Client{KeyFile: key}, []string{key, "needs a certificate file"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := tt.client.Config("localhost")
			wantText(t, err, tt.want...)
		})
	}
}

func TestBundleKeepsWhatItCanRead(t *testing.T) {
	pki := newPKI(t)
	broken := []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
	bundle := writeFile(t, "ca.pem", append(broken, pemCerts(pki.root.cert, pki.server.cert)...))
	config, err := Client{CAFile: bundle}.Config("localhost")
	if err != nil {
		t.Fatal(err)
	}
	if got := connectTo(t, config, pki.server.pair(pki.server.chain()...)); got != nil {
		t.Errorf("with the second certificate of the bundle: got %v", got)
	}
}

func TestKeyOfTheSameFileIsFound(t *testing.T) {
	pki := newPKI(t)
	both := writeFile(t, "both.pem", append(pemKey(pki.server.key), pemCerts(pki.server.chain()...)...))
	if _, err := (Server{CertFile: both}).Config(); err != nil {
		t.Errorf("server: %v", err)
	}
	if _, err := (Client{CertFile: both}).Config("localhost"); err != nil {
		t.Errorf("client: %v", err)
	}
}

func TestKeyOpenToOthersIsWarnedOf(t *testing.T) {
	key := writeFile(t, "key.pem", []byte("x"))
	for _, tt := range []struct {
		mode os.FileMode
		want bool
	}{{0o600, false}, {0o640, false}, {0o644, true}, {0o602, true}} {
		ok(os.Chmod(key, tt.mode))
		for who, got := range map[string][]string{
			"client": Client{CertFile: "cert.pem", KeyFile: key}.Warnings(),
			"server": Server{CertFile: key}.Warnings(),
		} {
			if (len(got) == 1 && strings.Contains(got[0], key)) != tt.want {
				t.Errorf("%s, mode %v: got %q, want a warning: %v", who, tt.mode, got, tt.want)
			}
		}
	}
	if got := (Client{}).Warnings(); got != nil {
		t.Errorf("without a key: got %q", got)
	}
}

// wantText fails the test unless the error holds all of it, on lines that print.
func wantText(t *testing.T, err error, want ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("got no error, want %q", want)
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("got %v\nwant %q in it", err, w)
		}
	}
	if i := strings.IndexFunc(err.Error(), func(r rune) bool { return r < ' ' && r != '\n' || r == 0x7f }); i >= 0 {
		t.Errorf("got %q, which does not print at byte %d", err, i)
	}
}
