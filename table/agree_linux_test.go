package table

import (
	"fmt"
	"maps"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/fivetuple/fivetuple"
)

var (
	ssInode = regexp.MustCompile(`\bino:(\d+)`)
	ssUnix  = regexp.MustCompile(`^u_\S+ +\S+ +\d+ +\d+ +\S+ (\d+) `)
	ssUser  = regexp.MustCompile(`\("((?:[^"\\]|\\.)*)",pid=(\d+),fd=(\d+)\)`)
)

// TestOwnersAgreeWithSS compares who holds each socket with what ss(8) says.
// That sockdiag agrees with ss on all else is tested there.
func TestOwnersAgreeWithSS(t *testing.T) {
	alone(t, func() { ownersAgreeWithSS(t) })
}

func ownersAgreeWithSS(t *testing.T) {
	// A parent and its child hold the same listener, and each an end of a pair.
	script := `
import os, socket, time
tcp = socket.create_server(("127.0.0.1", 0)); udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); udp.bind(("::1", 0))
un = socket.socket(socket.AF_UNIX); un.bind("\0ft-agree"); un.listen()
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)
a, b = socket.socketpair()
client = socket.create_connection(tcp.getsockname()); server, _ = tcp.accept(); again = os.dup(server.fileno())
mptcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262); mptcp.bind(("127.0.0.1", 0)); mptcp.listen()
(b if os.fork() else a).close()
print("ready", flush=True)
time.sleep(100)
`
	cmd := exec.CommandContext(t.Context(), "python3", "-c", script)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatalf("%v: apt-get install python3", err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for ready := 0; ready < 2; { // the parent and the child
		b := make([]byte, 100)
		n, err := out.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		ready += strings.Count(string(b[:n]), "ready")
	}
	tab, err := Read(t.Context(), Query{Owners: true, Protocols: []fivetuple.Network{
		fivetuple.TCP, fivetuple.UDP, fivetuple.MPTCP, fivetuple.Raw, fivetuple.Unix, fivetuple.Unixgram, fivetuple.Seqpacket,
	}})
	if err != nil {
		t.Fatal(err)
	}
	ours := map[string]string{}
	for i := range tab.Rows {
		var owners []string
		for _, o := range tab.Rows[i].Owners {
			owners = append(owners, fmt.Sprintf("%s %d %d", o.Command, o.PID, o.FD))
		}
		slices.Sort(owners)
		key := strconv.FormatUint(uint64(tab.Rows[i].Inode), 10)
		if tab.Rows[i].Protocol == fivetuple.Raw { // ss gives it no inode
			key = "raw"
		}
		if owners != nil {
			ours[key] = strings.Join(owners, ", ")
		}
	}
	theirs := ssOwners(t)
	if len(ours) < 9 || !maps.Equal(ours, theirs) {
		t.Errorf("owners by inode:\n got %v\nss   %v", ours, theirs)
	}
}

func ssOwners(t *testing.T) map[string]string {
	t.Helper()
	out, err := exec.Command("ss", "-HanpeOtuxwM").Output()
	if err != nil {
		t.Fatalf("ss: %v: apt-get install iproute2", err)
	}
	owners := map[string]string{}
	for line := range strings.Lines(string(out)) {
		inode := ssInode.FindStringSubmatch(line)
		if inode == nil {
			inode = ssUnix.FindStringSubmatch(line)
		}
		var users []string
		for _, m := range ssUser.FindAllStringSubmatch(line, -1) {
			users = append(users, m[1]+" "+m[2]+" "+m[3])
		}
		if strings.HasPrefix(line, "raw ") {
			inode = []string{"", "raw"}
		}
		if inode == nil || users == nil {
			continue
		}
		slices.Sort(users)
		owners[inode[1]] = strings.Join(users, ", ")
	}
	return owners
}
