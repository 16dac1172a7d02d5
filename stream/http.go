package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// HTTP makes a handler that serves the files of a directory by HTTP/1.1: GET and
// HEAD, with ranges, conditional requests and content types as package net/http
// has them (RFC 9110), and index.html for a directory that has one. Another
// directory is forbidden (403), see [HTTPListing]. Names that begin with a dot are
// not there (404), nor is anything that is neither a file nor a directory.
// Symbolic links are followed inside the directory; those that lead out of it, or
// are absolute, are forbidden, also where somebody changes them meanwhile
// ([os.Root]). The directory is opened once: one that is later put in its place
// is not seen.
//
// A client has 10 seconds for the header of a request, and a minute between two;
// Limits.IdleTimeout bounds an answer that it does not read. Over TLS the
// configuration must not offer h2 by ALPN.
func HTTP(dir string) (Handler, error) { return newSite(dir, false) }

// HTTPListing is [HTTP] that answers with a list of its files for a directory
// without index.html.
func HTTPListing(dir string) (Handler, error) { return newSite(dir, true) }

func newSite(dir string, list bool) (Handler, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("serve directory %s: %w", dir, err)
	}
	files := http.FileServer(site{root, list})
	srv := &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          log.New(io.Discard, "", 0),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet && r.Method != http.MethodHead {
				w.Header().Set("Allow", "GET, HEAD")
				http.Error(w, "only GET and HEAD are served here", http.StatusMethodNotAllowed)
				return
			}
			files.ServeHTTP(w, r)
		}),
	}
	return HandlerFunc(func(_ context.Context, c *Conn) error {
		hc := &httpConn{Conn: c, closed: make(chan struct{})}
		srv.Serve(&httpListener{conn: hc})
		return hc.end()
	}), nil
}

// httpListener gives a server one connection, and ends it with the connection.
type httpListener struct {
	conn *httpConn
	once bool
}

// Accept implements net.Listener.
func (l *httpListener) Accept() (net.Conn, error) {
	if !l.once {
		l.once = true
		return l.conn, nil
	}
	<-l.conn.closed
	return nil, net.ErrClosed
}

// Close implements net.Listener.
func (l *httpListener) Close() error { return nil }

// Addr implements net.Listener.
func (l *httpListener) Addr() net.Addr { return l.conn.LocalAddr() }

// httpConn is a connection whose Close says that HTTP is done with it; our own
// server closes it, when the peer has all of it.
type httpConn struct {
	*Conn
	closed chan struct{}
	once   sync.Once
	mu     sync.Mutex
	err    error // of the last Read or Write that failed, but for deadlines, and for the end of file that follows a reset
}

// Close implements net.Conn.
func (c *httpConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

// Read implements net.Conn.
func (c *httpConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	return n, c.failed(err)
}

// Write implements net.Conn.
func (c *httpConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	return n, c.failed(err)
}

// ReadFrom implements io.ReaderFrom.
func (c *httpConn) ReadFrom(r io.Reader) (int64, error) {
	n, err := c.Conn.ReadFrom(r)
	return n, c.failed(err)
}

func (c *httpConn) failed(err error) error {
	if err != nil && !isTimeout(err) {
		c.mu.Lock()
		if c.err == nil || err != io.EOF {
			c.err = err
		}
		c.mu.Unlock()
	}
	return err
}

// end is why the connection ended, nil if HTTP had enough of it.
func (c *httpConn) end() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// site is the files of a directory as they are shown.
type site struct {
	root *os.Root
	list bool
}

// Open implements http.FileSystem.
func (s site) Open(name string) (http.File, error) {
	f, err := s.open(strings.TrimPrefix(name, "/"))
	if err != nil {
		return nil, statusOf(name, err)
	}
	return f, nil
}

func (s site) open(name string) (http.File, error) {
	if slices.ContainsFunc(strings.Split(name, "/"), func(part string) bool { return strings.HasPrefix(part, ".") }) {
		return nil, fs.ErrNotExist
	}
	if name == "" {
		name = "."
	}
	name = filepath.FromSlash(name)
	info, err := s.root.Stat(name) // to open a device or a FIFO could do something
	if err != nil {
		return nil, err
	}
	if !info.IsDir() && !info.Mode().IsRegular() {
		return nil, fs.ErrNotExist
	}
	f, err := s.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if info, err = f.Stat(); err == nil && !info.IsDir() && !info.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err == nil && info.IsDir() && !s.list {
		_, err = s.root.Stat(filepath.Join(name, "index.html"))
		if errors.Is(err, fs.ErrNotExist) {
			err = fs.ErrPermission
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	if info.IsDir() {
		return shownDir{f}, nil
	}
	return f, nil
}

// statusOf makes of an error one for which package http has a status: of what
// the system itself lacks 500, of a path that leads out of the root 403, of what
// cannot be a file 404.
func statusOf(name string, err error) error {
	var errno syscall.Errno
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
	case !errors.As(err, &errno):
		err = fs.ErrPermission
	case errno == syscall.ENOTDIR, errno == syscall.ELOOP, errno == syscall.ENAMETOOLONG, errno == syscall.EINVAL:
		err = fs.ErrNotExist
	}
	return &fs.PathError{Op: "open", Path: name, Err: err}
}

// shownDir lists no names that begin with a dot.
type shownDir struct{ *os.File }

// Readdir implements http.File.
func (d shownDir) Readdir(n int) ([]fs.FileInfo, error) {
	infos, err := d.File.Readdir(n)
	return slices.DeleteFunc(infos, func(i fs.FileInfo) bool { return strings.HasPrefix(i.Name(), ".") }), err
}

// ReadDir implements fs.ReadDirFile, which package http prefers.
func (d shownDir) ReadDir(n int) ([]fs.DirEntry, error) {
	entries, err := d.File.ReadDir(n)
	return slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return strings.HasPrefix(e.Name(), ".") }), err
}
