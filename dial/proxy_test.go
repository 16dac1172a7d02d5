package dial

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/lab"
)

func mustURL(s string) *url.URL {
	u, err := url.Parse(s)
	if err != nil {
		panic(err)
	}
	return u
}

// once serves one connection at the address it returns. done is closed after fn.
func once(t *testing.T, fn func(net.Conn)) (addr string, done chan struct{}) {
	t.Helper()
	ln := listen(t, "tcp", "127.0.0.1:0")
	done = make(chan struct{})
	go func() {
		defer close(done)
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		fn(conn)
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	return ln.Addr().String(), done
}

func TestHTTPProxyOfNcat(t *testing.T) {
	if _, err := exec.LookPath("ncat"); err != nil {
		t.Fatal("ncat is not installed: apt-get install ncat")
	}
	client, proxy, server := lab.NewHost(t, "client"), lab.NewHost(t, "proxy"), lab.NewHost(t, "server")
	lab.Link(t, client, proxy, "10.1.0.0/24")
	lab.Link(t, proxy, server, "10.2.0.0/24")
	var e fivetuple.Endpoint
	ln, err := server.Listen("tcp", "10.2.0.2:80")
	if err != nil {
		t.Fatal(err)
	}
	echo(t, ln, &e)
	server.Drop(t, "tcp", 82)
	proxy.Start(t, exec.Command("ncat", "-l", "10.1.0.2", "3128", "--proxy-type", "http", "--proxy-auth", "me:secret")).WaitListening(t, "tcp", 3128)
	for _, tt := range []struct {
		name, proxy, to string
		part            string
	}{
		{"connects", "http://me:secret@10.1.0.2:3128", "10.2.0.2:80", ""},
		{"wants a password", "http://10.1.0.2:3128", "10.2.0.2:80", `407 Proxy Authentication Required`},
		{"wants another password", "http://me:wrong@10.1.0.2:3128", "10.2.0.2:80", `407`},
		{"cannot connect", "http://me:secret@10.1.0.2:3128", "10.2.0.2:81", `"HTTP/1.0 504 Gateway Timeout" to CONNECT 10.2.0.2:81`},
		{"is not there", "http://10.1.0.2:3129", "10.2.0.2:80", "proxy http://10.1.0.2:3129: connect 10.1.0.2:3129: connection refused"},
		{"does not answer", "http://me:secret@10.1.0.2:3128", "10.2.0.2:82", "the proxy has not answered"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			timeout := 5 * time.Second
			if tt.name == "does not answer" {
				timeout = 300 * ms
			}
			conn, err := dialIn(t, client, Dialer{Proxy: mustURL(tt.proxy), Timeout: timeout}, tt.to)
			if tt.part != "" {
				wantError(t, err, nil, "connect "+tt.to+": proxy http://10.1.0.2:", tt.part)
				if strings.Contains(err.Error(), "secret") {
					t.Errorf("the password is in %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			wantEcho(t, conn)
		})
	}
}

func TestHTTPProxyAnswers(t *testing.T) {
	for _, tt := range []struct {
		name, answer string
		is           error
		part         string
	}{
		{"interim first", "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", nil, ""},
		{"content length that does not count", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", nil, ""},
		{"bare line feeds", "HTTP/1.0 200 Connected\n\n", nil, ""},
		{"forbidden", "HTTP/1.1 403 Forbidden\r\n\r\nno!", os.ErrPermission, `"HTTP/1.1 403 Forbidden" to CONNECT far.test:7`},
		{"no proxy", "HTTP/1.1 405 Method Not Allowed\r\n\r\n", errors.ErrUnsupported, "is it a proxy"},
		{"bad gateway", "HTTP/1.1 502 Bad Gateway\r\n\r\n", nil, "the proxy could not connect"},
		{"redirect", "HTTP/1.1 302 Found\r\nLocation: x\r\n\r\n", nil, "302 Found"},
		{"SSH", "SSH-2.0-x\r\n", nil, `does not speak HTTP: its answer begins with "S"`},
		{"no code", "HTTP/1.1 yes\r\n\r\n", nil, `status line "HTTP/1.1 yes"`},
		{"hangs up", "", io.EOF, "does it speak HTTP?"},
		{"hangs up in the header", "HTTP/1.1 200 OK\r\nA: b", io.EOF, "does it speak HTTP?"},
		{"endless header", "HTTP/1.1 200 OK\r\n" + strings.Repeat("A: b\r\n", 20000), nil, "over 65536 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var host string
			addr, done := once(t, func(conn net.Conn) {
				request, err := http.ReadRequest(bufio.NewReader(conn))
				if err != nil {
					t.Error(err)
					return
				}
				host = request.Method + " " + request.Host + request.Header.Get("Proxy-Authorization")
				if tt.is == nil && tt.part == "" {
					tt.answer += "hello" // must not be lost
				}
				io.WriteString(conn, tt.answer)
				if tt.part == "" || errors.Is(tt.is, io.EOF) {
					return // which hangs up
				}
				if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
					t.Error("the connection to the proxy was left open")
				}
			})
			conn, err := Dialer{Proxy: mustURL("http://" + addr), Timeout: 5 * time.Second}.Dial(t.Context(), fivetuple.MustParseEndpoint("far.test:7"))
			if tt.part != "" {
				wantError(t, err, tt.is, tt.part, "connect far.test:7: proxy http://"+addr)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			said, err := io.ReadAll(conn)
			if err != nil || string(said) != "hello" {
				t.Errorf("got %q, %v, want hello", said, err)
			}
			if _, ok := conn.(*net.TCPConn); !ok {
				t.Errorf("got a %T, want a *net.TCPConn", conn)
			}
			if <-done; host != "CONNECT far.test:7" {
				t.Errorf("asked for %q", host)
			}
		})
	}
}

// socksServer is a SOCKS5 proxy of RFC 1928 for one user, or for all if that is "".
type socksServer struct {
	user, password string
	code           byte // answered instead of connecting
	bound          byte // the type of address it answers with
	asked          string
}

func (s *socksServer) serve(conn net.Conn) {
	read := func(n int) []byte {
		b := make([]byte, n)
		io.ReadFull(conn, b)
		return b
	}
	methods := read(int(read(2)[1]))
	method := byte(0)
	if s.user != "" {
		method = 2
	}
	if !strings.Contains(string(methods), string(rune(method))) {
		conn.Write([]byte{5, 0xff})
		return
	}
	conn.Write([]byte{5, method})
	if method == 2 {
		user := string(read(int(read(2)[1])))
		password := string(read(int(read(1)[0])))
		if user != s.user || password != s.password {
			conn.Write([]byte{1, 1})
			return
		}
		conn.Write([]byte{1, 0})
	}
	head := read(4)
	var host string
	switch head[3] {
	case 1:
		host = net.IP(read(4)).String()
	case 3:
		host = string(read(int(read(1)[0])))
	case 4:
		host = net.IP(read(16)).String()
	}
	port := binary.BigEndian.Uint16(read(2))
	s.asked = fmt.Sprintf("type %d %s %d", head[3], host, port)
	bound := map[byte]string{1: "\x01\x7f\x00\x00\x01", 3: "\x03\x05proxy", 4: "\x04" + strings.Repeat("\x00", 16), 9: "\x09\x00\x00\x00\x00"}[s.bound]
	conn.Write([]byte("\x05" + string(rune(s.code)) + "\x00" + bound + "\x12\x34hello")) // what the target says comes along
}

func TestSOCKS5ProxyConnects(t *testing.T) {
	for _, tt := range []struct {
		name, to, login string
		server          socksServer
		asked           string
	}{
		{"name", "far.test:7", "", socksServer{bound: 1}, "type 3 far.test 7"},
		{"IPv4", "192.0.2.1:443", "", socksServer{bound: 4}, "type 1 192.0.2.1 443"},
		{"IPv6", "[2001:db8::1]:443", "", socksServer{bound: 3}, "type 4 2001:db8::1 443"},
		{"no host", "8080", "", socksServer{bound: 1}, "type 3 localhost 8080"},
		{"user", "far.test:7", "me:s%3Acret@", socksServer{user: "me", password: "s:cret", bound: 1}, "type 3 far.test 7"},
		{"user that is not asked for", "far.test:7", "me:secret@", socksServer{bound: 1}, "type 3 far.test 7"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			addr, done := once(t, tt.server.serve)
			conn, err := Dialer{Proxy: mustURL("socks5://" + tt.login + addr), Timeout: 5 * time.Second}.Dial(t.Context(), fivetuple.MustParseEndpoint(tt.to))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if said, err := io.ReadAll(conn); err != nil || string(said) != "hello" {
				t.Errorf("got %q, %v, want hello", said, err)
			}
			if <-done; tt.server.asked != tt.asked {
				t.Errorf("asked for %s, want %s", tt.server.asked, tt.asked)
			}
		})
	}
}

func TestSOCKS5ProxyErrors(t *testing.T) {
	for _, tt := range []struct {
		name, login string
		server      socksServer
		is          error
		part        string
	}{
		{"wants a password", "", socksServer{user: "me"}, os.ErrPermission, "socks5://user:password@host:port"},
		{"refuses the password", "me:wrong@", socksServer{user: "me", password: "secret"}, os.ErrPermission, `the user "me" with this password`},
		{"password too long", "me:" + strings.Repeat("x", 256) + "@", socksServer{user: "me"}, nil, "255 bytes"},
		{"1", "", socksServer{code: 1, bound: 1}, nil, "does not say why"},
		{"2", "", socksServer{code: 2, bound: 1}, os.ErrPermission, "rules do not allow"},
		{"3", "", socksServer{code: 3, bound: 1}, syscall.ENETUNREACH, "could not connect to far.test:7"},
		{"4", "", socksServer{code: 4, bound: 1}, syscall.EHOSTUNREACH, "could not connect to far.test:7"},
		{"5", "", socksServer{code: 5, bound: 1}, syscall.ECONNREFUSED, "could not connect to far.test:7"},
		{"6", "", socksServer{code: 6, bound: 1}, syscall.EHOSTUNREACH, "TTL expired"},
		{"7", "", socksServer{code: 7, bound: 1}, errors.ErrUnsupported, "command not supported"},
		{"8", "", socksServer{code: 8, bound: 1}, errors.ErrUnsupported, "kind of address"},
		{"9", "", socksServer{code: 9, bound: 1}, nil, "unknown reply 9"},
		{"unknown bound address", "", socksServer{bound: 9}, nil, "unknown type 9"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			addr, _ := once(t, tt.server.serve)
			_, err := Dialer{Proxy: mustURL("socks5://" + tt.login + addr), Timeout: 5 * time.Second}.Dial(t.Context(), fivetuple.MustParseEndpoint("far.test:7"))
			wantError(t, err, tt.is, tt.part, "connect far.test:7: proxy socks5://"+addr)
		})
	}
}

func TestPeerThatIsNoSOCKS5Proxy(t *testing.T) {
	for _, tt := range []struct {
		name, says string
		is         error
		part       string
	}{
		{"HTTP", "HTTP/1.1 400 Bad Request\r\n\r\n", nil, `begins with "HT"`},
		{"nothing", "", io.EOF, "does it speak SOCKS5?"},
		{"a method that was not offered", "\x05\x01", nil, "method 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			addr, _ := once(t, func(conn net.Conn) {
				io.ReadFull(conn, make([]byte, 3))
				io.WriteString(conn, tt.says)
			})
			_, err := Dialer{Proxy: mustURL("socks5://" + addr), Timeout: 5 * time.Second}.Dial(t.Context(), fivetuple.MustParseEndpoint("far.test:7"))
			wantError(t, err, tt.is, tt.part)
		})
	}
}

func TestProxyThatDoesNotAnswerIsTimedOut(t *testing.T) {
	for _, scheme := range []string{"http", "socks5"} {
		ln := listen(t, "tcp", "127.0.0.1:0")
		acceptAll(t, ln)
		_, err := Dialer{Proxy: mustURL(scheme + "://" + ln.Addr().String()), Timeout: 200 * ms}.Dial(t.Context(), fivetuple.MustParseEndpoint("far.test:7"))
		wantError(t, err, context.DeadlineExceeded, "timed out after ", "the proxy has not answered")
	}
}

func TestTLSThroughAProxyVerifiesTheEndpoint(t *testing.T) {
	far, roots := tlsServer(t)
	addr, _ := once(t, func(conn net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(conn)); err != nil {
			t.Error(err)
		}
		io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
		server, err := net.Dial("tcp", net.JoinHostPort(far.Host, far.Ports.String()))
		if err != nil {
			t.Error(err)
			return
		}
		done := make(chan struct{})
		go func() { defer close(done); io.Copy(server, conn); server.Close() }()
		io.Copy(conn, server)
		conn.Close()
		<-done
	})
	d := Dialer{Proxy: mustURL("http://" + addr), Timeout: 5 * time.Second, TLS: mustConfig(roots)}
	conn, err := d.Dial(t.Context(), fivetuple.MustParseEndpoint("tls://example.com:443"))
	if err != nil {
		t.Fatal(err)
	}
	wantEcho(t, conn)
	conn.Close()
}

func TestProxiesThatAreWrong(t *testing.T) {
	for _, tt := range []struct{ proxy, to, part string }{
		{"https://h:1", "far.test:7", "want socks5://"},
		{"socks4://h:1", "far.test:7", "want socks5://"},
		{"http://", "far.test:7", "and nothing more"},
		{"http://h:1/path", "far.test:7", "and nothing more"},
		{"http://me:secret@h:99999", "far.test:7", "out of range"},
		{"http://h:1", "tcp4://far.test:7", "write tcp://"},
		{"http://h:1", "[fe80::1%lo]:7", "means nothing to a proxy"},
		{"http://h:1", "unix:///run/x", "belong to TCP"},
	} {
		_, err := Dialer{Proxy: mustURL(tt.proxy)}.Dial(t.Context(), fivetuple.MustParseEndpoint(tt.to))
		wantError(t, err, nil, tt.part)
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("the password is in %v", err)
		}
	}
}
