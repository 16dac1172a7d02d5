package who

import (
	"strings"
	"testing"
)

func TestRelaysTellWhereTo(t *testing.T) {
	for _, c := range []struct {
		line, command string
		port          uint16
		to, note      string // of the note a part
	}{
		{"/usr/bin/docker-proxy -proto tcp -host-ip 0.0.0.0 -host-port 8080 -container-ip 172.17.0.2 -container-port 80", "docker-proxy", 8080, "172.17.0.2:80", "container"},
		{"docker-proxy -host-port=8080 -container-ip=fd00::2 -container-port=80", "docker-proxy", 8080, "[fd00::2]:80", "container"},
		{"docker-proxy --help", "docker-proxy", 8080, "", "container"},
		{"ssh -N -L 8080:db:5432 host", "ssh", 8080, "db:5432, from the far end of ssh", ""},
		{"ssh -fNL127.0.0.1:8080:db:5432 host", "ssh", 8080, "db:5432, from the far end of ssh", ""},
		{"ssh -L 80:a:1 -L 8080:db:5432 host", "ssh", 8080, "db:5432, from the far end of ssh", ""},
		{"ssh -D 127.0.0.1:1080 host", "ssh", 1080, "wherever its client asks (SOCKS), from the far end of ssh", ""},
		{"ssh -D 1080 -L 8080:db:5432 host", "ssh", 8080, "db:5432, from the far end of ssh", ""},
		{"socat -d TCP-LISTEN:8080,fork TCP:10.0.0.1:80,nodelay", "socat", 8080, "TCP:10.0.0.1:80", ""},
		{"kubectl port-forward -n web pod/nginx 8080:80", "kubectl", 8080, "pod/nginx port 80", ""},
		{"/lib/systemd/systemd-socket-proxyd 10.0.0.1:80", "systemd-socket-", 8080, "10.0.0.1:80", ""},
		{"/usr/bin/pasta -t 8080", "pasta", 8080, "", "container or guest"},
		{"haproxy -f /etc/haproxy.cfg", "haproxy", 80, "", "configuration"},
	} {
		f, ok := relayOf(strings.Fields(c.line), c.command, c.port)
		if !ok || f.To != c.to || !strings.Contains(f.Note, c.note) || c.note == "" && f.Note != "" {
			t.Errorf("%s: got %+v, %v, want %q and a note of %q", c.line, f, ok, c.to, c.note)
		}
	}
	for _, line := range []string{"", "python3 -m http.server 8080", "ssh host", "ssh -L 80:a:1 host", "socat -h"} {
		if f, ok := relayOf(strings.Fields(line), "x", 8080); ok {
			t.Errorf("%q: got %+v, want nothing", line, f)
		}
	}
}
