package datagram

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fivetuple/fivetuple/internal/lab"
)

const pythonClient = `
import socket, sys
s = socket.socket(getattr(socket, sys.argv[1]), socket.SOCK_DGRAM)
if s.family == socket.AF_UNIX: s.bind('')
s.sendto(sys.stdin.buffer.readline(), sys.argv[2] if len(sys.argv) == 3 else (sys.argv[2], int(sys.argv[3])))
print(s.recv(1000).decode())
`

const pythonServer = `
import socket, sys
s = socket.socket(getattr(socket, sys.argv[1]), socket.SOCK_DGRAM)
s.bind(sys.argv[2] if len(sys.argv) == 3 else (sys.argv[2], int(sys.argv[3])))
while True:
    b, peer = s.recvfrom(1000)
    s.sendto(b, peer)
`

// says is a standard input that holds a text and does not end before the test.
func says(t *testing.T, text string) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err == nil {
		_, err = w.WriteString(text)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r
}

// Programs people know are clients of the echo server.
func TestPeersThatAreClients(t *testing.T) {
	h := lab.NewHost(t, "h")
	path := filepath.Join(t.TempDir(), "s")
	own := filepath.Join(t.TempDir(), "own")
	serveIn(t, h, &Server{Handler: Echo()}, "udp://*:700")
	serveIn(t, h, &Server{Handler: Echo()}, "unixgram://"+path)
	for _, command := range [][]string{
		{"python3", "-c", pythonClient, "AF_INET", "127.0.0.1", "700"},
		{"python3", "-c", pythonClient, "AF_INET6", "::1", "700"},
		{"python3", "-c", pythonClient, "AF_UNIX", path},
		{"socat", "-T5", "-", "UDP4:127.0.0.1:700"},
		{"socat", "-T5", "-", "UDP6:[::1]:700"},
		{"socat", "-T5", "-", "UNIX-SENDTO:" + path + ",bind=" + own},
		{"ncat", "-u", "127.0.0.1", "700"},
		{"ncat", "-u", "::1", "700"},
		{"ncat", "-U", "-u", path},
		{"nc.openbsd", "-u", "127.0.0.1", "700"},
		{"nc.openbsd", "-u", "::1", "700"},
		{"nc.openbsd", "-U", "-u", path},
	} {
		cmd := exec.Command(command[0], command[1:]...)
		cmd.Stdin = says(t, "hello from a peer\n")
		p := h.Start(t, cmd)
		eventually(t, strings.Join(command, " ")+" has the echo", func() bool { return strings.Contains(p.Output(), "hello from a peer\n") })
	}
}

// They are servers, which the dialed socket talks to.
func TestPeersThatAreServers(t *testing.T) {
	dir := t.TempDir()
	for i, tt := range []struct {
		command  []string
		endpoint string
	}{
		{[]string{"python3", "-c", pythonServer, "AF_INET", "127.0.0.1", "700"}, "udp://127.0.0.1:700"},
		{[]string{"python3", "-c", pythonServer, "AF_INET6", "::1", "700"}, "udp://[::1]:700"},
		{[]string{"python3", "-c", pythonServer, "AF_UNIX", dir + "/python"}, "unixgram://" + dir + "/python"},
		{[]string{"socat", "UDP4-RECVFROM:700,fork", "EXEC:cat"}, "udp://127.0.0.1:700"},
		{[]string{"socat", "UDP6-RECVFROM:700,fork", "EXEC:cat"}, "udp://[::1]:700"},
		{[]string{"socat", "UNIX-RECVFROM:" + dir + "/socat,fork", "EXEC:cat"}, "unixgram://" + dir + "/socat"},
		{[]string{"ncat", "-u", "-l", "127.0.0.1", "700", "-e", "/bin/cat"}, "udp://127.0.0.1:700"},
		{[]string{"ncat", "-U", "-u", "-l", dir + "/ncat", "-e", "/bin/cat"}, "unixgram://" + dir + "/ncat"},
		{[]string{"nc.openbsd", "-u", "-l", "127.0.0.1", "700"}, "udp://127.0.0.1:700"},
		{[]string{"nc.openbsd", "-U", "-u", "-l", dir + "/nc"}, "unixgram://" + dir + "/nc"},
	} {
		t.Run(fmt.Sprint(tt.command[0], i), func(t *testing.T) {
			h := lab.NewHost(t, "h")
			cmd := exec.Command(tt.command[0], tt.command[1:]...)
			cmd.Stdin = says(t, "hello") // what nc says to whom it hears
			p := h.Start(t, cmd)
			if path, isUnix := strings.CutPrefix(tt.endpoint, "unixgram://"); isUnix {
				eventually(t, "its file is there", func() bool { _, err := os.Lstat(path); return err == nil })
			} else {
				p.WaitListening(t, "udp", 700)
			}
			c := dialIn(t, h, tt.endpoint)
			send(t, c, "hello")
			want(t, c, "hello")
		})
	}
}

func TestPeersThatTalk(t *testing.T) {
	h := lab.NewHost(t, "h")
	path := filepath.Join(t.TempDir(), "s")
	for _, tt := range []struct {
		endpoint string
		commands [][]string
	}{
		{"udp://127.0.0.1:700", [][]string{{"nc.openbsd", "-u", "127.0.0.1", "700"}, {"ncat", "-u", "127.0.0.1", "700"}, {"socat", "-T5", "-", "UDP4:127.0.0.1:700"}}},
		{"unixgram://" + path, [][]string{{"nc.openbsd", "-U", "-u", path}, {"ncat", "-U", "-u", path}, {"socat", "-T5", "-", "UNIX-SENDTO:" + path + ",bind=" + path + ".own"}}},
	} {
		for _, command := range tt.commands {
			conversation, _ := talk(t, listenWith(t, h, ListenConfig{}, tt.endpoint), TalkOptions{})
			cmd := exec.Command(command[0], command[1:]...)
			cmd.Stdin = says(t, "hello")
			p := h.Start(t, cmd)
			hears(t, conversation, "hello")
			say(t, conversation, "hello yourself\n")
			eventually(t, strings.Join(command, " ")+" is answered", func() bool { return p.Output() == "hello yourself\n" })
			conversation.Close()
		}
	}
}

const pythonGroup = `
import socket, struct, sys
group, own, source = sys.argv[1:]
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind((group, 700))
aton = socket.inet_aton
if source: s.setsockopt(socket.IPPROTO_IP, 39, aton(group) + aton(own) + aton(source)) # IP_ADD_SOURCE_MEMBERSHIP
else: s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, aton(group) + aton(own))
s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, aton(own))
s.sendto(b'python is here', (group, 701))
print(s.recv(1000).decode(), flush=True)
`

// members says how many sockets of a host have joined an IPv4 group.
func members(t *testing.T, h *lab.Host, group string) (n string) {
	t.Helper()
	g := netip.MustParseAddr(group).As4()
	h.Do(t, func() {
		text, err := os.ReadFile("/proc/thread-self/net/igmp")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) { // proc_pid_net(5): group, users, timer
			if fields := strings.Fields(line); len(fields) > 2 && fields[0] == fmt.Sprintf("%02X%02X%02X%02X", g[3], g[2], g[1], g[0]) {
				n = fields[1]
			}
		}
	})
	return n
}

// Each is a receiver of the group, and says so to another.
func TestPeersInAGroup(t *testing.T) {
	a, b := lab.NewHost(t, "sender"), lab.NewHost(t, "receiver")
	lab.Link(t, a, b, "10.0.0.0/24")
	a.AddAddr(t, "receiver", "10.0.0.77/24")
	out, _ := device(t, a, "receiver")
	iface := fmt.Sprint(out)
	for group, source := range map[string]string{"239.1.1.1": "", "232.1.1.1": "10.0.0.77"} {
		lc := ListenConfig{Interface: iface}
		if source != "" {
			lc.Sources = addrs("10.0.0.2")
		}
		here := listenWith(t, a, lc, "udp://"+group+":701")
		python := b.Start(t, exec.Command("python3", "-c", pythonGroup, group, "10.0.0.2", source))
		socat := b.Start(t, exec.Command("socat", "-u", "UDP4-RECV:700,bind="+group+",reuseaddr,ip-add-membership="+group+":10.0.0.2", "-"))
		want(t, here, "python is here")
		eventually(t, "both have joined", func() bool { return members(t, b, group) == "2" })
		for _, own := range []string{"10.0.0.1", "10.0.0.77"} {
			send(t, dialFrom(t, a, Dialer{Interface: iface, Source: netip.MustParseAddrPort(own + ":0")}, "udp://"+group+":700"), "from "+own+"\n")
		}
		first := map[string]string{"": "from 10.0.0.1\n"}[source]
		eventually(t, "python has received", func() bool { return python.Output() == cmp.Or(first, "from 10.0.0.77\n")+"\n" })
		eventually(t, "socat has received", func() bool { return socat.Output() == "from 10.0.0.1\nfrom 10.0.0.77\n" })
		here.Close()
	}
}
