// Package secure makes TLS configurations of what people give: files, a pin, or
// nothing at all; does the handshake; and says in words what it came to.
//
//	config, err := secure.Client{CAFile: "ca.pem"}.Config("example.com")
//	conn, err := secure.Connect(ctx, tcp, config) // the error says what is wrong, and with which certificate
//
// It stands on crypto/tls, and speaks TLS 1.2 (RFC 5246) and 1.3 (RFC 8446) on
// every system. What comes from a peer or its certificates is escaped where it
// would not print, so that every text here is fit for a terminal.
package secure

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"net"
)

const minVersion = tls.VersionTLS12

// Fingerprint returns "sha256:HEX" of a certificate, whole as it was sent. It is
// what "openssl x509 -fingerprint -sha256" prints, without the colons between bytes.
func Fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return pinPrefix + hex.EncodeToString(sum[:])
}

// NetConn returns the connection that carries c: of TLS the TCP or Unix one, of
// others c itself.
func NetConn(c net.Conn) net.Conn {
	for {
		over, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return c
		}
		c = over.NetConn()
	}
}
