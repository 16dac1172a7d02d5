package secure

import (
	"crypto/tls"
	"io/fs"
	"os"
	"sync"
	"time"
)

// lookAgain is how long files that were looked at are taken to be the same.
const lookAgain = time.Second

// keyPair is a certificate and its key, read again when the files change.
type keyPair struct {
	certFile, keyFile string

	mu     sync.Mutex
	cert   *tls.Certificate
	files  [2]fs.FileInfo // as they were when cert was read
	looked time.Time
}

func watchKeyPair(certFile, keyFile string) (*keyPair, error) {
	if keyFile == "" {
		keyFile = certFile
	}
	p := &keyPair{certFile: certFile, keyFile: keyFile, looked: time.Now()}
	files, _ := p.stat()
	return p, p.read(files)
}

// get is a [tls.Config].GetCertificate.
func (p *keyPair) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := time.Now(); now.Sub(p.looked) >= lookAgain {
		p.looked = now
		if files, ok := p.stat(); ok && (changed(p.files[0], files[0]) || changed(p.files[1], files[1])) {
			p.read(files) // of a pair that is half replaced the next look makes a whole
		}
	}
	return p.cert, nil
}

// stat looks before the files are read, so that a change in between is seen the next time.
func (p *keyPair) stat() (files [2]fs.FileInfo, ok bool) {
	for i, path := range []string{p.certFile, p.keyFile} {
		info, err := os.Stat(path)
		if err != nil || !info.Mode().IsRegular() { // a pipe is read but once
			return files, false
		}
		files[i] = info
	}
	return files, true
}

func (p *keyPair) read(files [2]fs.FileInfo) error {
	cert, err := readKeyPair(p.certFile, p.keyFile)
	if err == nil {
		p.cert, p.files = &cert, files
	}
	return err
}

func changed(was, is fs.FileInfo) bool {
	return was == nil || !os.SameFile(was, is) || was.Size() != is.Size() || !was.ModTime().Equal(is.ModTime())
}
