package secure

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
)

// readPool reads the authorities of a PEM file. Those that cannot be understood
// are left out if there are others, as in a system's bundle.
func readPool(path string) (*x509.CertPool, error) {
	blocks, err := readPEM(path)
	if err != nil {
		return nil, fmt.Errorf("CA file: %w", err)
	}
	pool := x509.NewCertPool()
	read := 0
	var why error
	for _, b := range blocks {
		if b.Type != certificateBlock {
			continue
		}
		cert, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			why = err
			continue
		}
		pool.AddCert(cert)
		read++
	}
	switch {
	case read > 0:
		return pool, nil
	case why != nil:
		return nil, fmt.Errorf("CA file %s: %w", path, why)
	}
	return nil, fmt.Errorf("CA file %s holds no certificate, but %s", path, kinds(blocks))
}

// readKeyPair reads a certificate with its intermediates, and its key, which may
// be in the same file.
func readKeyPair(certFile, keyFile string) (tls.Certificate, error) {
	if keyFile == "" {
		keyFile = certFile
	}
	certs, err := readPEM(certFile)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate file: %w", err)
	}
	if !slices.ContainsFunc(certs, func(b *pem.Block) bool { return b.Type == certificateBlock }) {
		return tls.Certificate{}, fmt.Errorf("certificate file %s holds no certificate, but %s", certFile, kinds(certs))
	}
	keys, err := readPEM(keyFile)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("key file: %w", err)
	}
	if err := checkKey(keys); err != nil {
		return tls.Certificate{}, fmt.Errorf("key file %s %w", keyFile, err)
	}
	pair, err := tls.X509KeyPair(encode(certs), encode(keys))
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate %s with key %s: %w", certFile, keyFile, err)
	}
	return pair, nil
}

func checkKey(blocks []*pem.Block) error {
	i := slices.IndexFunc(blocks, func(b *pem.Block) bool { return strings.HasSuffix(b.Type, "PRIVATE KEY") })
	if i < 0 {
		return fmt.Errorf("holds no private key, but %s", kinds(blocks))
	}
	if blocks[i].Type == "ENCRYPTED PRIVATE KEY" || blocks[i].Headers["DEK-Info"] != "" {
		return errors.New("is protected by a passphrase: take it off with openssl pkey -in OLD -out NEW")
	}
	return nil
}

const certificateBlock = "CERTIFICATE"

// readPEM reads all blocks of a PEM file (RFC 7468), at least one.
func readPEM(path string) (blocks []*pem.Block, err error) {
	const limit = 16 << 20 // a hundred times a system's bundle of authorities
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if len(text) > limit {
		return nil, fmt.Errorf("%s is longer than %d MiB", path, limit>>20)
	}
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		blocks, text = append(blocks, block), rest
	}
	switch {
	case len(blocks) > 0:
		return blocks, nil
	case len(text) == 0:
		return nil, fmt.Errorf("%s is empty", path)
	case text[0] == 0x30: // a DER sequence
		return nil, fmt.Errorf("%s is not PEM, but may be DER: convert it with openssl x509 -inform der, or openssl pkey -inform der", path)
	}
	return nil, fmt.Errorf("%s is not PEM: it has no line of -----BEGIN CERTIFICATE----- or the like", path)
}

func encode(blocks []*pem.Block) (text []byte) {
	for _, b := range blocks {
		text = append(text, pem.EncodeToMemory(b)...)
	}
	return text
}

// kinds lists what a file holds, to say that it is the wrong one.
func kinds(blocks []*pem.Block) string {
	var names []string
	for _, b := range blocks {
		if name := shown(b.Type); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}

// keyWarnings says if a key is open to others. A file that cannot be looked at is
// an error of Config.
func keyWarnings(certFile, keyFile string) []string {
	const others = 0o006
	if keyFile == "" {
		keyFile = certFile
	}
	if keyFile == "" || runtime.GOOS == "windows" {
		return nil
	}
	info, err := os.Stat(keyFile)
	if err != nil || !info.Mode().IsRegular() || info.Mode()&others == 0 {
		return nil
	}
	return []string{fmt.Sprintf("key file %s is open to every user (mode %04o): chmod go= %s", keyFile, info.Mode().Perm(), keyFile)}
}
