package cli

import (
	"bytes"
	"strings"
	"testing"

	"github.com/fivetuple/fivetuple"
)

func TestInteropOfHTTP(t *testing.T) {
	file := contents(nil)
	for _, tt := range []struct {
		name   string
		server string
		curl   string // its arguments
		want   []byte
		code   int
	}{
		{"curl to ft listen http, tcp", "127.0.0.1:PORT", "http://127.0.0.1:PORT/f", file, 0},
		{"curl to ft listen http, tcp over IPv6", "[::1]:PORT", "http://[::1]:PORT/f", file, 0},
		{"curl to ft listen http, unix stream", "unix://DIR/s", "--unix-socket DIR/s http://files/f", file, 0},
		{"curl to ft listen http, abstract unix stream", "unix://@ft-PORT", "--abstract-unix-socket ft-PORT http://files/f", file, 0},
		{"curl to ft listen http, HTTP/1.0", "127.0.0.1:PORT", "-0 http://127.0.0.1:PORT/f", file, 0},
		{"curl to ft listen http, an upgrade to HTTP/2 offered", "127.0.0.1:PORT", "--http2 http://127.0.0.1:PORT/f", file, 0},
		{"curl to ft listen http, a range", "127.0.0.1:PORT", "-r 100-199 http://127.0.0.1:PORT/f", file[100:200], 0},
		{"curl to ft listen http, two files on one connection", "127.0.0.1:PORT", "http://127.0.0.1:PORT/f http://127.0.0.1:PORT/f", bytes.Repeat(file, 2), 0},
		{"curl to ft listen http, no such file", "127.0.0.1:PORT", "-f http://127.0.0.1:PORT/none", nil, 22},
		{"curl to ft listen http, an upload", "127.0.0.1:PORT", "-f -T f http://127.0.0.1:PORT/g", nil, 22},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			place := newPlace(t)
			place.write(t, "f", file)
			network := fivetuple.TCP
			if strings.HasPrefix(tt.server, "unix") {
				network = fivetuple.Unix
			}
			server, client := pairing{"", network, side{"ft listen " + tt.server + " http DIR -v", stays}, side{"curl -sS " + tt.curl, 0}}.startAt(t, place)
			client.hears(t, tt.want)
			client.ends(t, tt.code)
			server.stops(t)
			if n := strings.Count(string(server.said.bytes), " accept #"); n != 1 {
				t.Errorf("%d connections, want 1", n)
			}
		})
	}
}
