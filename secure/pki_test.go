package secure

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// identity is a certificate, its key, and who signed it: nobody signs a root.
type identity struct {
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	issuer *identity
}

// issue makes a certificate signed by the identity, or by itself if that is nil.
// It is for localhost, 127.0.0.1 and ::1, and valid now, unless changed.
func (ca *identity) issue(t *testing.T, name string, change ...func(*x509.Certificate)) *identity {
	t.Helper()
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: name},
		NotBefore:   time.Now().Add(-time.Hour),
		NotAfter:    time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		DNSNames:    []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	for _, c := range change {
		c(template)
	}
	id := &identity{key: must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), issuer: ca}
	parent, signer := template, id.key
	if ca != nil {
		parent, signer = ca.cert, ca.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, id.key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	id.cert = must(x509.ParseCertificate(der))
	return id
}

func authority(c *x509.Certificate) {
	c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
	c.DNSNames, c.IPAddresses = nil, nil
}

func expired(c *x509.Certificate) {
	c.NotBefore, c.NotAfter = time.Now().Add(-96*time.Hour), time.Now().Add(-72*time.Hour-time.Minute)
}

func notYetValid(c *x509.Certificate) {
	c.NotBefore, c.NotAfter = time.Now().Add(72*time.Hour+time.Minute), time.Now().Add(96*time.Hour)
}

func forNames(names ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = names, nil }
}

// testPKI is a root, an intermediate, and a server of the latter.
type testPKI struct{ root, intermediate, server *identity }

func newPKI(t *testing.T) testPKI {
	root := (*identity)(nil).issue(t, "Test Root", authority)
	intermediate := root.issue(t, "Test Intermediate", authority)
	return testPKI{root, intermediate, intermediate.issue(t, "Test Server")}
}

// chain is the certificate with its intermediates, without the root.
func (id *identity) chain() (certs []*x509.Certificate) {
	for ; id != nil && (id.issuer != nil || len(certs) == 0); id = id.issuer {
		certs = append(certs, id.cert)
	}
	return certs
}

func (id *identity) pair(certs ...*x509.Certificate) tls.Certificate {
	pair := tls.Certificate{PrivateKey: id.key, Leaf: id.cert}
	for _, c := range certs {
		pair.Certificate = append(pair.Certificate, c.Raw)
	}
	return pair
}

// keyFile writes the key.
func (id *identity) keyFile(t *testing.T) string {
	t.Helper()
	return writeFile(t, "key.pem", pemKey(id.key))
}

func pemKey(key *ecdsa.PrivateKey) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(key))})
}

func pemCerts(certs ...*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range certs {
		ok(pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return b.Bytes()
}

func certFile(t *testing.T, certs ...*x509.Certificate) string {
	t.Helper()
	return writeFile(t, "cert.pem", pemCerts(certs...))
}

func writeFile(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func must[T any](v T, err error) T {
	ok(err)
	return v
}

func ok(err error) {
	if err != nil {
		panic(err)
	}
}
