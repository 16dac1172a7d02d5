package secure

import (
	"errors"
	"net"
	"reflect"
)

// remoteAlert returns the alert with which a peer ended the connection, and the
// error that has it: package tls puts the number, in a type of its own, into an
// operation of this name.
func remoteAlert(err error) (code uint8, with *net.OpError) {
	if !errors.As(err, &with) || with.Op != "remote error" || with.Err == nil {
		return 0, nil
	}
	v := reflect.ValueOf(with.Err)
	if v.Kind() != reflect.Uint8 {
		return 0, nil
	}
	return uint8(v.Uint()), with
}

// unreadAlert returns the alert that a peer sent in plain text where package tls
// awaited an encrypted one and found a bad record: so OpenSSL's clients refuse a
// certificate of a TLS 1.3 server.
func (h *handshake) unreadAlert(err error) (code uint8, with *net.OpError) {
	if h.conn == nil || !errors.As(err, &with) || with.Op != "local error" {
		return 0, nil
	}
	last := h.conn.last
	if len(last) != plainAlert || last[0] != recordAlert || last[1] != 3 || last[3] != 0 || last[4] != 2 {
		return 0, nil
	}
	return last[6], with
}

// The alerts that mean the certificate shown to the peer, or that none was.
const (
	alertHandshakeFailure    = 40
	alertBadCertificate      = 42
	alertCertificateUnknown  = 46
	alertUnknownCA           = 48
	alertCertificateRequired = 116
)

// meaning says what the peer means with an alert, and what to do.
func (h *handshake) meaning(code uint8) (meaning, advice string) {
	doubts := code == alertBadCertificate || code == alertCertificateUnknown
	switch {
	case h.server && (doubts || code == alertUnknownCA):
		return "it refuses the certificate it was shown", "let it trust the authority of the certificate, or its fingerprint"
	case h.asked && (doubts || code == alertHandshakeFailure):
		code = alertCertificateRequired
	}
	m := alertMeanings[code]
	return m[0], m[1]
}

// alertMeanings are of RFC 8446 section 6.2 and RFC 5246 section 7.2.2.
var alertMeanings = map[uint8][2]string{
	10:                       {"it did not expect the message it got", ""},
	alertHandshakeFailure:    {"it found no version, cipher or key exchange to agree on, or misses a client certificate", "see what it takes: openssl s_client -connect HOST:PORT"},
	alertBadCertificate:      {"it refuses the certificate it was shown, or wants one", "give the certificate that it expects, with its intermediates"},
	43:                       {"it cannot use the kind of certificate it was shown", "give one with another kind of key"},
	44:                       {"the certificate it was shown is revoked", "give one that is valid"},
	45:                       {"the certificate it was shown is expired, by its clock", "renew the certificate; compare the clocks"},
	alertCertificateUnknown:  {"it does not accept the certificate it was shown", "let the peer trust the certificate"},
	47:                       {"it got a field out of range", ""},
	alertUnknownCA:           {"it does not know the authority of the certificate it was shown", "let the peer trust the authority; send the intermediates with the certificate"},
	49:                       {"it grants no access with the certificate it was shown", ""},
	50:                       {"it could not decode a message", ""},
	51:                       {"a signature or a key of the handshake does not match", ""},
	70:                       {"it speaks no version of TLS that was offered, 1.2 or 1.3", "let the peer speak TLS 1.2"},
	71:                       {"it wants stronger ciphers than were offered", ""},
	80:                       {"it has a fault of its own", "look into its log"},
	86:                       {"it takes the version for a forced downgrade", ""},
	90:                       {"somebody there stopped it", ""},
	109:                      {"an extension that it needs was not offered", ""},
	110:                      {"it got an extension that it did not offer", ""},
	112:                      {"it serves no host of the name that was asked for (SNI)", "give another server name"},
	115:                      {"it does not know the pre-shared key", ""},
	alertCertificateRequired: {"it wants a client certificate", "give a certificate and its key"},
	120:                      {"it speaks none of the protocols offered by ALPN", "offer others, or none"},
}
