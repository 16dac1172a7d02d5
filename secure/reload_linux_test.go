package secure

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCertificateThroughAPipeIsReadOnce(t *testing.T) {
	pki := newPKI(t)
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	go os.WriteFile(fifo, pemCerts(pki.server.chain()...), 0)
	p, err := watchKeyPair(fifo, pki.server.keyFile(t))
	if err != nil {
		t.Fatal(err)
	}
	p.looked = p.looked.Add(-lookAgain) // the next look would wait for somebody to write
	if cert, err := p.get(nil); err != nil || Fingerprint(cert.Leaf) != Fingerprint(pki.server.cert) {
		t.Errorf("got %v, want the certificate that was read", err)
	}
}
