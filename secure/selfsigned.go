package secure

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

const (
	selfSignedLife = 30 * 24 * time.Hour
	clockSkew      = time.Hour // by which a client's clock may be behind
	maxCommonName  = 64        // RFC 5280 appendix A.1, ub-common-name
)

func selfSigned(hosts []string) (tls.Certificate, error) {
	if len(hosts) == 0 {
		hosts = []string{"localhost", "127.0.0.1", "::1"}
	}
	now := time.Now()
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: hosts[0][:min(len(hosts[0]), maxCommonName)]},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(selfSignedLife),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true, // not an authority: whoever trusts it trusts nothing else with it
	}
	if err := addHosts(template, hosts); err != nil {
		return tls.Certificate{}, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make a key: %w", err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make a certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, err
}

func addHosts(template *x509.Certificate, hosts []string) error {
	for _, host := range hosts {
		if addr, err := netip.ParseAddr(host); err == nil {
			template.IPAddresses = append(template.IPAddresses, addr.WithZone("").AsSlice())
			continue
		}
		if !isName(host) {
			return fmt.Errorf("%q is neither an IP address nor a host name, of which a certificate could be", host)
		}
		if !slices.Contains(template.DNSNames, host) {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	return nil
}

// isName says whether a certificate can have the name: letters, digits and
// hyphens between dots (RFC 5280 section 4.2.1.6), underscores, and "*" as the
// first part.
func isName(host string) bool {
	const maxName, maxLabel = 253, 63
	labels := strings.Split(strings.TrimPrefix(host, "*."), ".")
	bad := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
	}
	return len(host) <= maxName && !slices.ContainsFunc(labels, func(label string) bool {
		return label == "" || len(label) > maxLabel || strings.ContainsFunc(label, bad)
	})
}
