package activation

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/lab"
)

const (
	pyTakes = `
assert os.environ["LISTEN_PID"] == str(os.getpid()), "LISTEN_PID"
assert os.environ["LISTEN_FDS"] == "1" and os.environ["LISTEN_FDNAMES"] == "api", "LISTEN_FDS"
s = socket.socket(fileno=3)
`
	pyGreets = `
while True:
    c, _ = s.accept()
    c.sendall(b"hello from the command\n")
    c.close()
`
	pyReplies = `
while True:
    _, peer = s.recvfrom(100)
    s.sendto(b"hello from the command\n", peer)
`
	pyListens = `assert s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1, "not listening"`
)

func TestProgramsOfEveryKindServeAndNobodyElseGetsThePort(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "page"), []byte(greeting), 0o644); err != nil {
		t.Fatal(err)
	}
	p := fmt.Sprint(port)
	for _, tt := range []struct {
		name, protocol string
		argv           []string
	}{
		{"python http.server on its default address", "tcp", []string{"python3", "-m", "http.server", "--directory", dir, p}},
		{"python http.server on loopback", "tcp", []string{"python3", "-m", "http.server", "--directory", dir, "--bind", "127.0.0.1", p}},
		{"python http.server on IPv6", "tcp", []string{"python3", "-m", "http.server", "--directory", dir, "--bind", "::", p}},
		{"behind a shell", "tcp", []string{"sh", "-c", "true; python3 -m http.server --directory " + dir + " $PORT; true"}},
		{"python takes LISTEN_FDS", "tcp", python(t, pyTakes+pyListens+pyGreets)},
		{"go takes LISTEN_FDS", "tcp", self("listen-inherited")},
		{"python binds a number", "tcp", python(t, `
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(("127.0.0.1", 8123)); s.listen(1)`+pyGreets)},
		{"go binds all addresses", "tcp", self("listen", ":"+p)},
		{"go binds localhost", "tcp", self("listen", "localhost:"+p)},
		{"go binds the other localhost", "tcp", self("listen", "[::1]:"+p)},
		{"go binds a mapped address", "tcp", self("listen", "[::ffff:127.0.0.1]:"+p)},
		{"nc again and again", "tcp", []string{"sh", "-c", "while :; do echo hello from the command | nc -lN 127.0.0.1 " + p + "; done"}},
		{"asyncio", "tcp", python(t, `
import asyncio
async def greet(r, w):
    w.write(b"hello from the command\n"); await w.drain(); w.close()
async def main():
    server = await asyncio.start_server(greet, "127.0.0.1", 8123)
    await server.serve_forever()
asyncio.run(main())`)},
		{"prefork with SO_REUSEPORT", "tcp", python(t, `
for _ in range(3):
    if os.fork() == 0: break
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1); s.bind(("127.0.0.1", 8123)); s.listen()`+pyGreets)},
		{"python takes LISTEN_FDS", "udp", python(t, pyTakes+pyReplies)},
		{"python binds", "udp", python(t, `s = socket.socket(type=socket.SOCK_DGRAM); s.bind(("127.0.0.1", 8123))`+pyReplies)},
		{"python binds all addresses", "udp", python(t, `s = socket.socket(type=socket.SOCK_DGRAM); s.bind(("", 8123))`+pyReplies)},
		{"python binds all IPv6 addresses", "udp", python(t, `s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.bind(("::", 8123))`+pyReplies)},
		{"go binds all addresses", "udp", self("udp", ":"+p)},
		{"go binds localhost", "udp", self("udp", "localhost:"+p)},
		{"go takes LISTEN_FDS", "udp", self("udp-inherited")},
	} {
		serve := func(t *testing.T, way runOption) {
			h := lab.NewHost(t, "h")
			protocol, err := fivetuple.ParseNetwork(tt.protocol)
			if err != nil {
				t.Fatal(err)
			}
			socket := openIn(t, h, protocol, loopback)
			others := startHostile(t, h, tt.protocol)
			r := start(t, h, []*os.File{socket}, tt.argv, requireSupervision, way)
			for range 3 {
				if got := served(t, h, tt.protocol); !strings.Contains(got, greeting) {
					t.Errorf("served: got %q, want %q", got, greeting)
				}
			}
			if got := others.stop(t); got != "" {
				t.Errorf("a hostile process has had the port: %s", got)
			}
			r.kill(t)
		}
		t.Run(tt.protocol+" "+tt.name, func(t *testing.T) { inBothWays(t, serve) })
	}
}

// TestHostileProcessesGetAFreePort is the proof that the test above could fail.
func TestHostileProcessesGetAFreePort(t *testing.T) {
	for _, protocol := range []string{"tcp", "udp"} {
		h := lab.NewHost(t, "h")
		cmd := exec.Command("/proc/self/exe", protocol, fmt.Sprint(port))
		cmd.Env = append(os.Environ(), roleVar+"=hostile", noSleep)
		p := h.Start(t, cmd) // its standard input is at the end
		if err := p.Wait(); err != nil {
			t.Fatal(err)
		}
		if got, want := strings.Count(p.Output(), "got "), 12; got < want {
			t.Errorf("%s: got %d binds, want all %d", protocol, got, want)
		}
	}
}
