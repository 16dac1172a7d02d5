package who

import (
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// proxies are the holders whose command line tells where they send what they take.
func (s *search) proxies(u *use) (all []Forward) {
	for i := range u.Holders {
		h := &u.Holders[i]
		if len(h.Listening) == 0 {
			continue
		}
		if h.Command != "ssh" && strings.HasPrefix(strings.Join(h.CommandLine, " "), "sshd: ") && !strings.Contains(h.CommandLine[0], "[listener]") {
			all = append(all, Forward{Kind: ByProcess, By: byProcess(h), Incoming: true, Local: true, Note: "through the connection of an ssh client that asked for it (ssh -R)"})
			continue
		}
		if f, ok := relayOf(h.CommandLine, h.Command, u.key.port); ok {
			f.Kind, f.By, f.Incoming, f.Local = ByProcess, byProcess(h), true, true
			all = append(all, f)
		}
	}
	return all
}

func byProcess(h *Holder) string { return fmt.Sprintf("%s (pid %d)", h.Command, h.PID) }

// relayOf reads the command line of a program that is known to relay.
func relayOf(line []string, command string, port uint16) (Forward, bool) {
	if len(line) == 0 {
		return Forward{}, false
	}
	name := strings.TrimSuffix(filepath.Base(strings.TrimSuffix(line[0], ":")), ".real")
	for _, known := range relays {
		if !slices.Contains(known.names, name) && !slices.Contains(known.names, command) {
			continue
		}
		f := Forward{Note: known.note}
		if known.to != nil {
			f.To = known.to(line[1:], port)
		}
		return f, f.To != "" || f.Note != ""
	}
	return Forward{}, false
}

// relays are programs that take connections for others. Those that say in a file
// where to have a note only.
var relays = []struct {
	names []string
	to    func(args []string, port uint16) string
	note  string
}{
	{[]string{"docker-proxy", "rootlesskit-docker-proxy"}, dockerProxy, "for a container that publishes the port"},
	{[]string{"ssh", "autossh"}, sshForward, ""},
	{[]string{"socat"}, socat, ""},
	{[]string{"haproxy", "envoy", "traefik", "simpleproxy", "redir", "rinetd"}, nil, "a proxy: its configuration says where to"},
	{[]string{"kubectl"}, kubectl, ""},
	{[]string{"systemd-socket-proxyd", "systemd-socket-"}, lastArgument, ""},
	{[]string{"rootlessport", "rootlesskit", "slirp4netns", "pasta", "pasta.avx2", "passt", "passt.avx2", "rootlessport-child", "containers-rootlessport"}, nil, "for a container or guest that publishes the port"},
	{[]string{"kube-proxy"}, nil, "for a Kubernetes service (kubectl get services -A)"},
}

// option returns the value of an option, as -name value, --name value or --name=value.
func option(args []string, name string) string {
	for i, a := range args {
		bare := strings.TrimLeft(a, "-")
		if bare == a {
			continue
		}
		key, value, joined := strings.Cut(bare, "=")
		switch {
		case key != name:
		case joined:
			return value
		case i+1 < len(args):
			return args[i+1]
		}
	}
	return ""
}

// dockerProxy: -proto tcp -host-ip 0.0.0.0 -host-port 8080 -container-ip 172.17.0.2 -container-port 80
func dockerProxy(args []string, _ uint16) string {
	host, port := option(args, "container-ip"), option(args, "container-port")
	if host == "" || port == "" {
		return ""
	}
	return net.JoinHostPort(host, port)
}

// sshFlag is a group of ssh's flags up to one that forwards, and what follows it.
var sshFlag = regexp.MustCompile(`^-[46AaCfGgKkMNnqsTtVvXxYy]*([LD])(.*)$`)

// sshForward: -L [bind:]port:host:hostport, -fNL ..., or -D [bind:]port.
func sshForward(args []string, port uint16) string {
	want := ":" + strconv.Itoa(int(port))
	for i, a := range args {
		flag := sshFlag.FindStringSubmatch(a)
		if flag == nil {
			continue
		}
		value := flag[2]
		if value == "" && i+1 < len(args) {
			value = args[i+1]
		}
		value = ":" + value
		if flag[1] == "D" {
			if strings.HasSuffix(value, want) {
				return "wherever its client asks (SOCKS), from the far end of ssh"
			}
			continue
		}
		if at := strings.Index(value, want+":"); at >= 0 {
			return value[at+len(want)+1:] + ", from the far end of ssh"
		}
	}
	return ""
}

// socat: the second address, such as TCP:10.0.0.1:80,nodelay.
func socat(args []string, _ uint16) string {
	addresses := slices.DeleteFunc(slices.Clone(args), func(a string) bool { return strings.HasPrefix(a, "-") })
	if len(addresses) < 2 {
		return ""
	}
	to, _, _ := strings.Cut(addresses[len(addresses)-1], ",")
	return to
}

// kubectl: port-forward [-n NAMESPACE] pod/NAME 8080:80
func kubectl(args []string, port uint16) string {
	at := slices.Index(args, "port-forward")
	if at < 0 {
		return ""
	}
	resource := ""
	for _, a := range args[at+1:] {
		local, remote, ok := strings.Cut(a, ":")
		switch {
		case ok && local == strconv.Itoa(int(port)):
			return resource + " port " + remote
		case !ok && !strings.HasPrefix(a, "-") && strings.Contains(a, "/"):
			resource = a
		}
	}
	return ""
}

func lastArgument(args []string, _ uint16) string {
	if len(args) == 0 {
		return ""
	}
	return args[len(args)-1]
}
