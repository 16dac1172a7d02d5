package secure

import (
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"strings"
)

// The types of records, RFC 8446 section 5.1, and of the messages that begin a
// handshake, section 4.
const (
	recordChange    = 20
	recordAlert     = 21
	recordHandshake = 22
	recordData      = 23

	clientHello = 1
	serverHello = 2
)

// recordHeader is the length of a record's header: type, version, length.
const recordHeader = 5

// plainAlert is the length of an alert that is not encrypted: header, level, code.
const plainAlert = recordHeader + 2

// LooksLikeTLS says whether what a peer sent, from the first byte on, is a TLS
// record where plain text was expected, and which: "the peer speaks TLS here: it
// sent a client hello". It takes 6 bytes to tell; no line of text begins like them.
func LooksLikeTLS(b []byte) (string, bool) {
	const maxRecord = 1<<14 + 2048 // with encryption, RFC 5246 section 6.2.3
	if len(b) <= recordHeader || b[1] != 3 || b[2] > 4 {
		return "", false
	}
	length := int(binary.BigEndian.Uint16(b[3:]))
	what, ok := record(b[0], length, b[recordHeader:])
	if !ok || length == 0 || length > maxRecord {
		return "", false
	}
	return "the peer speaks TLS here: it sent " + what, true
}

func record(kind byte, length int, body []byte) (what string, ok bool) {
	switch kind {
	case recordChange:
		return "a change of cipher", length == 1 && body[0] == 1
	case recordAlert:
		return alertRecord(length, body)
	case recordHandshake:
		return handshakeRecord(body[0]), body[0] <= 24 // key_update, the last one
	case recordData:
		return "encrypted data", true
	}
	return "", false
}

func alertRecord(length int, body []byte) (what string, ok bool) {
	const plain, warning, fatal = 2, 1, 2
	switch {
	case length != plain:
		return "an encrypted alert", true
	case body[0] != warning && body[0] != fatal:
		return "", false
	case len(body) < plain:
		return "an alert", true
	}
	return fmt.Sprintf("the alert %q", alertName(body[1])), true
}

func handshakeRecord(message byte) string {
	switch message {
	case clientHello:
		return "a client hello"
	case serverHello:
		return "a server hello"
	}
	return "a handshake message"
}

func alertName(code uint8) string {
	return strings.TrimPrefix(tls.AlertError(code).Error(), "tls: ")
}
