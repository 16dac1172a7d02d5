package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple/internal/lab"
)

// killed are connections of which one in a port range can be killed by a filter.
type killed struct {
	t        *testing.T
	host     *lab.Host
	listener net.Listener
}

func newKilled(t *testing.T) *killed {
	k := &killed{t: t, host: lab.NewHost(t, "killed")}
	var err error
	if k.listener, err = k.host.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.listener.Close() })
	return k
}

// connect makes a connection from a port. The address is nobody else's.
func (k *killed) connect(port int) (client, server net.Conn) {
	k.t.Helper()
	var err error
	k.host.Do(k.t, func() {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}}
		d.SetMultipathTCP(false)
		client, err = d.DialContext(k.t.Context(), "tcp", k.listener.Addr().String())
	})
	if err == nil {
		k.t.Cleanup(func() { client.Close() })
		server, err = k.listener.Accept()
	}
	if err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(func() { server.Close() })
	return client, server
}

// start runs ft kill on the client ends from port 9100 to 9199 on a terminal, until it asks.
func (k *killed) start(sockets int) *terminal {
	k.t.Helper()
	p := openTerminal(k.t, k.host, 80, 24, exec.Command("ft", "kill", "src portrange 9100-9199"))
	p.await(0, fmt.Sprintf("Close %s? [y/N] ", plural(sockets, "socket")))
	return p
}

// wantExit waits for the end of a program, and returns what it wrote.
func (p *terminal) wantExit(code int) string {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 20*time.Second)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { p.cmd.Process.Kill() })
	defer stop()
	p.cmd.Wait()
	if got := p.cmd.ProcessState; got.ExitCode() != code {
		p.t.Errorf("ended with %v, want exit code %d:\n%s", got, code, p.seen())
	}
	const end = "(end of the output)" // which is read after all that was written before
	p.slave.WriteString(end)
	p.await(0, end)
	out := strings.TrimSuffix(p.seen(), end)
	return strings.ReplaceAll(sequences.ReplaceAllString(out, ""), "\r\n", "\n")
}

func wantKilled(t *testing.T, client, server net.Conn) {
	t.Helper()
	for _, end := range []struct {
		net.Conn
		want error
	}{{client, syscall.ECONNABORTED}, {server, syscall.ECONNRESET}} {
		end.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := end.Read(make([]byte, 1)); !errors.Is(err, end.want) {
			t.Errorf("%v to %v: got %v, want %v", end.LocalAddr(), end.RemoteAddr(), err, end.want)
		}
	}
}

func wantAlive(t *testing.T, client, server net.Conn) {
	t.Helper()
	_, err := client.Write([]byte("x"))
	if err == nil {
		server.SetReadDeadline(time.Now().Add(10 * time.Second))
		_, err = server.Read(make([]byte, 1))
	}
	if err != nil {
		t.Errorf("%v to %v is not as it was: %v", client.LocalAddr(), client.RemoteAddr(), err)
	}
}

// While the question waits for its answer, a socket that was shown is replaced by
// another one with the same addresses, and one more comes that the filter matches.
func TestKillClosesExactlyTheSocketsShown(t *testing.T) {
	k := newKilled(t)
	first, firstServer := k.connect(9101)
	gone, goneServer := k.connect(9102)
	last, lastServer := k.connect(9103)
	other, otherServer := k.connect(9201)
	p := k.start(3)
	shown := p.seen()
	for _, end := range []net.Conn{first, gone, last} {
		if !strings.Contains(shown, end.LocalAddr().String()) {
			t.Errorf("%v is not shown:\n%s", end.LocalAddr(), shown)
		}
	}
	if strings.Contains(shown, ":9201") {
		t.Errorf("a socket is shown that does not match:\n%s", shown)
	}

	gone.(*net.TCPConn).SetLinger(0) // the ports are free at once
	gone.Close()
	goneServer.Close()
	replaced, replacedServer := k.connect(9102)
	added, addedServer := k.connect(9104)
	p.press("y\n")
	out := p.wantExit(exitDone)
	results := out[strings.Index(out, "[y/N]"):]
	for _, want := range []string{":9101 ", ":9102 ", ":9103 "} {
		if !strings.Contains(results, want) {
			t.Errorf("no result of %s:\n%s", want, results)
		}
	}
	if got := strings.Count(results, " closed "); got != 2 || strings.Count(results, " was gone ") != 1 || strings.Contains(results, ":9104 ") {
		t.Errorf("want two closed and one that was gone:\n%s", results)
	}
	wantKilled(t, first, firstServer)
	wantKilled(t, last, lastServer)
	wantAlive(t, other, otherServer)
	wantAlive(t, replaced, replacedServer)
	wantAlive(t, added, addedServer)
	k.connect(9105) // the listener too
}

func TestKillClosesNothingWithoutAYes(t *testing.T) {
	for _, tt := range []struct {
		name   string
		answer func(*terminal)
		code   int
		says   string
	}{
		{"no", func(p *terminal) { p.press("n\n") }, exitNo, "ft: nothing was closed\n"},
		{"an empty line", func(p *terminal) { p.press("\n") }, exitNo, "ft: nothing was closed\n"},
		{"another word", func(p *terminal) { p.press("yesterday\n") }, exitNo, "ft: nothing was closed\n"},
		{"an end", func(p *terminal) { p.press("\x04") }, exitNo, "ft: nothing was closed\n"},
		{"Ctrl-C", func(p *terminal) { p.press("\x03") }, exitFailed, "ft: interrupted: nothing was closed\n"},
		{"Ctrl-C after half an answer", func(p *terminal) { p.press("y\x03") }, exitFailed, "ft: interrupted: nothing was closed\n"},
		{"SIGTERM", func(p *terminal) { p.cmd.Process.Signal(syscall.SIGTERM) }, exitFailed, "ft: interrupted: nothing was closed\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := newKilled(t)
			client, server := k.connect(9101)
			p := k.start(1)
			tt.answer(p)
			if out := p.wantExit(tt.code); !strings.HasSuffix(out, tt.says) {
				t.Errorf("want %q at the end of\n%s", tt.says, out)
			}
			wantAlive(t, client, server)
		})
	}
}

// Nothing stands between the sockets and the question: no hint about leaks that
// scrolls them away. The table fits 80 columns.
func TestKillAsksRightBelowTheSockets(t *testing.T) {
	k := newKilled(t)
	const leaked = 25 // connections that this process does not close
	for i := range leaked {
		_, server := k.connect(9101 + i)
		server.Close()
	}
	p := k.start(leaked)
	p.press("n\n")
	lines := strings.Split(p.wantExit(exitNo), "\n")
	if !strings.HasPrefix(lines[0], "PROTO") || !strings.HasPrefix(lines[leaked+1], "Close 25 sockets?") {
		t.Errorf("want a heading, 25 rows, and the question:\n%s", strings.Join(lines, "\n"))
	}
	for _, line := range lines {
		if len(line) > 80 {
			t.Errorf("wraps at 80 columns: %q", line)
		}
	}
}

// A question that nobody can see, or answer, is not asked.
func TestKillAsksOnATerminalOnly(t *testing.T) {
	k := newKilled(t)
	client, server := k.connect(9101)
	for _, redirection := range []string{`2>"$0"; code=$?; cat "$0"; exit $code`, "</dev/null"} {
		p := openTerminal(t, k.host, 80, 24, exec.Command("sh", "-c", "ft kill src port 9101 "+redirection, t.TempDir()+"/errors"))
		if out := p.wantExit(exitUsage); !strings.HasPrefix(out, "ft: 1 socket would be closed, and there is no terminal to ask on") {
			t.Errorf("%s: got %q", redirection, out)
		}
	}
	wantAlive(t, client, server)
}
