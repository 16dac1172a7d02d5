//go:build unix

package stream

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple/stats"
)

// page makes a directory with something of everything.
func page(t *testing.T) string {
	t.Helper()
	outside := t.TempDir()
	dir := filepath.Join(outside, "page")
	for path, text := range map[string]string{
		"a.txt": "0123456789", "b.html": "<p>b", "img.png": "\x89PNG\r\n\x1a\n", "sub/index.html": "index", "list/x": "x", "list/.hidden": "h",
		".env": "secret", ".git/config": "secret", "../secret": "secret", "../page-2/x": "secret",
	} {
		path = filepath.Join(dir, path)
		os.MkdirAll(filepath.Dir(path), 0o755)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{
		"inside": "a.txt", "out": "../secret", "absolute": filepath.Join(dir, "a.txt"), "outdir": "..", "loop": "loop", "dangling": "nothing", "tohidden": ".env",
	} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func startSite(t *testing.T, dir string, list bool) (*Server, *events, net.Listener) {
	t.Helper()
	h, err := newSite(dir, list)
	if err != nil {
		t.Fatal(err)
	}
	ev := newEvents()
	s := &Server{Handler: h, Sink: ev}
	return s, ev, serve(t, s, "0")
}

// ask sends a request as it is and returns the answer.
func ask(t *testing.T, ln net.Listener, request string) (*http.Response, string) {
	t.Helper()
	c := connect(t, ln)
	defer c.Close()
	io.WriteString(c, request)
	method, _, _ := strings.Cut(request, " ")
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

func TestHTTPServesTheDirectoryAndNothingElse(t *testing.T) {
	_, _, ln := startSite(t, page(t), false)
	for _, tt := range []struct {
		path string
		code int
		body string
	}{
		{"/a.txt", 200, "0123456789"},
		{"/b.html", 200, "<p>b"},
		{"/sub/", 200, "index"},
		{"/sub", 301, ""},
		{"/sub/index.html", 301, ""},
		{"/inside", 200, "0123456789"},
		{"/", 403, ""},
		{"/list/", 403, ""},
		{"/list/x", 200, "x"},
		{"/nothing", 404, ""},
		{"/a.txt/x", 404, ""},
		{"/dangling", 404, ""},
		{"/loop", 404, ""},
		{"/fifo", 404, ""},
		{"/" + strings.Repeat("x", 300), 404, ""},
		{"/.env", 404, ""},
		{"/.git/config", 404, ""},
		{"/list/.hidden", 404, ""},
		{"/out", 403, ""},
		{"/outdir/secret", 403, ""},
		{"/outdir", 403, ""},
		{"/absolute", 403, ""},
		{"/../secret", 404, ""},
		{"/../page-2/x", 404, ""},
		{"/%2e%2e/secret", 404, ""},
		{"/..%2fsecret", 404, ""},
		{"/sub/../../secret", 404, ""},
		{"/%00", 404, ""},
	} {
		resp, body := ask(t, ln, "GET "+tt.path+" HTTP/1.1\r\nHost: x\r\n\r\n")
		if resp.StatusCode != tt.code || tt.code == 200 && body != tt.body || strings.Contains(body, "secret") {
			t.Errorf("%s: %d %q, want %d %q", tt.path, resp.StatusCode, body, tt.code, tt.body)
		}
	}
}

func TestHTTPListsOnlyIfAsked(t *testing.T) {
	_, _, ln := startSite(t, page(t), true)
	resp, body := ask(t, ln, "GET /list/ HTTP/1.1\r\nHost: x\r\n\r\n")
	if resp.StatusCode != 200 || !strings.Contains(body, `<a href="x">`) || strings.Contains(body, "hidden") {
		t.Errorf("got %d %q", resp.StatusCode, body)
	}
	if _, body := ask(t, ln, "GET /sub/ HTTP/1.1\r\nHost: x\r\n\r\n"); body != "index" {
		t.Errorf("with an index: %q", body)
	}
}

func TestHTTPAnswersAsRFC9110HasIt(t *testing.T) {
	dir := page(t)
	when := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	os.Chtimes(filepath.Join(dir, "a.txt"), when, when)
	_, _, ln := startSite(t, dir, false)
	for _, tt := range []struct {
		name, method, path, header string
		code                       int
		body                       string
		field, value               string
	}{
		{"type of text", "GET", "/a.txt", "", 200, "0123456789", "Content-Type", "text/plain; charset=utf-8"},
		{"type of a picture", "GET", "/img.png", "", 200, "\x89PNG\r\n\x1a\n", "Content-Type", "image/png"},
		{"HEAD", "HEAD", "/a.txt", "", 200, "", "Content-Length", "10"},
		{"range", "GET", "/a.txt", "Range: bytes=2-4", 206, "234", "Content-Range", "bytes 2-4/10"},
		{"last bytes", "GET", "/a.txt", "Range: bytes=-3", 206, "789", "Content-Range", "bytes 7-9/10"},
		{"range beyond", "GET", "/a.txt", "Range: bytes=10-", 416, "invalid range: failed to overlap\n", "Content-Range", "bytes */10"},
		{"not modified", "GET", "/a.txt", "If-Modified-Since: " + when.Format(http.TimeFormat), 304, "", "Last-Modified", when.Format(http.TimeFormat)},
		{"modified", "GET", "/a.txt", "If-Modified-Since: " + when.Add(-time.Second).Format(http.TimeFormat), 200, "0123456789", "", ""},
		{"POST", "POST", "/a.txt", "Content-Length: 0", 405, "only GET and HEAD are served here\n", "Allow", "GET, HEAD"},
	} {
		resp, body := ask(t, ln, tt.method+" "+tt.path+" HTTP/1.1\r\nHost: x\r\n"+tt.header+strings.Repeat("\r\n", 1+min(1, len(tt.header))))
		if resp.StatusCode != tt.code || body != tt.body || tt.field != "" && resp.Header.Get(tt.field) != tt.value {
			t.Errorf("%s: %d %q %v", tt.name, resp.StatusCode, body, resp.Header)
		}
	}
}

func TestCurlGetsFilesOverOneConnection(t *testing.T) {
	dir := page(t)
	want := content(t, filepath.Join(dir, "large"), 10<<20)
	for _, secured := range []bool{false, true} {
		h, err := HTTP(dir)
		if err != nil {
			t.Fatal(err)
		}
		ev := newEvents()
		s, scheme := &Server{Handler: h, Sink: ev}, "http"
		if secured {
			s.TLS, scheme = selfSigned(t), "https"
		}
		ln := serve(t, s, "0")
		url := fmt.Sprintf("%s://%s/", scheme, ln.Addr())
		cmd := program(t, "curl", "curl", "-sSk", "--path-as-is", url+"a.txt", url+"large", url+"../secret", "-w", "%{http_code} ")
		got, err := cmd.CombinedOutput()
		if w := "0123456789200 " + string(want) + "200 404 page not found\n404 "; err != nil || string(got) != w {
			t.Errorf("%s: got %d bytes, %v, want %d", scheme, len(got), err, len(w))
		}
		end := ev.wait(t, "disconnect", kindIs(stats.Disconnect))
		if end.Cause != causePeerClosed || end.BytesOut < 10<<20 || end.BytesIn == 0 {
			t.Errorf("%s: %+v", scheme, end)
		}
		if n := len(ev.snapshot()); n != 3 { // listen, accept, disconnect
			t.Errorf("%s: %d events: %+v", scheme, n, ev.snapshot())
		}
	}
}

func TestHTTPThatIsNone(t *testing.T) {
	for name, sent := range map[string]string{
		"garbage": "\x00\x01\x02\r\n\r\n", "a header too long": "GET / HTTP/1.1\r\nX: " + strings.Repeat("x", 100<<10) + "\r\n\r\n",
	} {
		_, ev, ln := startSite(t, page(t), false)
		c := connect(t, ln)
		go io.WriteString(c, sent)
		got, err := io.ReadAll(c)
		if err != nil || !bytes.HasPrefix(got, []byte("HTTP/1.1 4")) {
			t.Errorf("%s: got %.60q, %v", name, got, err)
		}
		c.Close()
		ev.wait(t, "disconnect", kindIs(stats.Disconnect))
	}
}

func TestAnHTTPServerShutsDownWithItsConnections(t *testing.T) {
	h, err := HTTP(page(t))
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Handler: h}
	ln, err := ListenConfig{}.Listen(t.Context(), endpoint(t, "0"))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	c := connect(t, ln)
	io.WriteString(c, "GET /a.txt HTTP/1.1\r\nHost: x\r\n\r\n")
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	if err := s.Shutdown(t.Context()); err != nil { // with a connection kept alive
		t.Error(err)
	}
	<-served
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("got %v, want the end", err)
	}
}

func TestADirectoryThatIsNoneIsAnError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if _, err := HTTP(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	content(t, path, 1)
	if _, err := HTTP(path); err == nil || !strings.Contains(err.Error(), "serve directory "+path+": ") {
		t.Errorf("a file: %v", err)
	}
}

func TestTheEndOfFileAfterAResetIsNotTheCause(t *testing.T) {
	c := &httpConn{}
	c.failed(syscall.ECONNRESET) // net/http reads on, and the kernel tells an error but once
	c.failed(io.EOF)
	if err := c.end(); err != syscall.ECONNRESET {
		t.Errorf("got %v", err)
	}
	c = &httpConn{}
	c.failed(io.EOF)
	c.failed(syscall.EPIPE)
	if err := c.end(); err != syscall.EPIPE {
		t.Errorf("got %v", err)
	}
}
