package join

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fivetuple/fivetuple/internal/lab"
)

const patience = 10 * time.Second

func TestMain(m *testing.M) {
	if address := os.Getenv("JOIN_TEST_CONNECT"); address != "" {
		os.Exit(connectStdio(address))
	}
	lab.Enter()
	goleak.VerifyTestMain(m)
}

// connectStdio is a program that joins its standard input and output with an address.
func connectStdio(address string) int {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		os.Stderr.WriteString(err.Error())
		return 2
	}
	if _, err := Run(context.Background(), Stdio(os.Stdin, os.Stdout), conn, Options{}); err != nil {
		os.Stderr.WriteString(err.Error())
		return 3
	}
	return 0
}

// pair makes the two ends of a connection: one for Run, and its peer.
type pair func(t testing.TB) (end, peer net.Conn)

func tcpPair(t testing.TB) (end, peer net.Conn) { return connect(t, "tcp", "127.0.0.1:0") }

func unixPair(t testing.TB) (end, peer net.Conn) {
	return connect(t, "unix", filepath.Join(t.TempDir(), "s"))
}

func seqpacketPair(t testing.TB) (end, peer net.Conn) {
	return connect(t, "unixpacket", filepath.Join(t.TempDir(), "s"))
}

func connect(t testing.TB, network, address string) (end, peer net.Conn) {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	end, err = net.Dial(network, l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	peer, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return bounded(t, end, peer)
}

// bounded closes the two when the test ends; the peer's patience has an end.
func bounded(t testing.TB, end, peer net.Conn) (_, _ net.Conn) {
	t.Cleanup(func() { end.Close(); peer.Close() })
	if err := peer.SetDeadline(time.Now().Add(3 * patience)); err != nil {
		t.Fatal(err)
	}
	return end, peer
}

func udpPair(t testing.TB) (end, peer net.Conn) {
	t.Helper()
	local := func() *net.UDPAddr { return &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)} }
	first, err := net.ListenUDP("udp", local())
	if err != nil {
		t.Fatal(err)
	}
	end, err = net.DialUDP("udp", local(), first.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	return bounded(t, end, &udpPeer{first, end.LocalAddr()})
}

// udpPeer is an unconnected socket that talks to one address.
type udpPeer struct {
	*net.UDPConn
	to net.Addr
}

func (p *udpPeer) Write(b []byte) (int, error) { return p.WriteTo(b, p.to) }

func unixgramPair(t testing.TB) (end, peer net.Conn) {
	t.Helper()
	name := func(s string) *net.UnixAddr {
		return &net.UnixAddr{Net: "unixgram", Name: filepath.Join(t.TempDir(), s)}
	}
	a, b := name("a"), name("b")
	peerConn, err := net.ListenUnixgram("unixgram", b)
	if err != nil {
		t.Fatal(err)
	}
	end, err = net.DialUnix("unixgram", a, b)
	if err != nil {
		t.Fatal(err)
	}
	return bounded(t, end, &unixgramPeer{peerConn, a})
}

type unixgramPeer struct {
	*net.UnixConn
	to net.Addr
}

func (p *unixgramPeer) Write(b []byte) (int, error) { return p.WriteTo(b, p.to) }

func tlsPair(t testing.TB) (end, peer net.Conn) {
	t.Helper()
	rawEnd, rawPeer := tcpPair(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	server := tls.Server(rawPeer, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{certificate}, PrivateKey: key}}})
	client := tls.Client(rawEnd, &tls.Config{InsecureSkipVerify: true})
	shaken := make(chan error, 1)
	go func() { shaken <- server.Handshake() }()
	if err := errors.Join(client.Handshake(), <-shaken); err != nil {
		t.Fatal(err)
	}
	return client, server
}

// memory is an end without descriptors or deadlines, for time under control.
type memory struct {
	*io.PipeReader
	w *io.PipeWriter
}

func memoryPair() (end, peer *memory) {
	r1, w1 := io.Pipe()
	r2, w2 := io.Pipe()
	return &memory{r1, w2}, &memory{r2, w1}
}

func (m *memory) Write(b []byte) (int, error) { return m.w.Write(b) }
func (m *memory) CloseWrite() error           { return m.w.Close() }
func (m *memory) Close() error                { return errors.Join(m.PipeReader.Close(), m.w.Close()) }

// outcome is what Run returned.
type outcome struct {
	result Result
	err    error
	took   time.Duration
}

func run(ctx context.Context, a, b End, o Options) <-chan outcome {
	done := make(chan outcome, 1)
	start := time.Now()
	go func() {
		r, err := Run(ctx, a, b, o)
		done <- outcome{r, err, time.Since(start)}
	}()
	return done
}

func wait(t testing.TB, done <-chan outcome) outcome {
	t.Helper()
	select {
	case o := <-done:
		return o
	case <-time.After(patience):
		t.Fatalf("Run has not returned after %v", patience)
		panic("unreachable")
	}
}

func write(t testing.TB, w io.Writer, text string) {
	t.Helper()
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
}

func closeWrite(t testing.TB, c any) {
	t.Helper()
	if err := c.(closeWriter).CloseWrite(); err != nil {
		t.Fatal(err)
	}
}

// wantRead reads as many bytes as the text has.
func wantRead(t testing.TB, r io.Reader, text string) {
	t.Helper()
	b := make([]byte, len(text))
	if n, err := io.ReadFull(r, b); err != nil || string(b) != text {
		t.Fatalf("read %q, %v, want %q", b[:n], err, text)
	}
}

func wantAll(t testing.TB, r io.Reader, text string) {
	t.Helper()
	if b, err := io.ReadAll(r); err != nil || string(b) != text {
		t.Fatalf("read to the end %q, %v, want %q", b, err, text)
	}
}

func wantError(t testing.TB, err, target error, words ...string) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Errorf("got error %v, want %v", err, target)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("got error %q, want %q in it", err, w)
		}
	}
}

func wantBytes(t testing.TB, r Result, aToB, bToA uint64) {
	t.Helper()
	if r.AToB.Bytes != aToB || r.BToA.Bytes != bToA {
		t.Errorf("counted %d bytes to B and %d to A, want %d and %d", r.AToB.Bytes, r.BToA.Bytes, aToB, bToA)
	}
}

// eventually fails the test if the condition does not come true.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !condition(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("after %v still not: %s", patience, what)
		}
	}
}
