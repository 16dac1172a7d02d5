package secure

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func opensslPath(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatalf("%v; install it: apt-get install openssl", err)
	}
	return path
}

// openssl runs a command of it and returns what it prints.
func openssl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), opensslPath(t), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("openssl %s: %v\n%s", args[0], err, out)
	}
	return string(out)
}

// startServer runs openssl s_server, which sends each line back reversed, for the
// test's duration and returns its address.
func startServer(t *testing.T, args ...string) string {
	t.Helper()
	addr, _ := startServerProcess(t, args...)
	return addr
}

func startServerProcess(t *testing.T, args ...string) (addr string, p *os.Process) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), opensslPath(t), append([]string{"s_server", "-accept", "127.0.0.1:0", "-rev"}, args...)...)
	stdout := must(cmd.StdoutPipe())
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	ok(cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		if addr, found := strings.CutPrefix(lines.Text(), "ACCEPT "); found {
			go io.Copy(io.Discard, stdout)
			return addr, cmd.Process
		}
	}
	cmd.Wait()
	t.Fatalf("openssl s_server ended: %s", &stderr)
	return "", nil
}

// client is a running openssl s_client.
type client struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   bytes.Buffer
	wait  func() error
}

func startClient(t *testing.T, addr string, args ...string) *client {
	t.Helper()
	c := &client{cmd: exec.CommandContext(t.Context(), opensslPath(t), append([]string{"s_client", "-connect", addr, "-brief"}, args...)...)}
	c.stdin = must(c.cmd.StdinPipe())
	c.cmd.Stdout, c.cmd.Stderr = &c.out, &c.out
	ok(c.cmd.Start())
	c.wait = sync.OnceValue(c.cmd.Wait)
	t.Cleanup(func() { c.cmd.Process.Kill(); c.wait() })
	return c
}

// talk connects to a server, says a line and returns what comes back.
func talk(t *testing.T, addr string, config *tls.Config) (string, tls.ConnectionState, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tcp := must(net.Dial("tcp", addr))
	conn, err := Connect(ctx, tcp, config)
	if err != nil {
		return "", tls.ConnectionState{}, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	fmt.Fprintln(conn, "hello")
	line, err := bufio.NewReader(conn).ReadString('\n')
	return line, conn.ConnectionState(), Explain(err)
}

func TestOurClientWithOpenSSLServer(t *testing.T) {
	pki := newPKI(t)
	key, chain, ca := pki.server.keyFile(t), certFile(t, pki.intermediate.cert), certFile(t, pki.root.cert)
	cert := certFile(t, pki.server.cert)
	identity := func(id *identity) []string {
		return []string{"-cert", certFile(t, id.cert), "-key", id.keyFile(t), "-cert_chain", chain}
	}
	server := []string{"-cert", cert, "-key", key, "-cert_chain", chain}
	selfSigned := t.TempDir()
	selfKey, selfCert := filepath.Join(selfSigned, "key.pem"), filepath.Join(selfSigned, "cert.pem")
	openssl(t, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", selfKey, "-out", selfCert,
		"-subj", "/CN=self", "-addext", "subjectAltName=DNS:self.example", "-days", "2")
	_, printed, _ := strings.Cut(strings.TrimSpace(openssl(t, "x509", "-in", selfCert, "-noout", "-fingerprint", "-sha256")), "=")
	self := []string{"-cert", selfCert, "-key", selfKey}
	second := pki.intermediate.issue(t, "Second", forNames("second.example"))
	mutual := append(slices.Clone(server), "-Verify", "2", "-verify_return_error", "-CAfile", ca)
	us := pki.intermediate.issue(t, "Us", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
	usFiles := Client{CAFile: ca, CertFile: certFile(t, us.chain()...), KeyFile: us.keyFile(t)}
	stranger := newPKI(t).server

	for _, tt := range []struct {
		name   string
		server []string
		client Client
		want   string   // in the description
		errors []string // in the error, else
	}{
		{"chain with intermediate", server, Client{CAFile: ca}, "certificate 2: CN=Test Intermediate, issued by CN=Test Root", nil},
		{"intermediate forgotten", server[:4], Client{CAFile: ca}, "", []string{"issued by CN=Test Intermediate, which is not trusted here and was not sent"}},
		{"TLS 1.2 only", append(slices.Clone(server), "-tls1_2"), Client{CAFile: ca}, "TLS 1.2", nil},
		{"TLS 1.3 only", append(slices.Clone(server), "-tls1_3"), Client{CAFile: ca}, "TLS 1.3", nil},
		{"TLS 1.1 only", append(slices.Clone(server), "-tls1_1", "-cipher", "ALL:@SECLEVEL=0"), Client{CAFile: ca}, "", []string{"version", "let the peer speak TLS 1.2"}},
		{"self-signed", self, Client{ServerName: "self.example"}, "", []string{"self-signed", "--pin sha256:" + strings.ToLower(strings.ReplaceAll(printed, ":", ""))}},
		{"self-signed and pinned", self, Client{Pin: "sha256:" + printed}, "issued by itself", nil},
		{"self-signed and trusted", self, Client{CAFile: selfCert, ServerName: "self.example"}, "issued by itself", nil},
		{"self-signed and insecure", self, Client{Insecure: true}, "was not verified", nil},
		{"another pinned", self, Client{Pin: Fingerprint(pki.server.cert)}, "", []string{"not the pinned one"}},
		{"expired", identity(pki.intermediate.issue(t, "Old", expired)), Client{CAFile: ca}, "", []string{"certificate 1, CN=Old, has expired"}},
		{"wrong host", server, Client{CAFile: ca, ServerName: "other.example"}, "", []string{"is for localhost, 127.0.0.1, ::1, not for other.example"}},
		{"ALPN", append(slices.Clone(server), "-alpn", "h2,ft"), Client{CAFile: ca, ALPN: []string{"x", "ft"}}, "protocol ft (ALPN)", nil},
		{"no common ALPN", append(slices.Clone(server), "-alpn", "h2"), Client{CAFile: ca, ALPN: []string{"ft"}}, "", []string{"alert \"no application protocol\"", "speaks none of the protocols"}},
		{"SNI", append(slices.Clone(server), "-servername", "second.example", "-cert2", certFile(t, second.cert), "-key2", second.keyFile(t)),
			Client{Pin: Fingerprint(second.cert), ServerName: "second.example"}, "certificate 1: CN=Second", nil},
		{"SNI that is not served", append(slices.Clone(server), "-servername", "second.example", "-servername_fatal", "-cert2", certFile(t, second.cert), "-key2", second.keyFile(t)),
			Client{CAFile: ca, ServerName: "localhost"}, "", []string{"alert \"unrecognized name\"", "(SNI)"}},
		{"mutual", mutual, usFiles, "certificate 1: CN=Test Server", nil},
		{"mutual, TLS 1.2", append(slices.Clone(mutual), "-tls1_2"), usFiles, "TLS 1.2", nil},
		{"mutual without certificate", append(slices.Clone(mutual), "-tls1_3"), Client{CAFile: ca}, "", []string{"it wants a client certificate: give a certificate"}},
		{"mutual without certificate, TLS 1.2", append(slices.Clone(mutual), "-tls1_2"), Client{CAFile: ca}, "", []string{"it wants a client certificate: give a certificate"}},
		{"mutual with a stranger's", mutual, Client{CAFile: ca, CertFile: certFile(t, stranger.cert), KeyFile: stranger.keyFile(t)}, "",
			[]string{"the peer refused with the alert", "certificate"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			config, err := tt.client.Config("127.0.0.1")
			if err != nil {
				t.Fatal(err)
			}
			line, state, err := talk(t, startServer(t, tt.server...), config)
			if tt.errors != nil {
				wantText(t, err, tt.errors...)
				return
			}
			got := strings.Join(Describe(state), "\n")
			if err != nil || line != "olleh\n" || !strings.Contains(got, tt.want) {
				t.Errorf("got %q, %v, want olleh; described as\n%s\nwant %q in it", line, err, got, tt.want)
			}
		})
	}
}

// serveOne answers one client with the line that it says, and tells what came of it.
func serveOne(t *testing.T, server Server) (addr string, ended <-chan error) {
	t.Helper()
	config, err := server.Config()
	if err != nil {
		t.Fatal(err)
	}
	return serveConfig(t, config)
}

func serveConfig(t *testing.T, config *tls.Config) (addr string, ended <-chan error) {
	t.Helper()
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	t.Cleanup(func() { ln.Close() })
	ln.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
	errs := make(chan error, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			errs <- err
			return
		}
		c.SetDeadline(time.Now().Add(patience))
		conn, err := Accept(t.Context(), c, config)
		if err != nil {
			errs <- err
			return
		}
		defer conn.Close()
		line, err := bufio.NewReader(conn).ReadString('\n')
		fmt.Fprint(conn, "got ", line)
		errs <- err
	}()
	return ln.Addr().String(), errs
}

func TestOurServerWithOpenSSLClient(t *testing.T) {
	pki := newPKI(t)
	ca := certFile(t, pki.root.cert)
	files := Server{CertFile: certFile(t, pki.server.chain()...), KeyFile: pki.server.keyFile(t), ALPN: []string{"h2", "ft"}}
	mutual := files
	mutual.ClientCAFile = ca
	old := pki.intermediate.issue(t, "Old", expired)
	us := pki.intermediate.issue(t, "Us", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
	usArgs := []string{"-cert", certFile(t, us.cert), "-key", us.keyFile(t), "-cert_chain", certFile(t, pki.intermediate.cert)}
	stranger := newPKI(t).server
	strict := []string{"-CAfile", ca, "-verify_return_error", "-verify_hostname", "localhost", "-servername", "localhost"}
	for _, tt := range []struct {
		name   string
		server Server
		client []string
		want   string   // in what the client prints
		errors []string // in our error, else
	}{
		{"chain with intermediate", files, strict, "Verification: OK", nil},
		{"TLS 1.2 only", files, append(slices.Clone(strict), "-tls1_2"), "Protocol version: TLSv1.2", nil},
		{"TLS 1.3 only", files, append(slices.Clone(strict), "-tls1_3"), "Protocol version: TLSv1.3", nil},
		{"TLS 1.1 only", files, []string{"-tls1_1", "-cipher", "ALL:@SECLEVEL=0"}, "", []string{"client offered only unsupported versions: [TLS 1.1 "}},
		{"ALPN", files, append(slices.Clone(strict), "-alpn", "x,ft"), "Verification: OK", nil},
		{"no common ALPN", files, append(slices.Clone(strict), "-alpn", "x"), "", []string{"unsupported application protocols"}},
		{"unknown authority", files, []string{"-CAfile", certFile(t, stranger.cert), "-verify_return_error"}, "", []string{"the peer refused with the alert \"unknown certificate authority\" (48)"}},
		{"wrong host", files, append(slices.Clone(strict), "-verify_hostname", "other.example"), "", []string{"the peer refused with the alert"}},
		{"expired", Server{CertFile: certFile(t, old.chain()...), KeyFile: old.keyFile(t)}, strict, "", []string{"alert \"expired certificate\" (45): the certificate it was shown is expired"}},
		{"mutual", mutual, append(slices.Clone(strict), usArgs...), "Verification: OK", nil},
		{"mutual, TLS 1.2", mutual, append(append(slices.Clone(strict), usArgs...), "-tls1_2"), "Verification: OK", nil},
		{"mutual without certificate", mutual, strict, "", []string{"client didn't provide a certificate"}},
		{"mutual with a stranger's", mutual, append(slices.Clone(strict), "-cert", certFile(t, stranger.cert), "-key", stranger.keyFile(t)), "",
			[]string{"certificate 1, CN=Test Server, is issued by CN=Test Intermediate", "file of client authorities"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			addr, ended := serveOne(t, tt.server)
			checkOpenSSL(t, addr, ended, tt.client, tt.want, tt.errors)
		})
	}
}

// checkOpenSSL lets openssl s_client say hello to a server of ours.
func checkOpenSSL(t *testing.T, addr string, ended <-chan error, args []string, want string, errors []string) {
	t.Helper()
	c := startClient(t, addr, args...)
	fmt.Fprintln(c.stdin, "hello")
	err := <-ended
	if errors != nil {
		wantText(t, err, errors...)
		return
	}
	clientErr := c.wait()
	if out := c.out.String(); err != nil || clientErr != nil || !strings.Contains(out, want) || !strings.Contains(out, "got hello\n") {
		t.Errorf("got %v, client %v, which printed\n%s\nwant %q and an answer in it", err, clientErr, out, want)
	}
}

func TestOpenSSLTrustsOurSelfSignedCertificateByItself(t *testing.T) {
	config := must(Server{SelfSigned: true, Hosts: []string{"a.example"}}.Config())
	leaf := config.Certificates[0].Leaf
	cert := certFile(t, leaf)
	addr, ended := serveConfig(t, config)
	checkOpenSSL(t, addr, ended, []string{"-CAfile", cert, "-verify_return_error", "-verify_hostname", "a.example"}, "Verification: OK", nil)

	printed := openssl(t, "x509", "-in", cert, "-noout", "-fingerprint", "-sha256")
	want := strings.ToUpper(regexp.MustCompile(`..`).ReplaceAllString(strings.TrimPrefix(Fingerprint(leaf), "sha256:"), ":$0"))[1:]
	if !strings.Contains(printed, want) {
		t.Errorf("openssl prints %s, ours is %s", printed, Fingerprint(leaf))
	}
}
