package cli

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple/internal/lab"
)

// forwardNetRows are where connections to targets come from.
var forwardNetRows = map[string]func(t *testing.T, over string) string{
	"forward-bind-source": func(t *testing.T, over string) string {
		if over == "udp" {
			f := startUDP(t, "--bind-source", "127.0.0.5")
			if from := f.exchange(t, f.client(t), "x"); !strings.HasPrefix(from.String(), "127.0.0.5:") {
				t.Errorf("it came from %s", from)
			}
			return f.stopped(t)
		}
		_, port, _ := net.SplitHostPort(freePort(t))
		for _, source := range []string{"127.0.0.5", "127.0.0.5:" + port} {
			f := startForwarding(t, over, "--bind-source", source)
			client, target := f.connect(t)
			if got := target.raw.RemoteAddr().String(); !strings.HasPrefix(got+":", source+":") {
				t.Errorf("with --bind-source %s it came from %s", source, got)
			}
			exchanged(t, client, target)
			target.reset() // no TIME_WAIT
			client.hearReset(t)
			if code := f.stopped(t); code != "0" {
				t.Errorf("exit code %s", code)
			}
		}
		return "0"
	},
	"forward-bind-source-wrong": func(t *testing.T, over string) string {
		f := startForwarding(t, over, "--bind-source", "192.0.2.77")
		f.refused(t)
		f.says(t, "no target took the connection")
		f.says(t, "cannot assign requested address")
		return f.cause(t)
	},
	"forward-interface": func(t *testing.T, over string) string {
		relay, target := lab.NewHost(t, "relay"), lab.NewHost(t, "target")
		lab.Link(t, relay, target, "10.7.0.0/24")
		ln, err := target.Listen("tcp", "10.7.0.2:80")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		f := startIn(t, relay, "127.0.0.1:8000", "10.7.0.2:80", "--interface", "target")
		c, err := relay.Dial(t.Context(), "tcp", "127.0.0.1:8000")
		if err != nil {
			t.Fatal(err)
		}
		exchanged(t, newPeer(t, c), (&host{ln, "tcp", nil}).accept(t))
		wrong := startIn(t, relay, "127.0.0.1:8001", "10.7.0.2:80", "--interface", "lo")
		if c, err = relay.Dial(t.Context(), "tcp", "127.0.0.1:8001"); err == nil {
			_, err = c.Read(make([]byte, 1))
			c.Close()
		}
		if !isReset(err) {
			t.Errorf("through lo: %v", err)
		}
		wrong.says(t, "no target took the connection")
		return f.stopped(t)
	},
	"forward-transparent": func(t *testing.T, over string) string {
		client, relay, target := lab.NewHost(t, "client"), lab.NewHost(t, "relay"), lab.NewHost(t, "target")
		lab.Link(t, client, relay, "10.7.1.0/24")
		lab.Link(t, relay, target, "10.7.2.0/24")
		target.AddRoute(t, "10.7.1.0/24", "10.7.2.1")
		args := []string{"10.7.1.2:8000", "10.7.2.2:80", "--transparent", "--allow", "10.0.0.0/8"}
		if over == "udp" {
			args[0] = "udp://" + args[0]
		}
		f := startIn(t, relay, args...)
		f.says(t, "meta mark set 1")
		relay.Do(t, func() { // the lines are commands of a shell
			for line := range strings.Lines(f.err.String()) {
				command := strings.TrimSpace(line)
				if strings.HasPrefix(command, "ip ") || strings.HasPrefix(command, "nft ") {
					if b, err := exec.Command("sh", "-c", command).CombinedOutput(); err != nil {
						t.Errorf("%s: %v\n%s", command, err, b)
					}
				}
			}
		})
		if over == "udp" {
			pc, err := target.ListenPacket("udp", "10.7.2.2:80")
			if err != nil {
				t.Fatal(err)
			}
			defer pc.Close()
			pc.SetDeadline(time.Now().Add(patience))
			c, err := client.Dial(t.Context(), "udp", "10.7.1.2:8000")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			u := &udpForwarding{f, &packetHost{pc, nil}}
			if from := u.exchange(t, &packetPeer{c}, "question"); from.String() != c.LocalAddr().String() {
				t.Errorf("the target saw %s, want the client's %s", from, c.LocalAddr())
			}
			return f.stopped(t)
		}
		ln, err := target.Listen("tcp", "10.7.2.2:80")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		c, err := client.Dial(t.Context(), "tcp", "10.7.1.2:8000")
		if err != nil {
			t.Fatal(err)
		}
		got := (&host{ln, "tcp", nil}).accept(t)
		if from, _, _ := net.SplitHostPort(got.RemoteAddr().String()); from != "10.7.1.1" {
			t.Errorf("the target saw %s, want the client's 10.7.1.1", from)
		}
		exchanged(t, newPeer(t, c), got)
		return f.stopped(t)
	},
	"forward-unreachable": func(t *testing.T, over string) string {
		relay, router := lab.NewHost(t, "relay"), lab.NewHost(t, "router")
		lab.Link(t, relay, router, "10.7.3.0/24")
		router.Sysctl(t, "net.ipv4.ip_forward", "1")
		relay.AddRoute(t, "10.9.0.0/16", "10.7.3.2") // which the router knows nothing of
		if over == "tcp" {
			f := startIn(t, relay, "127.0.0.1:8000", "10.9.0.1:80")
			c, err := relay.Dial(t.Context(), "tcp", "127.0.0.1:8000")
			if err == nil {
				_, err = c.Read(make([]byte, 1))
				c.Close()
			}
			if !isReset(err) {
				t.Errorf("got %v, want a reset", err)
			}
			f.says(t, "10.9.0.1:80: network is unreachable")
			return f.cause(t)
		}
		f := startIn(t, relay, "udp://127.0.0.1:8000", "10.9.0.1:80")
		c, err := relay.Dial(t.Context(), "udp", "127.0.0.1:8000")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		(&packetPeer{c}).say(t, "x")
		return f.cause(t)
	},
	"forward-udp-path-mtu": func(t *testing.T, over string) string {
		relay, router, target := lab.NewHost(t, "relay"), lab.NewHost(t, "router"), lab.NewHost(t, "target")
		lab.Link(t, relay, router, "10.7.4.0/24")
		lab.ShapedLink(t, router, target, lab.Conditions{MTU: 1300}, "10.7.5.0/24")
		router.Sysctl(t, "net.ipv4.ip_forward", "1")
		relay.AddRoute(t, "10.7.5.0/24", "10.7.4.2")
		target.AddRoute(t, "10.7.4.0/24", "10.7.5.1")
		pc, err := target.ListenPacket("udp", "10.7.5.2:80")
		if err != nil {
			t.Fatal(err)
		}
		defer pc.Close()
		f := startIn(t, relay, "udp://127.0.0.1:8000", "10.7.5.2:80")
		c, err := relay.Dial(t.Context(), "udp", "127.0.0.1:8000")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		text := randomBytes(1, 1400)
		b := make([]byte, 2000)
		eventually(t, "a datagram over the MTU of the path arrives", func() bool {
			c.Write(text)
			pc.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			n, _, err := pc.ReadFrom(b)
			return err == nil && n == len(text)
		})
		if strings.Contains(f.err.String(), " disconnect ") {
			t.Errorf("what is too large for the path ended the session:\n%s", f.err)
		}
		return f.stopped(t)
	},
}

// startIn starts ft forward -v on a host of the lab.
func startIn(t *testing.T, h *lab.Host, args ...string) *forwarding {
	t.Helper()
	f := &forwarding{over: "tcp"}
	h.Do(t, func() {
		f.process = startProcess(t, nil, append([]string{"forward", "-v", "--drain", "200ms"}, args...)...)
	})
	f.awaitForwarding(t)
	return f
}

// forwardLifeRows are what happens to the relay itself.
var forwardLifeRows = map[string]func(t *testing.T, over string) string{
	"forward-signal-quiet": func(t *testing.T, over string) string {
		f := startForwarding(t, over, "--drain", "20s")
		client, target := f.connect(t)
		exchanged(t, client, target)
		f.signal(syscall.SIGTERM)
		f.says(t, "stopping")
		time.Sleep(400 * time.Millisecond) // nobody takes that for the end
		exchanged(t, client, target)
		client.Close()
		target.hearEnd(t, "")
		target.Close()
		if code := f.code(t); code != "0" {
			t.Errorf("exit code %s", code)
		}
		return f.cause(t)
	},
	"forward-signal-silent": func(t *testing.T, over string) string {
		f := startForwarding(t, over)
		client, target := f.connect(t)
		exchanged(t, client, target)
		f.signal(syscall.SIGTERM)
		wantCutOff(t, client)
		wantCutOff(t, target)
		if code := f.code(t); code != "0" {
			t.Errorf("exit code %s", code)
		}
		return f.cause(t)
	},
	"forward-signal-ends": func(t *testing.T, over string) string {
		return sameTwice(t, func(s os.Signal) string {
			f := startForwarding(t, over, "--drain", "20s")
			client, target := f.connect(t)
			read := flood(t, target, func() { target.Close() })
			f.signal(s)
			f.says(t, "stopping")
			read(client) // who has something under way gets all of it
			client.Close()
			f.cause(t)
			return f.code(t)
		})
	},
	"forward-signal-stays": func(t *testing.T, over string) string {
		f := startForwarding(t, over, "--drain", "500ms")
		client, target := f.connect(t)
		go func() { // it never ends, and nobody reads it
			for b := make([]byte, 64<<10); ; {
				if _, err := target.Write(b); err != nil {
					return
				}
			}
		}()
		client.awaitUnread(t)
		f.signal(syscall.SIGTERM)
		if code := f.code(t); code != "0" {
			t.Errorf("exit code %s", code)
		}
		if _, err := io.Copy(io.Discard, client); !isReset(err) && networkIn(f.callKind()) == "tcp" {
			t.Errorf("the client got %v, want a reset", err)
		}
		return f.cause(t)
	},
	"forward-signal-twice": func(t *testing.T, over string) string {
		f := startForwarding(t, over, "--drain", "1h")
		client, target := f.connect(t)
		go func() {
			for b := make([]byte, 64<<10); ; {
				if _, err := target.Write(b); err != nil {
					return
				}
			}
		}()
		client.awaitUnread(t)
		f.signal(syscall.SIGTERM)
		f.says(t, "stopping")
		select { // the first signal ends nothing that is under way
		case <-f.ended:
			t.Error("it ended at the first signal")
		case <-time.After(time.Second / 2):
		}
		f.signal(syscall.SIGTERM)
		return f.code(t)
	},
	"forward-killed": func(t *testing.T, over string) string {
		f := startForwarding(t, over)
		client, target := f.connect(t)
		exchanged(t, client, target)
		f.signal(syscall.SIGKILL)
		client.hearEnd(t, "")
		target.hearEnd(t, "")
		return f.code(t)
	},
	"forward-hangup": func(t *testing.T, over string) string {
		f := startForwarding(t, over)
		f.signal(syscall.SIGHUP) // there is no file to read again: the terminal was closed
		return f.code(t)
	},
	"forward-reload-adds": func(t *testing.T, over string) string {
		r := startReloading(t)
		second := placeAddress(t)
		r.reload(t, r.line, second+" "+r.target.args[0])
		r.stillThere(t)
		r.address = second
		exchanged(t, r.call(t), r.target.accept(t))
		return r.stopped(t)
	},
	"forward-reload-removes": func(t *testing.T, over string) string {
		r := startReloading(t)
		address := r.address
		r.reload(t, placeAddress(t)+" "+r.target.args[0])
		wantRefusedAt(t, address)
		exchanged(t, r.client, r.accepted) // who is there may end in peace
		r.client.Close()
		r.accepted.hearEnd(t, "")
		r.accepted.Close()
		return r.cause(t)
	},
	"forward-reload-changes": func(t *testing.T, over string) string {
		r := startReloading(t)
		other := newHost(t, "tcp")
		r.reload(t, r.address+" "+other.args[0]+" --send-proxy 1")
		r.stillThere(t)
		c := r.call(t)
		got := other.accept(t)
		got.hear(t, "PROXY TCP4 127.0.0.1 127.0.0.1 "+strconv.Itoa(c.raw.LocalAddr().(*net.TCPAddr).Port)+" "+r.address[strings.Index(r.address, ":")+1:]+"\r\n")
		exchanged(t, c, got)
		r.target.nobodyCame(t)
		return r.stopped(t)
	},
	"forward-reload-limits": func(t *testing.T, over string) string {
		r := startReloading(t)
		r.reload(t, r.line+" --deny 127.0.0.1")
		r.stillThere(t)
		r.refused(t)
		r.reload(t, r.line)
		exchanged(t, r.call(t), r.target.accept(t))
		return r.stopped(t)
	},
	"forward-reload-wrong": func(t *testing.T, over string) string {
		r := startReloading(t)
		for i, lines := range [][]string{
			{r.line, "nonsense"}, {r.line + " --no-such-flag"}, {}, {r.line, r.line}, {r.address + " 127.0.0.1:1 --rate -1"}, {"\x00\xff\xfe"},
		} {
			writeRules(t, r.file, lines...)
			r.signal(syscall.SIGHUP)
			eventually(t, "it says that the old one stays in force", func() bool {
				return strings.Count(r.err.String(), "the old one stays in force") == i+1
			})
		}
		if !strings.Contains(r.err.String(), r.file+": line 2: ") {
			t.Errorf("it does not say which line is wrong:\n%s", r.err)
		}
		r.stillThere(t)
		exchanged(t, r.call(t), r.target.accept(t))
		return r.stopped(t)
	},
	"forward-reload-in-use": func(t *testing.T, over string) string {
		r := startReloading(t)
		taken := newHost(t, "tcp")
		writeRules(t, r.file, r.line, taken.Addr().String()+" 127.0.0.1:1")
		r.signal(syscall.SIGHUP)
		r.says(t, "not everything of the new configuration works")
		r.says(t, "address already in use")
		r.stillThere(t)
		exchanged(t, r.call(t), r.target.accept(t))
		return r.stopped(t)
	},
	"forward-reload-vanished": func(t *testing.T, over string) string {
		r := startReloading(t)
		if err := os.Remove(r.file); err != nil {
			t.Fatal(err)
		}
		r.signal(syscall.SIGHUP)
		r.says(t, "the old one stays in force")
		r.says(t, "no such file or directory")
		r.stillThere(t)
		exchanged(t, r.call(t), r.target.accept(t))
		return r.stopped(t)
	},
	"forward-activation": func(t *testing.T, over string) string {
		target := newHost(t, "tcp")
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		f := &forwarding{over: "tcp", target: target, process: startActivated(t, ln, ln.Addr().String(), target.args[0])}
		f.awaitForwarding(t)
		if f.address != ln.Addr().String() {
			t.Errorf("it listens on %s, want %s", f.address, ln.Addr())
		}
		client, got := f.connect(t)
		exchanged(t, client, got)
		code := f.stopped(t)
		f.address = ln.Addr().String()
		waiting := f.call(t) // the socket is still there: who comes now waits for the next ft
		waiting.say(t, "patient")
		next := &forwarding{over: "tcp", target: target, process: startActivated(t, ln, ln.Addr().String(), target.args[0])}
		next.awaitForwarding(t)
		target.accept(t).hear(t, "patient")
		if c := next.stopped(t); c != "0" {
			t.Errorf("exit code %s", c)
		}
		return code
	},
	"forward-activation-stranger": func(t *testing.T, over string) string {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		p := startActivated(t, ln, placeAddress(t), "127.0.0.1:1")
		code := p.code(t)
		if !strings.Contains(p.err.String(), ln.Addr().String()) {
			t.Errorf("it does not name the socket that no rule has: %s", p.err)
		}
		return code
	},
	"forward-handoff": func(t *testing.T, over string) string {
		control := filepath.Join(filepath.Dir(socketPath(t)), "control")
		target := newHost(t, "tcp")
		args := []string{"-f", rules(t, placeAddress(t)+" "+target.args[0]), "--handoff", control}
		start := func() *forwarding {
			f := &forwarding{over: "tcp", target: target, process: startProcess(t, nil, append([]string{"forward", "-v", "--drain", "200ms"}, args...)...)}
			f.awaitForwarding(t)
			return f
		}
		first := start()
		client, got := first.connect(t)
		exchanged(t, client, got)
		second := start()
		code := first.code(t)
		exchanged(t, client, got)
		exchanged(t, second.call(t), target.accept(t))
		client.finish(t)
		got.hearEnd(t, "")
		got.say(t, "late")
		got.Close()
		client.hearEnd(t, "late")
		if cause := second.cause(t); cause != "peer closed" {
			t.Errorf("the connection ended at the successor by %q", cause)
		}
		if c := second.stopped(t); c != "0" {
			t.Errorf("the successor ended with %s", c)
		}
		return code
	},
	"forward-handoff-wrong": func(t *testing.T, over string) string {
		control := filepath.Join(filepath.Dir(socketPath(t)), "control")
		f := startForwarding(t, over, "--handoff", control)
		client, target := f.connect(t)
		exchanged(t, client, target)
		p := startProcess(t, nil, "forward", placeAddress(t), "127.0.0.1:1", "--handoff", control) // another rule
		code := p.code(t)
		exchanged(t, client, target) // the predecessor goes on
		exchanged(t, f.call(t), f.target.accept(t))
		if c := f.stopped(t); c != "0" {
			t.Errorf("the predecessor ended with %s", c)
		}
		return code
	},
	"forward-user": func(t *testing.T, over string) string {
		if users, err := condition("users"); err != nil || !users {
			// Whoever is not root here cannot become another user, and is told so.
			if code := startProcess(t, nil, "forward", "127.0.0.1:0", "127.0.0.1:1", "--user", "65534:65534").ends(t, "", "user"); code != "3" {
				t.Errorf("exit code %s", code)
			}
			return "0"
		}
		dir, err := os.MkdirTemp("", "ft")
		if err == nil {
			t.Cleanup(func() { os.RemoveAll(dir) })
			err = os.Chmod(dir, 0o755) // as /run is
		}
		if err != nil {
			t.Fatal(err)
		}
		target0 := newHost(t, "tcp")
		f := &forwarding{over: over, target: target0, process: startProcess(t, func(c *exec.Cmd) {
			c.Env = append(os.Environ(), "STATE_DIRECTORY="+dir+"/state", "RUNTIME_DIRECTORY="+dir+"/run")
		}, "forward", "-v", "--drain", "200ms", "127.0.0.1:0", target0.args[0], "--user", "65534:65534")}
		f.awaitForwarding(t)
		f.says(t, "running as 65534:65534")
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", f.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"Uid:\t65534\t65534\t65534\t65534", "Gid:\t65534\t65534\t65534\t65534", "Groups:\t\n", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"} {
			if !strings.Contains(strings.ReplaceAll(string(text), " \n", "\n"), want) {
				t.Errorf("its status has no %q:\n%s", want, text)
			}
		}
		f.carries(t)
		f.cause(t)
		return f.stopped(t)
	},
	"forward-workers": func(t *testing.T, over string) string {
		target := newHost(t, "tcp")
		p := startProcess(t, nil, "forward", "127.0.0.1:0", target.args[0], "--workers", "2", "--drain", "1s")
		p.err.await(t, "listening on ")
		f := &forwarding{over: over, target: target, process: p, address: addressIn(p.err.String())}
		for range 4 {
			f.carries(t)
		}
		killChild(t, p.Process.Pid)
		f.says(t, "worker")
		eventually(t, "another has taken its place", func() bool { return len(childrenOf(t, p.Process.Pid)) == 2 })
		for range 4 {
			f.carries(t)
		}
		return f.stopped(t)
	},
	"forward-serve": func(t *testing.T, over string) string {
		target := newHost(t, "tcp")
		dir := t.TempDir()
		config := dir + "/ft.yaml"
		address := placeAddress(t)
		text := fmt.Sprintf("leases: {off: true}\nhistory: {off: true}\nservices:\n  - name: db\n    listen: %s\n    kind: forward\n    to: [%s, %s]\n", address, nobodyAt(t, "tcp")[0], target.args[0])
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		p := startProcess(t, nil, "serve", "-c", config, "-v")
		p.err.await(t, "msg=listening")
		f := &forwarding{over: over, target: target, process: p, address: address}
		f.carries(t)
		f.cause(t)
		return f.stopped(t)
	},
	"forward-explain": func(t *testing.T, over string) string {
		env := ownDirs(t)
		target := newHost(t, targetKind(over))
		f := &forwarding{over: over, target: target, process: startProcess(t, env, append([]string{"forward", "-v", "--drain", "200ms", "127.0.0.1:0"}, target.args...)...)}
		f.awaitForwarding(t)
		client, got := f.connect(t)
		exchanged(t, client, got)
		other, gotOther := f.connect(t)
		exchanged(t, other, gotOther)
		from := client.raw.LocalAddr().String()
		for _, which := range [][]string{nil, {"1"}, {"#1"}, {from}, {"127.0.0.1"}} {
			table := ask(t, env, 0, append([]string{"explain"}, which...)...)
			for _, want := range []string{"listens on " + f.address, target.Addr().String() + ": good", "\nID ", from} {
				if !strings.Contains(table, want) {
					t.Errorf("explain %v has no %q:\n%s", which, want, table)
				}
			}
			if one := len(which) > 0 && which[0] != "127.0.0.1"; one == strings.Contains(table, other.raw.LocalAddr().String()) {
				t.Errorf("explain %v tells of others or not of all:\n%s", which, table)
			}
			if legs := strings.Count(table, ": rtt "); (legs > 0) != (len(which) > 0) {
				t.Errorf("explain %v has %d legs:\n%s", which, legs, table)
			}
		}
		var document struct {
			Schema int
			Relays []struct {
				PID      int
				Services []struct{ Pairs []map[string]any }
			}
		}
		if err := json.Unmarshal([]byte(ask(t, env, 0, "explain", "-o", "json")), &document); err != nil {
			t.Fatal(err)
		}
		if len(document.Relays) != 1 || document.Relays[0].PID != f.Process.Pid || len(document.Relays[0].Services[0].Pairs) != 2 {
			t.Errorf("the document is %+v", document)
		}
		rows, err := csv.NewReader(strings.NewReader(ask(t, env, 0, "explain", "-o", "csv"))).ReadAll()
		if err != nil || len(rows) != 3 || rows[0][0] != "id" || rows[1][2] != from {
			t.Errorf("CSV is %q, %v", rows, err)
		}
		if lines := strings.Count(ask(t, env, 0, "explain", "-o", "ndjson"), "\n"); lines != 1 {
			t.Errorf("%d lines for one relay", lines)
		}
		ask(t, env, 1, "explain", "3")
		ask(t, env, 1, "explain", "127.0.0.2")
		code := f.stopped(t)
		if entries, err := os.ReadDir(runtimeOf(env)); err != nil && !errors.Is(err, os.ErrNotExist) || len(entries) > 0 {
			t.Errorf("the runtime directory has %v, %v", entries, err)
		}
		return code
	},
	"forward-explain-udp": func(t *testing.T, over string) string {
		env := ownDirs(t)
		target := newPacketHost(t, "udp")
		f := &forwarding{over: over, process: startProcess(t, env, "forward", "-v", "--drain", "200ms", "udp://127.0.0.1:0", target.args[0])}
		f.awaitForwarding(t)
		u := &udpForwarding{f, target}
		c := u.client(t)
		u.exchange(t, c, "x")
		table := ask(t, env, 0, "explain", c.LocalAddr().String())
		for _, want := range []string{"engine sessions", "1 session of at most ", "GSO ", "GRO ", c.LocalAddr().String(), "replied"} {
			if !strings.Contains(table, want) {
				t.Errorf("no %q in\n%s", want, table)
			}
		}
		return f.stopped(t)
	},
	"forward-explain-killed": func(t *testing.T, over string) string {
		env := ownDirs(t)
		f := &forwarding{over: over, process: startProcess(t, env, "forward", "-v", "--drain", "200ms", "127.0.0.1:0", "127.0.0.1:1")}
		f.awaitForwarding(t)
		f.signal(syscall.SIGKILL)
		f.code(t)
		p := startProcess(t, env, "forward", "explain") // its control socket is left, and nobody behind it
		return p.ends(t, "", "no relay of this user runs")
	},
	"forward-explain-nobody": func(t *testing.T, over string) string {
		return startProcess(t, ownDirs(t), "forward", "explain").ends(t, "", "no relay of this user runs")
	},
}

func networkIn(kind string) string {
	if kind == "unix" {
		return kind
	}
	return "tcp"
}

// placeAddress is an address at which nobody else listens.
func placeAddress(t *testing.T) string {
	t.Helper()
	return fmt.Sprintf("127.0.0.1:%d", newPlace(t).port)
}

// reloading is a relay with a file of one rule, which has a connection.
type reloading struct {
	*forwarding
	file, line       string
	client, accepted *peer
	times            int
}

func startReloading(t *testing.T) *reloading {
	t.Helper()
	r := &reloading{forwarding: &forwarding{over: "tcp", target: newHost(t, "tcp")}}
	r.line = placeAddress(t) + " " + r.target.args[0]
	r.file = rules(t, r.line)
	r.process = startProcess(t, ownDirs(t), "forward", "-v", "-f", r.file, "--drain", "1s")
	r.awaitForwarding(t)
	r.client, r.accepted = r.connect(t)
	exchanged(t, r.client, r.accepted)
	return r
}

func (r *reloading) reload(t *testing.T, lines ...string) {
	t.Helper()
	writeRules(t, r.file, lines...)
	r.signal(syscall.SIGHUP)
	r.times++
	eventually(t, "the rules are read again", func() bool { return strings.Count(r.err.String(), "rules read again") == r.times })
}

// stillThere wants that its connection has noticed nothing, and ends it.
func (r *reloading) stillThere(t *testing.T) {
	t.Helper()
	exchanged(t, r.client, r.accepted)
}

// startActivated starts ft forward as systemd does, with a socket.
func startActivated(t *testing.T, ln net.Listener, args ...string) *process {
	t.Helper()
	file, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	return startProcess(t, func(c *exec.Cmd) {
		shell := exec.Command("sh", append([]string{"-c", `LISTEN_FDS=1 LISTEN_PID=$$ exec ft "$@"`, "sh", "forward", "-v", "--drain", "200ms"}, args...)...)
		c.Path, c.Args = shell.Path, shell.Args
		c.ExtraFiles = []*os.File{file}
	})
}

// ownDirs gives a process directories that no other has.
func ownDirs(t *testing.T) func(*exec.Cmd) {
	t.Helper()
	dir := filepath.Dir(socketPath(t))
	return func(c *exec.Cmd) {
		c.Env = append(slices.Clone(os.Environ()), "STATE_DIRECTORY="+dir+"/state", "RUNTIME_DIRECTORY="+dir+"/run")
	}
}

// runtimeOf is the runtime directory of ownDirs.
func runtimeOf(env func(*exec.Cmd)) string {
	var c exec.Cmd
	env(&c)
	dir, _ := strings.CutPrefix(c.Env[len(c.Env)-1], "RUNTIME_DIRECTORY=")
	return dir
}

// ask runs ft forward with arguments, which is to end with that code.
func ask(t *testing.T, env func(*exec.Cmd), code int, args ...string) string {
	t.Helper()
	c := exec.Command("ft", append([]string{"forward"}, args...)...)
	env(c)
	var said strings.Builder
	c.Stderr = &said
	b, err := c.Output()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) || c.ProcessState.ExitCode() != code {
		t.Errorf("ft forward %q: %v, want exit code %d\n%s", args, err, code, said.String())
	}
	return string(b)
}
