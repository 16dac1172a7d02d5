package cli

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple"
)

// question is a pair of which one side asks, and ends its input, and the other, which
// has no input, answers.
type question struct {
	name           string
	network        fivetuple.Network
	server, client side
	answer         func(question []byte) []byte
}

func same(question []byte) []byte { return question }

func nothing([]byte) []byte { return nil }

// summed is what sha256sum writes, when its input has ended.
func summed(question []byte) []byte { return fmt.Appendf(nil, "%x  -\n", sha256.Sum256(question)) }

func contents([]byte) []byte { return randomBytes(6, 1<<20) } // of DIR/f

var questions = []question{
	{"ft connect to ncat -e, tcp", fivetuple.TCP, side{"ncat -l 127.0.0.1 PORT -e /bin/cat", deaf | narrow}, side{"ft connect 127.0.0.1:PORT", 0}, same},
	{"ft connect to ncat -c, tcp", fivetuple.TCP, side{"ncat -l 127.0.0.1 PORT -c cat", deaf | narrow}, side{"ft connect 127.0.0.1:PORT", 0}, same},
	{"ft connect to ncat -e, unix stream", fivetuple.Unix, side{"ncat -l -U DIR/s -e /bin/cat", deaf | narrow}, side{"ft connect unix://DIR/s", 0}, same},
	{"ft connect to socat EXEC, tcp", fivetuple.TCP, side{"socat -t 30 TCP4-LISTEN:PORT,bind=127.0.0.1 EXEC:sha256sum", 0}, side{"ft connect 127.0.0.1:PORT", 0}, summed},
	{"ft connect to socat EXEC, unix stream", fivetuple.Unix, side{"socat -t 30 UNIX-LISTEN:DIR/s EXEC:sha256sum", 0}, side{"ft connect unix://DIR/s", 0}, summed},
	{"ft connect to socat EXEC, seqpacket", fivetuple.Seqpacket, side{"socat -t 30 -b 65507 UNIX-LISTEN:DIR/s,type=5 EXEC:sha256sum", 0}, side{"ft connect seqpacket://DIR/s", 0}, summed},
	{"ft connect to socat PIPE, tcp", fivetuple.TCP, side{"socat -t 30 TCP4-LISTEN:PORT,bind=127.0.0.1 PIPE", 0}, side{"ft connect 127.0.0.1:PORT", 0}, same},
	{"ncat -e to ft listen, tcp", fivetuple.TCP, side{"ft listen 127.0.0.1:PORT", 0}, side{"ncat 127.0.0.1 PORT -e /bin/cat", deaf | narrow}, same},
	{"socat EXEC to ft listen, tcp", fivetuple.TCP, side{"ft listen 127.0.0.1:PORT", 0}, side{"socat -t 30 TCP4:127.0.0.1:PORT EXEC:sha256sum", 0}, summed},
	{"socat EXEC to ft listen, seqpacket", fivetuple.Seqpacket, side{"ft listen seqpacket://DIR/s", 0}, side{"socat -t 30 -b 65507 UNIX-CONNECT:DIR/s,type=5 EXEC:sha256sum", 0}, summed},
}

// kindsAsked are kinds of ft listen that every client is to have its answer of.
var kindsAsked = []struct {
	kind   string
	answer func([]byte) []byte
}{
	{"echo", same},
	{"discard", nothing},
	{"file DIR/f", contents},
	{"exec -- sha256sum", summed},
}

var askers = []struct {
	name     string
	network  fivetuple.Network
	endpoint string // of ft listen
	command  string
}{
	{"nc", fivetuple.TCP, "127.0.0.1:PORT", "nc.openbsd -N 127.0.0.1 PORT"},
	{"ncat", fivetuple.TCP, "127.0.0.1:PORT", "ncat 127.0.0.1 PORT"},
	{"socat", fivetuple.TCP, "127.0.0.1:PORT", "socat -t 30 - TCP4:127.0.0.1:PORT"},
	{"nc", fivetuple.Unix, "unix://DIR/s", "nc.openbsd -N -U DIR/s"},
	{"ncat", fivetuple.Unix, "unix://DIR/s", "ncat -U DIR/s"},
	{"socat", fivetuple.Unix, "unix://DIR/s", "socat -t 30 - UNIX-CONNECT:DIR/s"},
	{"socat", fivetuple.Seqpacket, "seqpacket://DIR/s", "socat -t 30 -b 65507 - UNIX-CONNECT:DIR/s,type=5"},
}

func TestInteropOfCommandsAndKinds(t *testing.T) {
	for _, q := range questions {
		t.Run(q.name, q.run)
	}
	for _, k := range kindsAsked {
		for _, a := range askers {
			name := fmt.Sprintf("%s to ft listen %s, %s", a.name, strings.Fields(k.kind)[0], a.network)
			t.Run(name, question{name, a.network, side{"ft listen " + a.endpoint + " " + k.kind, stays}, side{a.command, 0}, k.answer}.run)
		}
	}
}

func (q question) run(t *testing.T) {
	t.Parallel()
	q.runAt(t, newPlace(t))
}

func (q question) runAt(t *testing.T, place place) {
	place.write(t, "f", contents(nil))
	server, client := pairing{q.name, q.network, q.server, q.client}.startAt(t, place)
	asker, answerer, quirks := client, server, q.server.quirks
	if strings.HasPrefix(q.server.command, "ft listen") && q.server.quirks&stays == 0 { // the kind stdio
		asker, answerer, quirks = server, client, q.client.quirks
	}
	asked := randomBytes(1, 2<<20)
	if quirks&narrow != 0 {
		asked = asked[:16<<10]
	}
	asker.say(asked)
	if quirks&deaf == 0 {
		asker.endInput()
	}
	asker.hears(t, q.answer(asked))
	asker.endInput()
	answerer.endInput()
	client.endsAs(t, q.client.quirks)
	server.endsAs(t, q.server.quirks)
}

func TestInteropOfChargen(t *testing.T) {
	for _, a := range askers {
		t.Run(fmt.Sprintf("%s to ft listen chargen, %s", a.name, a.network), func(t *testing.T) {
			t.Parallel()
			server, client := pairing{"", a.network, side{"ft listen " + a.endpoint + " chargen", stays}, side{a.command, stays}}.start(t)
			client.hears(t, chargen(1<<20))
			client.Process.Signal(syscall.SIGTERM)
			client.awaitEnd(t)
			more := len(client.out.bytes)
			if !bytes.Equal(client.out.bytes, chargen(more)) {
				t.Errorf("%s heard other characters than those of RFC 864", a.name)
			}
			server.stops(t)
		})
	}
}

// chargen are the first n characters of the pattern in RFC 864.
func chargen(n int) []byte {
	var b []byte
	for line := 0; len(b) < n; line++ {
		for column := range 72 {
			b = append(b, ' '+byte((line+column)%95))
		}
		b = append(b, "\r\n"...)
	}
	return b[:n]
}

func TestInteropOfDaytime(t *testing.T) {
	for _, a := range askers {
		t.Run(fmt.Sprintf("%s to ft listen daytime, %s", a.name, a.network), func(t *testing.T) {
			t.Parallel()
			server, client := pairing{"", a.network, side{"ft listen " + a.endpoint + " daytime", stays}, side{a.command, 0}}.start(t)
			line := client.hearsLine(t)
			at, err := time.ParseInLocation("Monday, January 2, 2006 15:04:05-MST", strings.TrimSuffix(line, "\r\n"), time.Local)
			if ago := time.Since(at); err != nil || ago < -time.Second || ago > time.Minute {
				t.Errorf("heard %q: %v, %v ago", line, err, ago)
			}
			client.endInput()
			client.ends(t, 0)
			server.stops(t)
		})
	}
}

// TestInteropOfDatagramEcho: every message comes back as it was.
func TestInteropOfDatagramEcho(t *testing.T) {
	const ftUDP, ftUnix = "ft connect udp://127.0.0.1:PORT --messages length -q 10ms", "ft connect unixgram://DIR/s --messages length -q 10ms"
	for _, p := range []pairing{
		{"ft connect to socat PIPE, udp", fivetuple.UDP, side{"socat UDP4-RECVFROM:PORT,fork PIPE", stays}, side{ftUDP, 0}},
		{"ft connect to ncat -e, udp", fivetuple.UDP, side{"ncat -u -l 127.0.0.1 PORT -e /bin/cat", stays}, side{ftUDP, 0}},
		{"ft connect to socat PIPE, unix datagrams", fivetuple.Unixgram, side{"socat UNIX-RECVFROM:DIR/s,fork PIPE", stays}, side{ftUnix, 0}},
		{"nc to ft listen echo, udp", fivetuple.UDP, side{"ft listen udp://127.0.0.1:PORT echo", stays}, side{"nc.openbsd -u 127.0.0.1 PORT", stays}},
		{"ncat to ft listen echo, udp", fivetuple.UDP, side{"ft listen udp://127.0.0.1:PORT echo", stays}, side{"ncat -u 127.0.0.1 PORT", stays}},
		{"socat to ft listen echo, udp", fivetuple.UDP, side{"ft listen udp://127.0.0.1:PORT echo", stays}, side{"socat -t .01 - UDP4:127.0.0.1:PORT", 0}},
		{"nc to ft listen echo, unix datagrams", fivetuple.Unixgram, side{"ft listen unixgram://DIR/s echo", stays}, side{"nc.openbsd -u -U DIR/s -s DIR/c", stays}},
		{"ncat to ft listen echo, unix datagrams", fivetuple.Unixgram, side{"ft listen unixgram://DIR/s echo", stays}, side{"ncat -u -U DIR/s -s DIR/c", stays}},
		{"socat to ft listen echo, unix datagrams", fivetuple.Unixgram, side{"ft listen unixgram://DIR/s echo", stays}, side{"socat -t .01 - UNIX-SENDTO:DIR/s,bind=DIR/c", 0}},
	} {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			server, client := p.start(t)
			for _, m := range datagrams {
				client.say(client.framed(m))
				client.hears(t, client.framed(m))
			}
			client.endInput()
			client.endsAs(t, p.client.quirks)
			server.endInput()
			server.endsAs(t, p.server.quirks)
		})
	}
}

// talkers are clients that talk with each other on one port.
var talkers = []string{"ft connect 127.0.0.1:PORT", "nc.openbsd -N 127.0.0.1 PORT", "socat -t 30 - TCP4:127.0.0.1:PORT", "ncat 127.0.0.1 PORT"}

func TestInteropOfBrokers(t *testing.T) {
	for _, tt := range []struct{ name, broker, connected string }{
		{"ft listen broker with ft, nc, socat, ncat", "ft listen 127.0.0.1:PORT broker -v", " accept #"},
		{"ncat --broker with ft, nc, socat, ncat", "ncat -l 127.0.0.1 PORT --broker -v", "Connection from 127.0.0.1:"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			place := newPlace(t)
			broker := place.start(t, tt.broker)
			broker.awaitListening(t, fivetuple.TCP)
			var clients []*program
			for i, command := range talkers {
				clients = append(clients, place.start(t, command))
				broker.saysTimes(t, tt.connected, i+1)
			}
			for i, speaker := range clients {
				said := randomBytes(byte(10+i), 256<<10)
				speaker.say(said)
				for _, other := range clients {
					if other != speaker {
						other.hears(t, said)
					}
				}
			}
			for _, client := range clients {
				client.endInput()
				client.ends(t, 0)
			}
			broker.stops(t)
		})
	}
}

func TestInteropOfChats(t *testing.T) {
	t.Run("ft listen chat with ft, nc, socat, ncat", func(t *testing.T) {
		t.Parallel()
		place := newPlace(t)
		chat := place.start(t, "ft listen 127.0.0.1:PORT chat")
		chat.awaitListening(t, fivetuple.TCP)
		var clients []*program
		for i, command := range talkers {
			client := place.start(t, command)
			if line, want := client.hearsLine(t), fmt.Sprintf("* you are %d;", i+1); !strings.HasPrefix(line, want) {
				t.Errorf("heard %q, want %q", line, want)
			}
			clients = append(clients, client)
		}
		for i, speaker := range clients {
			speaker.say([]byte("hello\n"))
			for _, client := range clients {
				client.hears(t, fmt.Appendf(nil, "[%d] hello\n", i+1))
			}
		}
		for _, client := range clients {
			client.endInput()
			client.ends(t, 0)
		}
		chat.stops(t)
	})
	t.Run("ncat --chat with ft, nc", func(t *testing.T) {
		t.Parallel()
		place := newPlace(t)
		chat := place.start(t, "ncat -l 127.0.0.1 PORT --chat -v")
		chat.awaitListening(t, fivetuple.TCP)
		ft := place.start(t, "ft connect 127.0.0.1:PORT")
		chat.saysTimes(t, "Connection from 127.0.0.1:", 1)
		nc := place.start(t, "nc.openbsd -N 127.0.0.1 PORT")
		chat.saysTimes(t, "Connection from 127.0.0.1:", 2)
		ft.say([]byte("hello\n"))
		for line := ""; !strings.HasSuffix(line, "> hello\n"); {
			line = nc.hearsLine(t)
		}
		nc.say([]byte("good day\n"))
		for line := ""; !strings.HasSuffix(line, "> good day\n"); {
			line = ft.hearsLine(t)
		}
		nc.endInput()
		nc.ends(t, 0)
		ft.endInput()
		ft.endsWhateverItHeard(t, 0)
		chat.stops(t)
	})
}
