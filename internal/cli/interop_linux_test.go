package cli

import (
	"encoding/binary"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/fivetuple/fivetuple"
)

// pairing is a server and a client, of which one is ft, joined by a socket.
type pairing struct {
	name           string
	network        fivetuple.Network // of the server's socket
	server, client side
}

// side is one program of a pair. In its command PORT, PORT2 and DIR are the pair's own.
type side struct {
	command string
	quirks  quirks
}

// quirks are what a program does otherwise than ft, which at the end of its input
// tells its peer, at the end of its peer tells its output, and ends with exit code 0
// after both.
type quirks uint8

const (
	deaf     quirks = 1 << iota // leaves when its peer has ended, whatever it has still to say
	mute                        // does not tell its peer that its input has ended
	stays                       // has no end: SIGTERM ends it
	once                        // takes one message and gives one
	narrow                      // stands still when much is under way in both directions
	lags                        // hears the last of what was said only when its peer says more, or ends
	keepsOut                    // its output does not end with its peer, but with itself
)

var streamPairs = []pairing{
	{"ft connect to nc -l, tcp", fivetuple.TCP, side{"nc.openbsd -N -l 127.0.0.1 PORT", deaf | keepsOut}, side{"ft connect 127.0.0.1:PORT", 0}},
	{"ft connect to ncat -l, tcp", fivetuple.TCP, side{"ncat -l 127.0.0.1 PORT", deaf}, side{"ft connect 127.0.0.1:PORT", 0}},
	{"ft connect to socat, tcp", fivetuple.TCP, side{"socat -t 30 - TCP4-LISTEN:PORT,bind=127.0.0.1", keepsOut}, side{"ft connect 127.0.0.1:PORT", 0}},
	{"nc to ft listen, tcp", fivetuple.TCP, side{"ft listen 127.0.0.1:PORT", 0}, side{"nc.openbsd -N 127.0.0.1 PORT", keepsOut}},
	{"nc without -N to ft listen, tcp", fivetuple.TCP, side{"ft listen 127.0.0.1:PORT", 0}, side{"nc.openbsd 127.0.0.1 PORT", mute | keepsOut}},
	{"ncat to ft listen, tcp", fivetuple.TCP, side{"ft listen 127.0.0.1:PORT", 0}, side{"ncat 127.0.0.1 PORT", 0}},
	{"socat to ft listen, tcp", fivetuple.TCP, side{"ft listen 127.0.0.1:PORT", 0}, side{"socat -t 30 - TCP4:127.0.0.1:PORT", keepsOut}},
	{"ft connect to nc -l, unix stream", fivetuple.Unix, side{"nc.openbsd -N -l -U DIR/s", deaf | keepsOut}, side{"ft connect unix://DIR/s", 0}},
	{"ft connect to ncat -l, unix stream", fivetuple.Unix, side{"ncat -l -U DIR/s", deaf}, side{"ft connect unix://DIR/s", 0}},
	{"ft connect to socat, unix stream", fivetuple.Unix, side{"socat -t 30 - UNIX-LISTEN:DIR/s", keepsOut}, side{"ft connect unix://DIR/s", 0}},
	{"nc to ft listen, unix stream", fivetuple.Unix, side{"ft listen unix://DIR/s", 0}, side{"nc.openbsd -N -U DIR/s", keepsOut}},
	{"ncat to ft listen, unix stream", fivetuple.Unix, side{"ft listen unix://DIR/s", 0}, side{"ncat -U DIR/s", 0}},
	{"socat to ft listen, unix stream", fivetuple.Unix, side{"ft listen unix://DIR/s", 0}, side{"socat -t 30 - UNIX-CONNECT:DIR/s", keepsOut}},
	{"ft connect to nc -l, abstract unix stream", fivetuple.Unix, side{"nc.openbsd -N -l -U @ft-PORT", deaf | keepsOut}, side{"ft connect unix://@ft-PORT", 0}},
	{"ft connect to socat, abstract unix stream", fivetuple.Unix, side{"socat -t 30 - ABSTRACT-LISTEN:ft-PORT", keepsOut}, side{"ft connect unix://@ft-PORT", 0}},
	{"nc to ft listen, abstract unix stream", fivetuple.Unix, side{"ft listen unix://@ft-PORT", 0}, side{"nc.openbsd -N -U @ft-PORT", keepsOut}},
	{"socat to ft listen, abstract unix stream", fivetuple.Unix, side{"ft listen unix://@ft-PORT", 0}, side{"socat -t 30 - ABSTRACT-CONNECT:ft-PORT", keepsOut}},
	{"ft connect to socat, seqpacket", fivetuple.Seqpacket, side{"socat -t 30 -b 65507 - UNIX-LISTEN:DIR/s,type=5", keepsOut}, side{"ft connect seqpacket://DIR/s", 0}},
	{"socat to ft listen, seqpacket", fivetuple.Seqpacket, side{"ft listen seqpacket://DIR/s", 0}, side{"socat -t 30 -b 65507 - UNIX-CONNECT:DIR/s,type=5", keepsOut}},
}

// overIPv6 makes of a command over IPv4 the same one over IPv6.
var overIPv6 = strings.NewReplacer("127.0.0.1:", "[::1]:", "=127.0.0.1", "=[::1]", "127.0.0.1", "::1", "TCP4", "TCP6", "UDP4", "UDP6")

func TestInteropOfStreams(t *testing.T) {
	for _, p := range streamPairs {
		exchanges(t, p)
		if p.network == fivetuple.TCP {
			p.name += " over IPv6"
			p.server.command, p.client.command = overIPv6.Replace(p.server.command), overIPv6.Replace(p.client.command)
			exchanges(t, p)
		}
	}
}

func exchanges(t *testing.T, p pairing) {
	t.Run(p.name, func(t *testing.T) {
		t.Parallel()
		server, client := p.start(t)
		exchange(t, p.network, client, server, p.client.quirks, p.server.quirks)
	})
	t.Run(p.name+", the server ends first", func(t *testing.T) {
		t.Parallel()
		server, client := p.start(t)
		exchange(t, p.network, server, client, p.server.quirks, p.client.quirks)
	})
}

// exchange has both sides say random bytes at once, and then the one that ends last
// say more after the other has ended. It checks what each hears and how it ends.
// That the end has arrived shows in the output of the other side, or for TCP in the
// kernel's table.
func exchange(t *testing.T, network fivetuple.Network, first, last *program, ofFirst, ofLast quirks) {
	early, other, late := randomBytes(1, 2<<20), randomBytes(2, 2<<20), randomBytes(3, 64<<10)
	first.say(early)
	last.say(other)
	first.hears(t, other)
	first.endInput()
	last.hears(t, early)
	if ofFirst&mute == 0 && ofLast&deaf == 0 {
		switch {
		case ofLast&keepsOut == 0:
			last.hearsEnd(t)
		case network == fivetuple.TCP:
			last.awaitSocket(t, network, fivetuple.StateCloseWait)
		}
		last.say(late)
		first.hears(t, late)
	}
	last.endInput()
	first.endsAs(t, ofFirst)
	last.endsAs(t, ofLast)
}

// datagrams are of as many bytes as all programs read at once.
var datagrams = [][]byte{[]byte("x"), []byte("two\nlines\n"), randomBytes(4, 1400), randomBytes(5, 8000), {0}}

var datagramPairs = []pairing{
	{"ft connect to nc -l, udp", fivetuple.UDP, side{"nc.openbsd -u -l 127.0.0.1 PORT", stays}, side{"ft connect udp://127.0.0.1:PORT --messages length -q 10ms", 0}},
	{"ft connect to ncat -l, udp", fivetuple.UDP, side{"ncat -u -l 127.0.0.1 PORT", stays}, side{"ft connect udp://127.0.0.1:PORT --messages length -q 10ms", 0}},
	{"ft connect to socat, udp", fivetuple.UDP, side{"socat -t .01 - UDP4-LISTEN:PORT,bind=127.0.0.1", 0}, side{"ft connect udp://127.0.0.1:PORT --messages length -q 10ms", 0}},
	{"nc to ft listen, udp", fivetuple.UDP, side{"ft listen udp://127.0.0.1:PORT --messages length", stays}, side{"nc.openbsd -u 127.0.0.1 PORT", stays}},
	{"ncat to ft listen, udp", fivetuple.UDP, side{"ft listen udp://127.0.0.1:PORT --messages length", stays}, side{"ncat -u 127.0.0.1 PORT", stays}},
	{"socat to ft listen, udp", fivetuple.UDP, side{"ft listen udp://127.0.0.1:PORT --messages length", stays}, side{"socat -t .01 - UDP4:127.0.0.1:PORT", 0}},
	{"ft connect to nc -l, unix datagrams", fivetuple.Unixgram, side{"nc.openbsd -u -l -U DIR/s", stays}, side{"ft connect unixgram://DIR/s --messages length -q 10ms", 0}},
	{"ft connect to ncat -l, unix datagrams", fivetuple.Unixgram, side{"ncat -u -l -U DIR/s", stays}, side{"ft connect unixgram://DIR/s --messages length -q 10ms", 0}},
	{"ft connect to socat, unix datagrams", fivetuple.Unixgram, side{"socat -t 30 - UNIX-RECVFROM:DIR/s", once}, side{"ft connect unixgram://DIR/s --messages length -q 10ms", 0}},
	{"ft connect to socat, abstract unix datagrams", fivetuple.Unixgram, side{"socat -t 30 - ABSTRACT-RECVFROM:ft-PORT", once}, side{"ft connect unixgram://@ft-PORT --messages length -q 10ms", 0}},
	{"nc to ft listen, unix datagrams", fivetuple.Unixgram, side{"ft listen unixgram://DIR/s --messages length", stays}, side{"nc.openbsd -u -U DIR/s -s DIR/c", stays}},
	{"ncat to ft listen, unix datagrams", fivetuple.Unixgram, side{"ft listen unixgram://DIR/s --messages length", stays}, side{"ncat -u -U DIR/s -s DIR/c", stays}},
	{"socat to ft listen, unix datagrams", fivetuple.Unixgram, side{"ft listen unixgram://DIR/s --messages length", stays}, side{"socat -t .01 - UNIX-SENDTO:DIR/s,bind=DIR/c", 0}},
	{"socat to ft listen, abstract unix datagrams", fivetuple.Unixgram, side{"ft listen unixgram://@ft-PORT --messages length", stays}, side{"socat -t .01 - ABSTRACT-SENDTO:ft-PORT,bind=ft-PORT-c", 0}},
	{"ft connect to socat, seqpacket messages", fivetuple.Seqpacket, side{"socat -t 30 - UNIX-LISTEN:DIR/s,type=5", 0}, side{"ft connect seqpacket://DIR/s --messages length", 0}},
	{"socat to ft listen, seqpacket messages", fivetuple.Seqpacket, side{"ft listen seqpacket://DIR/s --messages length", 0}, side{"socat -t 30 - UNIX-CONNECT:DIR/s,type=5", 0}},
}

func TestInteropOfDatagrams(t *testing.T) {
	for _, p := range datagramPairs {
		exchangeMessages(t, p)
		if p.network == fivetuple.UDP {
			p.name += " over IPv6"
			p.server.command, p.client.command = overIPv6.Replace(p.server.command), overIPv6.Replace(p.client.command)
			exchangeMessages(t, p)
		}
	}
}

// exchangeMessages has both sides say messages in turn, each of which the other
// hears as one. Here ft has a length before each.
func exchangeMessages(t *testing.T, p pairing) {
	t.Run(p.name, func(t *testing.T) {
		t.Parallel()
		server, client := p.start(t)
		for i, m := range datagrams {
			if i > 0 && p.server.quirks&once != 0 {
				break
			}
			client.say(client.framed(m))
			server.hears(t, server.framed(m))
			server.say(server.framed(m))
			client.hears(t, client.framed(m))
		}
		client.endInput()
		server.endInput()
		client.endsAs(t, p.client.quirks)
		server.endsAs(t, p.server.quirks)
	})
}

// framed is a message as the program has it in its input and output.
func (p *program) framed(b []byte) []byte {
	if p.Args[0] != "ft" {
		return b
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
}

// start starts the server, and when that listens the client.
func (p pairing) start(t *testing.T) (server, client *program) {
	t.Helper()
	return p.startAt(t, newPlace(t))
}

func (p pairing) startAt(t *testing.T, place place) (server, client *program) {
	t.Helper()
	server = place.start(t, p.server.command)
	server.awaitListening(t, p.network)
	return server, place.start(t, p.client.command)
}

// randomBytes are other ones for each seed.
func randomBytes(seed byte, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// endsAs waits until it ends as its quirks say.
func (p *program) endsAs(t *testing.T, q quirks) {
	t.Helper()
	if q&stays != 0 {
		p.stops(t)
		return
	}
	p.ends(t, 0)
}

// TestInteropOfJoinedEndpoints: two peers that ft connect joins have the connection to
// each other.
func TestInteropOfJoinedEndpoints(t *testing.T) {
	for _, tt := range []struct {
		name      string
		unix, tcp side
	}{
		{
			"ft connect joins socat, unix stream, to nc -l, tcp",
			side{"socat -t 30 - UNIX-LISTEN:DIR/s", keepsOut}, side{"nc.openbsd -N -l 127.0.0.1 PORT", deaf | keepsOut},
		},
		{
			"ft connect joins ncat -l, unix stream, to socat, tcp",
			side{"ncat -l -U DIR/s", deaf}, side{"socat -t 30 - TCP4-LISTEN:PORT,bind=127.0.0.1", keepsOut},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			place := newPlace(t)
			first, last := place.start(t, tt.unix.command), place.start(t, tt.tcp.command)
			first.awaitListening(t, fivetuple.Unix)
			last.awaitListening(t, fivetuple.TCP)
			ft := place.start(t, "ft connect unix://DIR/s 127.0.0.1:PORT")
			exchange(t, fivetuple.TCP, first, last, tt.unix.quirks, tt.tcp.quirks)
			ft.ends(t, 0)
		})
	}
}
