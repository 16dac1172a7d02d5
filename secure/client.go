package secure

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// Client is what a person says of TLS connections to make. The zero value
// verifies the peer's certificate with the system's roots and the host's name.
type Client struct {
	CAFile     string   // PEM: the only authorities to trust, instead of the system's
	CertFile   string   // PEM: the certificate to show, first, and its intermediates
	KeyFile    string   // PEM: its key; empty: in CertFile too
	ServerName string   // what to ask for (SNI, RFC 6066 section 3) and to verify, instead of the host
	ALPN       []string // protocols to offer, the best first (RFC 7301)
	Insecure   bool     // verify nothing

	// Pin is the [Fingerprint] of the one certificate to accept, "sha256:HEX", with
	// colons between the bytes or not. It takes the place of the chain, the names
	// and the dates, none of which are looked at.
	Pin string
}

// Config returns the configuration to connect to a host, a name or an IP address.
// It asks for TLS 1.2 at least. A client certificate is shown to each server that
// asks for one, whichever authorities that server names.
func (c Client) Config(host string) (*tls.Config, error) {
	config, err := c.config(host)
	if err != nil {
		return nil, fmt.Errorf("TLS: %w", err)
	}
	return config, nil
}

// ConfigForAny is Config for a connection to any host: whoever makes it sets the
// ServerName, where c has none.
func (c Client) ConfigForAny() (*tls.Config, error) {
	config, err := c.Config("any")
	if err == nil {
		config.ServerName = c.ServerName
	}
	return config, err
}

// Warnings says what is unwise about the files of the configuration.
func (c Client) Warnings() []string { return keyWarnings(c.CertFile, c.KeyFile) }

func (c Client) config(host string) (*tls.Config, error) {
	if err := checkALPN(c.ALPN); err != nil {
		return nil, err
	}
	config := &tls.Config{MinVersion: minVersion, NextProtos: c.ALPN, ServerName: c.serverName(host)}
	if err := c.verify(config); err != nil {
		return nil, err
	}
	if c.CertFile == "" && c.KeyFile != "" {
		return nil, fmt.Errorf("the key file %s needs a certificate file beside it", c.KeyFile)
	}
	if c.CertFile != "" {
		cert, err := readKeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, err
		}
		// Certificates would be withheld from a server that does not name their authority.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	}
	return config, nil
}

// serverName leaves out the zone of an IPv6 address, which no certificate has.
func (c Client) serverName(host string) string {
	if c.ServerName != "" {
		return c.ServerName
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.WithZone("").String()
	}
	return host
}

// verify sets what makes a peer's certificate good.
func (c Client) verify(config *tls.Config) (err error) {
	switch {
	case c.Pin != "" && c.CAFile != "":
		return errors.New("a pin takes the place of authorities: give the pin or the CA file")
	case c.Pin != "":
		pin, err := parsePin(c.Pin)
		if err != nil {
			return err
		}
		config.InsecureSkipVerify = true
		config.VerifyConnection = pin.verify
	case c.Insecure:
		config.InsecureSkipVerify = true
	case config.ServerName == "":
		return errors.New("no host name to verify the certificate with: give a server name")
	}
	if c.CAFile != "" {
		config.RootCAs, err = readPool(c.CAFile)
	}
	return err
}

func checkALPN(protocols []string) error {
	for _, p := range protocols {
		if len(p) == 0 || len(p) > 255 {
			return fmt.Errorf("the ALPN protocol %q is %d bytes long: want 1 to 255", p, len(p))
		}
	}
	return nil
}

const pinPrefix = "sha256:"

type pin [sha256.Size]byte

func parsePin(s string) (p pin, err error) {
	if len(s) < len(pinPrefix) || !strings.EqualFold(s[:len(pinPrefix)], pinPrefix) {
		return p, fmt.Errorf("the pin %q does not begin with %s", s, pinPrefix)
	}
	sum, err := hex.DecodeString(strings.ReplaceAll(s[len(pinPrefix):], ":", ""))
	if err != nil || len(sum) != len(p) {
		return p, fmt.Errorf("the pin %q is not %s and %d hexadecimal digits", s, pinPrefix, 2*len(p))
	}
	return pin(sum), nil
}

// verify is a [tls.Config].VerifyConnection.
func (p pin) verify(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("the peer sent no certificate to compare with the pin")
	}
	sum := sha256.Sum256(cs.PeerCertificates[0].Raw)
	if subtle.ConstantTimeCompare(sum[:], p[:]) == 1 {
		return nil
	}
	return &pinError{pinned: pinPrefix + hex.EncodeToString(p[:]), chain: cs.PeerCertificates}
}

type pinError struct {
	pinned string
	chain  []*x509.Certificate
}

func (e *pinError) Error() string {
	return fmt.Sprintf("the certificate is %s, the pin %s", Fingerprint(e.chain[0]), e.pinned)
}
