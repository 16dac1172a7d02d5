package secure

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestChangedCertificateFilesAreReadAgain(t *testing.T) {
	pki := newPKI(t)
	next := pki.intermediate.issue(t, "Next")
	dir := t.TempDir()
	certPath, keyPath := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	put := func(path string, content []byte) {
		t.Helper()
		ok(os.WriteFile(path+".new", content, 0o600))
		ok(os.Rename(path+".new", path))
	}
	put(certPath, pemCerts(pki.server.chain()...))
	put(keyPath, pemKey(pki.server.key))
	synctest.Test(t, func(t *testing.T) {
		p, err := watchKeyPair(certPath, keyPath)
		if err != nil {
			t.Fatal(err)
		}
		is := func(when string, want *identity) {
			t.Helper()
			if cert, err := p.get(nil); err != nil || !cert.Leaf.Equal(want.cert) {
				t.Errorf("%s: got %v, %v, want %v", when, cert.Leaf.Subject, err, want.cert.Subject)
			}
		}
		is("at first", pki.server)
		put(certPath, pemCerts(next.chain()...))
		is("within the second", pki.server)
		time.Sleep(lookAgain)
		is("with the certificate replaced but not the key", pki.server)
		put(keyPath, pemKey(next.key))
		time.Sleep(lookAgain)
		is("with both replaced", next)
		put(certPath, []byte("half a fi"))
		time.Sleep(lookAgain)
		is("with a broken file", next)
		ok(os.Remove(certPath))
		time.Sleep(lookAgain)
		is("without a file", next)
		put(certPath, pemCerts(pki.server.chain()...))
		put(keyPath, pemKey(pki.server.key))
		time.Sleep(lookAgain)
		is("with good files again", pki.server)
		ok(os.WriteFile(certPath, append(pemCerts(pki.server.cert), '\n'), 0o600))
		time.Sleep(lookAgain)
		if cert, err := p.get(nil); err != nil || len(cert.Certificate) != 1 {
			t.Errorf("written in place: got %d certificates, %v, want 1", len(cert.Certificate), err)
		}
	})
}

func TestHandshakesAtOnceShareTheFiles(t *testing.T) {
	pki := newPKI(t)
	p, err := watchKeyPair(certFile(t, pki.server.cert), pki.server.keyFile(t))
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 100 {
				p.mu.Lock()
				p.looked = time.Time{}
				p.mu.Unlock()
				if cert, err := p.get(nil); err != nil || !cert.Leaf.Equal(pki.server.cert) {
					t.Errorf("got %v", err)
				}
			}
		})
	}
	all.Wait()
}
