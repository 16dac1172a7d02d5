package cli

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple"
)

// The files of every place: an authority, and with their keys a server's certificate
// for localhost, 127.0.0.1 and ::1, and a client's.
var certificates = sync.OnceValues(func() (map[string][]byte, error) {
	files := map[string][]byte{}
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	authorityKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if err := issue(files, "ca.pem", authority, authority, authorityKey, authorityKey); err != nil {
		return nil, err
	}
	for i, name := range []string{"localhost", "client"} {
		c := &x509.Certificate{
			SerialNumber: big.NewInt(int64(i) + 2), Subject: pkix.Name{CommonName: name}, KeyUsage: x509.KeyUsageDigitalSignature,
			DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
			NotBefore:   authority.NotBefore, NotAfter: authority.NotAfter,
		}
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		if err := issue(files, name+".pem", c, authority, key, authorityKey); err != nil {
			return nil, err
		}
	}
	return files, nil
})

// issue adds the file of a certificate and its key.
func issue(files map[string][]byte, name string, c, by *x509.Certificate, key, byKey crypto.Signer) error {
	der, err := x509.CreateCertificate(rand.Reader, c, by, key.Public(), byKey)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	files[name] = append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})...)
	return nil
}

func newTLSPlace(t *testing.T) place {
	t.Helper()
	files, err := certificates()
	if err != nil {
		t.Fatal(err)
	}
	p := newPlace(t)
	for name, b := range files {
		p.write(t, name, b)
	}
	return p
}

// How each program speaks TLS and verifies its peer.
const (
	ftTLSListen  = "ft listen tls://127.0.0.1:PORT --tls-cert localhost.pem"
	ftTLSConnect = "ft connect tls://127.0.0.1:PORT --cafile ca.pem -v"
	sServer      = "openssl s_server -quiet -naccept 1 -accept 127.0.0.1:PORT -cert localhost.pem"
	sClient      = "openssl s_client -quiet -connect 127.0.0.1:PORT -CAfile ca.pem -verify_return_error -verify_ip 127.0.0.1"
	ncatServer   = "ncat -l 127.0.0.1 PORT --ssl --ssl-cert localhost.pem --ssl-key localhost.pem"
	ncatClient   = "ncat 127.0.0.1 PORT --ssl --ssl-verify --ssl-trustfile ca.pem --ssl-servername localhost"
	socatServer  = "socat -t 30 - OPENSSL-LISTEN:PORT,bind=127.0.0.1,cert=localhost.pem"
	socatClient  = "socat -t 30 - OPENSSL:127.0.0.1:PORT,cafile=ca.pem,commonname=localhost"
)

var tlsPairs = []struct {
	pairing
	said string // by ft connect
}{
	{pairing{server: side{sServer + " -tls1_3", deaf | mute}, client: side{ftTLSConnect, 0}, name: "ft connect to openssl s_server, TLS 1.3"}, "TLS 1.3"},
	{pairing{server: side{sServer + " -tls1_2", deaf | mute}, client: side{ftTLSConnect, 0}, name: "ft connect to openssl s_server, TLS 1.2"}, "TLS 1.2"},
	{pairing{server: side{ncatServer, deaf}, client: side{ftTLSConnect, 0}, name: "ft connect to ncat -l --ssl"}, "TLS 1.3"},
	{pairing{server: side{socatServer + ",verify=0,openssl-min-proto-version=TLS1.3", keepsOut}, client: side{ftTLSConnect, 0}, name: "ft connect to socat OPENSSL-LISTEN, TLS 1.3"}, "TLS 1.3"},
	{pairing{server: side{socatServer + ",verify=0,openssl-max-proto-version=TLS1.2", keepsOut}, client: side{ftTLSConnect, 0}, name: "ft connect to socat OPENSSL-LISTEN, TLS 1.2"}, "TLS 1.2"},
	{pairing{server: side{ftTLSListen, 0}, client: side{sClient + " -tls1_3", deaf | mute | keepsOut}, name: "openssl s_client to ft listen, TLS 1.3"}, ""},
	{pairing{server: side{ftTLSListen, 0}, client: side{sClient + " -tls1_2", deaf | mute | keepsOut}, name: "openssl s_client to ft listen, TLS 1.2"}, ""},
	{pairing{server: side{ftTLSListen, 0}, client: side{ncatClient, lags}, name: "ncat --ssl to ft listen"}, ""},
	{pairing{server: side{ftTLSListen, 0}, client: side{socatClient + ",openssl-min-proto-version=TLS1.3", keepsOut}, name: "socat OPENSSL to ft listen, TLS 1.3"}, ""},
	{pairing{server: side{ftTLSListen, 0}, client: side{socatClient + ",openssl-max-proto-version=TLS1.2", keepsOut}, name: "socat OPENSSL to ft listen, TLS 1.2"}, ""},

	{pairing{server: side{sServer + " -Verify 1 -CAfile ca.pem -verify_return_error", deaf | mute}, client: side{ftTLSConnect + " --cert client.pem", 0}, name: "ft connect to openssl s_server, client certificate"}, ""},
	{pairing{server: side{socatServer + ",verify=1,cafile=ca.pem,commonname=client", keepsOut}, client: side{ftTLSConnect + " --cert client.pem", 0}, name: "ft connect to socat OPENSSL-LISTEN, client certificate"}, ""},
	{pairing{server: side{ftTLSListen + " --tls-client-ca ca.pem", 0}, client: side{sClient + " -cert client.pem", deaf | mute | keepsOut}, name: "openssl s_client to ft listen, client certificate"}, ""},
	{pairing{server: side{ftTLSListen + " --tls-client-ca ca.pem", 0}, client: side{ncatClient + " --ssl-cert client.pem --ssl-key client.pem", lags}, name: "ncat --ssl to ft listen, client certificate"}, ""},
	{pairing{server: side{ftTLSListen + " --tls-client-ca ca.pem", 0}, client: side{socatClient + ",cert=client.pem", keepsOut}, name: "socat OPENSSL to ft listen, client certificate"}, ""},

	{pairing{server: side{sServer + " -alpn ft/1", deaf | mute}, client: side{ftTLSConnect + " --alpn h2,ft/1", 0}, name: "ft connect to openssl s_server, ALPN"}, "protocol ft/1 (ALPN)"},
	{pairing{server: side{ftTLSListen + " --alpn ft/1", 0}, client: side{ncatClient + " --ssl-alpn h2,ft/1", lags}, name: "ncat --ssl to ft listen, ALPN"}, ""},
}

func TestInteropOfTLS(t *testing.T) {
	for _, p := range tlsPairs {
		p.network = fivetuple.TCP
		if p.client.quirks&lags == 0 { // such a one waits for the last of what it is to hear
			t.Run(p.name, func(t *testing.T) {
				t.Parallel()
				server, client := p.startAt(t, newTLSPlace(t))
				exchange(t, fivetuple.TLS, client, server, p.client.quirks, p.server.quirks)
				client.says(t, p.said)
			})
		}
		t.Run(p.name+", the server ends first", func(t *testing.T) {
			t.Parallel()
			server, client := p.startAt(t, newTLSPlace(t))
			exchange(t, fivetuple.TLS, server, client, p.server.quirks, p.client.quirks)
			client.says(t, p.said)
		})
	}
}

// TestInteropOfTLSQuestions: the end of file goes through TLS alone, as the answers
// of sha256sum show.
func TestInteropOfTLSQuestions(t *testing.T) {
	for _, q := range []question{
		{"ft connect to socat OPENSSL-LISTEN EXEC", fivetuple.TCP, side{strings.Replace(socatServer, "- ", "", 1) + ",verify=0 EXEC:sha256sum", 0}, side{ftTLSConnect, 0}, summed},
		{"socat OPENSSL to ft listen exec", fivetuple.TCP, side{ftTLSListen + " exec -- sha256sum", stays}, side{socatClient, 0}, summed},
		{"ncat --ssl to ft listen exec", fivetuple.TCP, side{ftTLSListen + " exec -- sha256sum", stays}, side{ncatClient, 0}, summed},
	} {
		t.Run(q.name, func(t *testing.T) {
			t.Parallel()
			q.runAt(t, newTLSPlace(t))
		})
	}
}

func TestInteropOfTLSRefusals(t *testing.T) {
	for _, tt := range []struct {
		name, server, client string
		code                 int    // of the client
		said                 string // by ft
	}{
		{"ft connect to openssl s_server that nobody vouches for", sServer, "ft connect tls://127.0.0.1:PORT", exitFailed, "not trusted here"},
		{"ft connect to openssl s_server of another name", sServer, ftTLSConnect + " --sni elsewhere", exitFailed, "elsewhere"},
		{"ft connect without a certificate to openssl s_server", sServer + " -Verify 1 -CAfile ca.pem -verify_return_error -tls1_3", ftTLSConnect, exitFailed, "certificate required"},
		{"ft connect without a certificate to socat OPENSSL-LISTEN", socatServer + ",verify=1,cafile=ca.pem,openssl-max-proto-version=TLS1.2", ftTLSConnect, exitFailed, "certificate"},
		{"ft connect to openssl s_server of TLS 1.1", sServer + " -tls1_1 -cipher ALL:@SECLEVEL=0", ftTLSConnect, exitFailed, "protocol version"},
		{"ft connect to openssl s_server with another ALPN", sServer + " -alpn h2", ftTLSConnect + " --alpn ft/1", exitFailed, "application protocol"},
		{"openssl s_client without a certificate to ft listen", ftTLSListen + " echo --tls-client-ca ca.pem", sClient + " -tls1_2", 1, "certificate"},
		{"socat without a certificate to ft listen", ftTLSListen + " echo --tls-client-ca ca.pem", socatClient + ",openssl-max-proto-version=TLS1.2", 1, "certificate"},
		{"openssl s_client to ft listen --tls-self-signed", "ft listen tls://127.0.0.1:PORT echo --tls-self-signed -v", sClient, 1, "unknown"},
		{"ncat --ssl-verify to ft listen --tls-self-signed", "ft listen tls://127.0.0.1:PORT echo --tls-self-signed -v", ncatClient, 1, "unknown"},
		{"openssl s_client with another ALPN to ft listen", ftTLSListen + " echo --alpn ft/1", sClient + " -alpn h2", 1, "application protocol"},
		{"openssl s_client of TLS 1.1 to ft listen", ftTLSListen + " echo", sClient + " -tls1_1 -cipher ALL:@SECLEVEL=0", 1, "version"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			server, client := pairing{"", fivetuple.TCP, side{tt.server, 0}, side{tt.client, 0}}.startAt(t, newTLSPlace(t))
			ft := client
			if server.Args[0] == "ft" {
				ft = server
			}
			ft.says(t, tt.said)
			client.ends(t, tt.code)
			if ft == server {
				server.stops(t)
			}
		})
	}
}

func TestInteropOfALPN(t *testing.T) {
	t.Run("openssl s_client to ft listen", func(t *testing.T) {
		t.Parallel()
		server, client := pairing{
			"", fivetuple.TCP, side{ftTLSListen + " daytime --alpn ft/1,ft/2", stays},
			side{"openssl s_client -ign_eof -connect 127.0.0.1:PORT -CAfile ca.pem -alpn h2,ft/2", 0},
		}.startAt(t, newTLSPlace(t))
		for line := ""; line != "ALPN protocol: ft/2\n"; {
			line = client.hearsLine(t)
		}
		client.endInput()
		client.endsWhateverItHeard(t, 0)
		server.stops(t)
	})
}

func TestInteropOfHTTPS(t *testing.T) {
	for _, tt := range []struct{ name, server, curl string }{
		{"curl to ft listen http, tls", ftTLSListen + " http DIR", "https://127.0.0.1:PORT/f"},
		{"curl to ft listen http, tls with a client certificate", ftTLSListen + " http DIR --tls-client-ca ca.pem", "--cert client.pem https://127.0.0.1:PORT/f"},
		{"curl to ft listen http, tls behind the PROXY protocol", ftTLSListen + " http DIR --proxy-from 127.0.0.1", "--haproxy-protocol https://127.0.0.1:PORT/f"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			place := newTLSPlace(t)
			place.write(t, "f", contents(nil))
			server, client := pairing{"", fivetuple.TCP, side{tt.server, stays}, side{"curl -sS --cacert ca.pem " + tt.curl, 0}}.startAt(t, place)
			client.hears(t, contents(nil))
			client.ends(t, 0)
			server.stops(t)
		})
	}
	t.Run("ft connect to openssl s_server -WWW", func(t *testing.T) {
		t.Parallel()
		place := newTLSPlace(t)
		place.write(t, "f", contents(nil))
		server, client := pairing{
			"", fivetuple.TCP, side{"openssl s_server -WWW -naccept 1 -accept 127.0.0.1:PORT -cert localhost.pem", 0},
			side{"ft connect tls://localhost:PORT --crlf --cafile ca.pem", 0},
		}.startAt(t, place)
		client.say([]byte("GET /f HTTP/1.0\n\n"))
		for line := ""; line != "\r\n"; {
			line = client.hearsLine(t)
		}
		client.hears(t, contents(nil))
		client.endInput()
		client.ends(t, 0)
		server.endsWhateverItHeard(t, 0)
	})
}
