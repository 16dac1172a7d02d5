package cli

import (
	"testing"

	"github.com/fivetuple/fivetuple"
)

func TestInteropThroughHTTPProxy(t *testing.T) {
	for _, tt := range []struct {
		name, proxy, client, server string
	}{
		{
			"ft connect through ncat to ft listen", "ncat -l 127.0.0.1 PORT --proxy-type http",
			"ft connect --proxy http://127.0.0.1:PORT 127.0.0.1:PORT2", "ft listen 127.0.0.1:PORT2",
		},
		{
			"ft connect through ncat to nc -l, with a password", "ncat -l 127.0.0.1 PORT --proxy-type http --proxy-auth me:secret",
			"ft connect --proxy http://me:secret@127.0.0.1:PORT localhost:PORT2", "nc.openbsd -N -l 127.0.0.1 PORT2",
		},
		{
			"ft connect through ncat to socat, over IPv6", "ncat -l ::1 PORT --proxy-type http",
			"ft connect --proxy http://[::1]:PORT [::1]:PORT2", "socat -t 30 - TCP6-LISTEN:PORT2,bind=[::1]",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			place := newPlace(t)
			proxy := place.start(t, tt.proxy)
			proxy.awaitListening(t, fivetuple.TCP)
			server := place.start(t, tt.server)
			server.place.port++
			server.awaitListening(t, fivetuple.TCP)
			client := place.start(t, tt.client)
			// The proxy leaves at the first end, whatever is still to come.
			exchange(t, fivetuple.TCP, client, server, 0, deaf)
			proxy.stops(t)
		})
	}
	t.Run("ft connect through ncat, with a wrong password", func(t *testing.T) {
		t.Parallel()
		proxy, client := pairing{
			"", fivetuple.TCP, side{"ncat -l 127.0.0.1 PORT --proxy-type http --proxy-auth me:secret", 0},
			side{"ft connect --proxy http://me:guess@127.0.0.1:PORT 127.0.0.1:PORT2", 0},
		}.start(t)
		client.says(t, "407")
		client.ends(t, exitFailed)
		proxy.stops(t)
	})
	t.Run("ft connect through ncat to a port where nobody listens", func(t *testing.T) {
		t.Parallel()
		proxy, client := pairing{
			"", fivetuple.TCP, side{"ncat -l 127.0.0.1 PORT --proxy-type http", 0},
			side{"ft connect --proxy http://127.0.0.1:PORT 127.0.0.1:PORT2", 0},
		}.start(t)
		client.says(t, "504")
		client.ends(t, exitFailed)
		proxy.stops(t)
	})
}

// TestInteropOfProxyProtocol: ft listen takes its client from the header that others
// write by hand, or curl by itself.
func TestInteropOfProxyProtocol(t *testing.T) {
	const v2 = "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x07\xc0\x00\x02\x01\x04\xd2\x00\x50" // 192.0.2.7:1234 to 192.0.2.1:80
	for _, tt := range []struct{ name, client, header, address string }{
		{"nc, version 1", "nc.openbsd -N 127.0.0.1 PORT", "PROXY TCP4 192.0.2.7 192.0.2.1 1234 80\r\n", "192.0.2.7:1234"},
		{"ncat, version 1", "ncat 127.0.0.1 PORT", "PROXY TCP6 2001:db8::7 2001:db8::1 1234 80\r\n", "[2001:db8::7]:1234"},
		{"socat, version 1", "socat -t 30 - TCP4:127.0.0.1:PORT,sourceport=PORT2", "PROXY UNKNOWN\r\n", "127.0.0.1:PORT2"},
		{"nc, version 2", "nc.openbsd -N 127.0.0.1 PORT", v2, "192.0.2.7:1234"},
		{"ncat, version 2", "ncat 127.0.0.1 PORT", v2, "192.0.2.7:1234"},
		{"socat, version 2", "socat -t 30 - TCP4:127.0.0.1:PORT", v2, "192.0.2.7:1234"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			server, client := pairing{"", fivetuple.TCP, side{"ft listen 127.0.0.1:PORT echo --proxy-from 127.0.0.0/8 -v", stays}, side{tt.client, 0}}.start(t)
			client.say([]byte(tt.header))
			said := randomBytes(1, 256<<10)
			client.say(said)
			client.hears(t, said)
			client.endInput()
			client.ends(t, 0)
			server.says(t, server.place.replace(tt.address))
			server.stops(t)
		})
	}
	t.Run("nc without a header", func(t *testing.T) {
		t.Parallel()
		server, client := pairing{"", fivetuple.TCP, side{"ft listen 127.0.0.1:PORT echo --proxy-from 127.0.0.0/8 -v", stays}, side{"nc.openbsd -N 127.0.0.1 PORT", 0}}.start(t)
		client.say([]byte("hello\n"))
		client.endInput()
		client.ends(t, 0)
		server.says(t, "PROXY")
		server.stops(t)
	})
	t.Run("curl", func(t *testing.T) {
		t.Parallel()
		place := newPlace(t)
		place.write(t, "f", contents(nil))
		server, client := pairing{
			"", fivetuple.TCP, side{"ft listen 127.0.0.1:PORT http DIR --proxy-from 127.0.0.0/8 -v", stays},
			side{"curl -sS --haproxy-protocol --local-port PORT2 http://127.0.0.1:PORT/f", 0},
		}.startAt(t, place)
		client.hears(t, contents(nil))
		client.ends(t, 0)
		server.says(t, place.replace("127.0.0.1:PORT2"))
		server.stops(t)
	})
}
