package secure

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"strings"
	"time"

	"github.com/fivetuple/fivetuple/internal/printable"
)

// Describe says in lines what a handshake agreed on, and the certificates the
// peer sent, one a line.
func Describe(cs tls.ConnectionState) []string {
	first := tls.VersionName(cs.Version) + ", cipher " + tls.CipherSuiteName(cs.CipherSuite)
	if cs.CurveID != 0 {
		first += ", key exchange " + cs.CurveID.String()
	}
	if cs.DidResume {
		first += ", resumed"
	}
	lines := []string{first}
	if cs.ServerName != "" {
		lines = append(lines, "server name "+shown(cs.ServerName))
	}
	if cs.NegotiatedProtocol != "" {
		lines = append(lines, "protocol "+shown(cs.NegotiatedProtocol)+" (ALPN)")
	}
	if len(cs.PeerCertificates) > 0 && len(cs.VerifiedChains) == 0 {
		lines = append(lines, "the peer's certificate was not verified by authorities (a pin, or insecure)")
	}
	return append(lines, describeChain(cs.PeerCertificates, nil)...)
}

// describeChain has a line for each certificate, with what is wrong with it. A
// peer may send hundreds: it ends after the first ones.
func describeChain(chain []*x509.Certificate, wrong map[int]string) []string {
	const most = 10
	var lines []string
	for i, cert := range chain {
		if i == most {
			return append(lines, fmt.Sprintf("and %d certificates more", len(chain)-most))
		}
		line := fmt.Sprintf("certificate %d: %s, issued by %s, valid %s to %s, %s", i+1,
			subject(cert), issuer(cert), date(cert.NotBefore), date(cert.NotAfter), Fingerprint(cert))
		if i == 0 {
			line += ", for " + names(cert)
		}
		if wrong[i] != "" {
			line += " <- " + wrong[i]
		}
		lines = append(lines, line)
	}
	return lines
}

func subject(cert *x509.Certificate) string { return named(cert.Subject.String()) }

func issuer(cert *x509.Certificate) string {
	if isSelfSigned(cert) {
		return "itself"
	}
	return named(cert.Issuer.String())
}

func named(name string) string {
	if name == "" {
		return "no name"
	}
	return shown(name)
}

func isSelfSigned(cert *x509.Certificate) bool {
	return string(cert.RawIssuer) == string(cert.RawSubject) &&
		cert.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature) == nil
}

// names lists the hosts a certificate is for, the first ones of many.
func names(cert *x509.Certificate) string {
	const most = 10
	all := make([]string, 0, most)
	for _, name := range cert.DNSNames {
		all = append(all, shown(name))
	}
	for _, ip := range cert.IPAddresses {
		all = append(all, ip.String())
	}
	switch {
	case len(all) == 0:
		return "no host"
	case len(all) > most:
		return fmt.Sprintf("%s and %d more", strings.Join(all[:most], ", "), len(all)-most)
	}
	return strings.Join(all, ", ")
}

func date(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// shown makes text of a peer fit to be shown: printable, and not endless.
func shown(s string) string {
	const most = 200 // bytes
	s = printable.Escape(s)
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "..."
	}
	return s
}
