package secure

import (
	"crypto/tls"
	"errors"
	"fmt"
)

// Server is what a person says of TLS connections to take: files, or SelfSigned.
type Server struct {
	CertFile     string // PEM: the certificate, first, and its intermediates
	KeyFile      string // PEM: its key; empty: in CertFile too
	ClientCAFile string // PEM: clients must show a certificate of one of these authorities

	// SelfSigned makes a certificate and its key, in memory, for 30 days. A restart
	// makes others. Clients know it by its [Fingerprint].
	SelfSigned bool
	Hosts      []string // names and IP addresses of a self-signed certificate; none: localhost, 127.0.0.1, ::1

	ALPN []string // protocols to accept, the best first (RFC 7301); none: no ALPN
}

// Config returns the configuration to serve with TLS 1.2 or newer.
//
// A self-signed certificate is its Certificates[0], with the Leaf set. Certificate
// files are looked at again at a handshake, at most once a second, and read if they
// have changed; where that fails the certificate that was read last stays in use.
func (s Server) Config() (*tls.Config, error) {
	config, err := s.config()
	if err != nil {
		return nil, fmt.Errorf("TLS: %w", err)
	}
	return config, nil
}

// Warnings says what is unwise about the files of the configuration.
func (s Server) Warnings() []string { return keyWarnings(s.CertFile, s.KeyFile) }

func (s Server) config() (*tls.Config, error) {
	if err := checkALPN(s.ALPN); err != nil {
		return nil, err
	}
	config := &tls.Config{MinVersion: minVersion, NextProtos: s.ALPN}
	if err := s.certify(config); err != nil {
		return nil, err
	}
	if s.ClientCAFile != "" {
		pool, err := readPool(s.ClientCAFile)
		if err != nil {
			return nil, err
		}
		config.ClientCAs, config.ClientAuth = pool, tls.RequireAndVerifyClientCert
	}
	return config, nil
}

// certify sets the certificate to show.
func (s Server) certify(config *tls.Config) error {
	switch {
	case s.SelfSigned && (s.CertFile != "" || s.KeyFile != ""):
		return errors.New("a certificate is self-signed or from files: give one of both")
	case s.SelfSigned:
		cert, err := selfSigned(s.Hosts)
		config.Certificates = []tls.Certificate{cert}
		return err
	case s.CertFile == "":
		return errors.New("a server needs a certificate: give its file and that of its key, or make it self-signed")
	}
	files, err := watchKeyPair(s.CertFile, s.KeyFile)
	if err != nil {
		return err
	}
	config.GetCertificate = files.get
	return nil
}
