package cli

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fivetuple/fivetuple"
)

// TestInteropOfLineEnds: what the client says in lines the server gets with CR LF.
func TestInteropOfLineEnds(t *testing.T) {
	for _, tt := range []struct{ name, server, client string }{
		{"ft connect --crlf to nc -l", "nc.openbsd -N -l 127.0.0.1 PORT", "ft connect 127.0.0.1:PORT --crlf"},
		{"ft connect --crlf to ncat -l", "ncat -l 127.0.0.1 PORT", "ft connect 127.0.0.1:PORT --crlf"},
		{"ft connect --crlf to socat", "socat -t 30 - TCP4-LISTEN:PORT,bind=127.0.0.1", "ft connect 127.0.0.1:PORT --crlf"},
		{"nc -C to ft listen", "ft listen 127.0.0.1:PORT", "nc.openbsd -N -C 127.0.0.1 PORT"},
		{"ncat -C to ft listen", "ft listen 127.0.0.1:PORT", "ncat -C 127.0.0.1 PORT"},
		{"socat crnl to ft listen", "ft listen 127.0.0.1:PORT", "socat -t 30 - TCP4:127.0.0.1:PORT,crnl"},
		{"nc -C to ft listen --crlf", "ft listen --crlf 127.0.0.1:PORT", "nc.openbsd -N -C 127.0.0.1 PORT"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			server, client := pairing{tt.name, fivetuple.TCP, side{tt.server, 0}, side{tt.client, 0}}.start(t)
			client.say([]byte("one\ntwo\n\nthree"))
			server.hears(t, []byte("one\r\ntwo\r\n\r\nthree"))
			if strings.Contains(tt.server, "--crlf") {
				server.say([]byte("four\n"))
				client.hears(t, []byte("four\r\n"))
			}
			client.endInput()
			server.endInput()
			client.ends(t, 0)
			server.ends(t, 0)
		})
	}
}

func TestInteropOfTelnet(t *testing.T) {
	t.Run("ft connect --telnet to nc -l that negotiates", func(t *testing.T) {
		t.Parallel()
		server, client := pairing{"", fivetuple.TCP, side{"nc.openbsd -N -l 127.0.0.1 PORT", 0}, side{"ft connect 127.0.0.1:PORT --telnet", 0}}.start(t)
		// DO terminal type, DO suppress go-ahead, WILL echo, and of the terminal type what it is.
		server.say([]byte("\xff\xfd\x18\xff\xfd\x03\xff\xfb\x01\xff\xfa\x18\x01\xff\xf0login: \xff\xff"))
		server.hears(t, []byte("\xff\xfc\x18\xff\xfb\x03\xff\xfd\x01")) // WONT, WILL, DO
		client.hears(t, []byte("login: \xff"))
		client.say([]byte("me\xff\n"))
		server.hears(t, []byte("me\xff\xff\n"))
		client.endInput()
		server.endInput()
		client.ends(t, 0)
		server.ends(t, 0)
	})
	t.Run("curl telnet to ft listen --telnet", func(t *testing.T) {
		t.Parallel()
		server, client := pairing{"", fivetuple.TCP, side{"ft listen 127.0.0.1:PORT --telnet", 0}, side{"curl -sS -N telnet://127.0.0.1:PORT", 0}}.start(t)
		client.say([]byte("me\xff\n"))
		server.hears(t, []byte("me\xff\n"))
		server.say([]byte("you\xff\n"))
		client.hears(t, []byte("you\xff\n"))
		server.endInput()
		client.endInput()
		client.ends(t, 0)
		server.ends(t, 0)
	})
}

func TestInteropOfFiles(t *testing.T) {
	file := contents(nil)
	sum := sha256.Sum256(file)
	for _, tt := range []struct{ name, server string }{
		{"ft connect --send-file to nc -l", "nc.openbsd -N -l 127.0.0.1 PORT"},
		{"ft connect --send-file to ncat -l", "ncat -l 127.0.0.1 PORT"},
		{"ft connect --send-file to socat", "socat -u TCP4-LISTEN:PORT,bind=127.0.0.1 -"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			place := newPlace(t)
			place.write(t, "f", file)
			server, client := pairing{"", fivetuple.TCP, side{tt.server, 0}, side{"ft connect 127.0.0.1:PORT --send-file f", 0}}.startAt(t, place)
			server.hears(t, file)
			server.endInput()
			client.says(t, hex.EncodeToString(sum[:]))
			client.ends(t, 0)
			server.ends(t, 0)
		})
	}
	for _, tt := range []struct{ name, server string }{
		{"ft connect --recv-file from nc -l", "nc.openbsd -N -l 127.0.0.1 PORT"},
		{"ft connect --recv-file from ncat -l", "ncat -l 127.0.0.1 PORT"},
		{"ft connect --recv-file from socat", "socat -u - TCP4-LISTEN:PORT,bind=127.0.0.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			server, client := pairing{"", fivetuple.TCP, side{tt.server, 0}, side{"ft connect 127.0.0.1:PORT --recv-file g", 0}}.start(t)
			server.say(file)
			server.endInput()
			client.says(t, hex.EncodeToString(sum[:]))
			client.ends(t, 0)
			server.ends(t, 0)
			if got, err := os.ReadFile(filepath.Join(client.place.dir, "g")); !bytes.Equal(got, file) {
				t.Errorf("received %s, %v", summary(got), err)
			}
		})
	}
}

func TestInteropOfTestsOnly(t *testing.T) {
	for _, tt := range []struct {
		name, server, client string
		refused              int // exit code where nobody listens
	}{
		{"ft connect -z to nc -lk", "nc.openbsd -lk 127.0.0.1 PORT", "ft connect -z 127.0.0.1:PORT", exitNo},
		{"ft connect -z to ncat -lk", "ncat -lk 127.0.0.1 PORT", "ft connect -z 127.0.0.1:PORT", exitNo},
		{"nc -z to ft listen", "ft listen 127.0.0.1:PORT --keep", "nc.openbsd -z 127.0.0.1 PORT", 1},
		{"ncat -z to ft listen", "ft listen 127.0.0.1:PORT --keep", "ncat -z 127.0.0.1 PORT", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			place := newPlace(t)
			place.start(t, tt.client).ends(t, tt.refused)
			server := place.start(t, tt.server)
			server.awaitListening(t, fivetuple.TCP)
			place.start(t, tt.client).ends(t, 0)
			place.start(t, tt.client).ends(t, 0)
			server.stops(t)
		})
	}
}
