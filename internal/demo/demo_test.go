//go:build linux

package demo

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"go.uber.org/goleak"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/lab"
	"github.com/fivetuple/fivetuple/stream"
)

func TestMain(m *testing.M) {
	lab.Enter()
	goleak.VerifyTestMain(m)
}

func TestTheKernelAgreesWithEveryStep(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	var out strings.Builder
	began := time.Now()
	if err := Run(t.Context(), &out, Options{}); err != nil {
		t.Fatalf("%v after:\n%s", err, out.String())
	}
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("took %v", d)
	}
	for _, want := range []string{
		"N clients, N + 1 sockets, one port", "N clients, one socket", "sent 13 B, received 13 B", "no socket is left on the TCP port", "dynamic ports left",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the output lacks %q", want)
		}
	}
	usual := strings.NewReplacer(tmp, "/tmp", "demo.test", "ft")
	for line := range strings.Lines(usual.Replace(out.String())) {
		if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > 80 {
			t.Errorf("a line of %d columns: %s", n, line)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(os.TempDir(), "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// fewBytes takes some bytes and fails then, as a pipe whose reader has gone.
type fewBytes int

func (n *fewBytes) Write(b []byte) (int, error) {
	if *n -= fewBytes(len(b)); *n < 0 {
		return 0, io.ErrClosedPipe
	}
	return len(b), nil
}

func TestADemoThatCannotBeWrittenEndsAndLeavesNothing(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	few := fewBytes(300)
	if err := Run(t.Context(), &few, Options{}); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("got %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(tmp, "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestAViewThatIsNotAsClaimedIsAnError(t *testing.T) {
	host := lab.NewHost(t, "h")
	ln, err := host.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	at := netip.MustParseAddrPort(ln.Addr().String())
	p := &play{page: page{w: &sink{w: io.Discard}}, ctx: t.Context()}
	host.Do(t, func() {
		if _, err := p.kernel(p.onPort(fivetuple.TCP, at), "one listens", count{fivetuple.StateListen: 1}); err != nil {
			t.Error(err)
		}
		if _, err := p.kernel(p.onPort(fivetuple.TCP, at), "two listen", count{fivetuple.StateListen: 2}); !errors.Is(err, ErrDisagrees) {
			t.Errorf("a false claim: %v", err)
		}
	})
}

func TestByteCountsThatAreNotAsClaimedAreAnError(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	p := &play{page: page{w: &sink{w: io.Discard}}, ctx: t.Context()}
	c := &client{Client: &stream.Client{Endpoint: fivetuple.MustParseEndpoint(ln.Addr().String())}}
	if err := c.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, tt := range []struct {
		sent, received int
		want           error
	}{{0, 0, nil}, {1, 0, ErrDisagrees}, {0, 1, ErrDisagrees}} {
		if err := p.kernelCounted(c, "client", tt.sent, tt.received); !errors.Is(err, tt.want) {
			t.Errorf("claiming %d bytes sent, %d received: %v, want %v", tt.sent, tt.received, err, tt.want)
		}
	}
}
