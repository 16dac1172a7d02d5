package secure

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// ErrShort says that what there is may be the beginning of a greeting.
var ErrShort = errors.New("the client's greeting is not whole yet")

// MaxHello is the longest greeting that ServerName reads, in bytes, with the
// headers of its records. Clients send 200 to 2000.
const MaxHello = 16 << 10

// ServerName returns the server name (SNI, RFC 6066 section 3) of the TLS client's
// greeting (RFC 8446 section 4.1.2) that b begins with, however much follows, in
// lower case and without a dot at its end; "" if it names none, or what is no
// name of a host, as an address. Where the greeting is encrypted (ECH), that is the
// name that stands outside. The error is ErrShort if more must come, another, as
// soon as it is clear, if it is none, or longer than MaxHello.
func ServerName(b []byte) (string, error) {
	message, err := firstMessage(b)
	if err != nil {
		return "", err
	}
	name, err := serverName(message)
	if err != nil {
		return "", fmt.Errorf("not TLS: a client hello %w", err)
	}
	return hostName(name), nil
}

// firstMessage returns the body of the client hello that records begin with, put
// together if it is in several.
func firstMessage(b []byte) ([]byte, error) {
	const messageHeader = 4 // type, length
	var message []byte
	whole := messageHeader
	for at := 0; ; {
		payload, part, err := handshakeData(b, at)
		if err != nil {
			return nil, err
		}
		switch {
		case at == 0:
			message = payload[:len(payload):len(payload)] // the only record as a rule: not copied
		default:
			message = append(message, payload...)
		}
		if len(message) > 0 && message[0] != clientHello {
			return nil, fmt.Errorf("not TLS: it begins with %s, not with a client hello", handshakeRecord(message[0]))
		}
		if len(message) >= messageHeader {
			whole = messageHeader + int(message[1])<<16 + int(binary.BigEndian.Uint16(message[2:]))
		}
		switch {
		case len(message) >= whole:
			return message[messageHeader:whole], nil
		case part && len(b) < MaxHello && recordHeader+whole <= MaxHello:
			return nil, ErrShort
		case part || recordHeader+whole > MaxHello:
			return nil, fmt.Errorf("not TLS: a client hello of more than %d bytes", MaxHello)
		}
		at += recordHeader + len(payload)
	}
}

// handshakeData returns what there is of the data of the record at b[at:], and
// whether that is a part of it.
func handshakeData(b []byte, at int) (payload []byte, part bool, err error) {
	const maxPlain = 1 << 14 // RFC 8446 section 5.1
	if len(b) > MaxHello {
		b = b[:MaxHello]
	}
	r := b[min(at, len(b)):]
	wrong := len(r) > 0 && r[0] != recordHandshake || len(r) > 1 && r[1] != 3
	length := 1
	if len(r) >= recordHeader {
		length = int(binary.BigEndian.Uint16(r[3:]))
	}
	switch {
	case wrong && at == 0:
		return nil, false, notTLS(b)
	case wrong:
		return nil, false, errors.New("not TLS: a client hello with something else between its records")
	case length == 0 || length > maxPlain:
		return nil, false, fmt.Errorf("not TLS: a record of %d bytes: want 1 to %d", length, maxPlain)
	case len(r) < recordHeader:
		return nil, true, nil
	}
	r = r[recordHeader:]
	return r[:min(length, len(r))], len(r) < length, nil
}

// notTLS says what begins otherwise looks like.
func notTLS(b []byte) error {
	if what, ok := LooksLikeTLS(b); ok {
		_, what, _ = strings.Cut(what, "sent ")
		return fmt.Errorf("not TLS: it begins with %s, not with a client hello", what)
	}
	return fmt.Errorf("not TLS: it begins with %s", firstLine(b))
}

// serverName returns the name as it was sent, "" if there is none.
func serverName(hello []byte) (string, error) {
	f := fields(hello)
	extensions := f.skip(2+32) && // version, random
		f.skipVector(1) && // session ID
		f.skipVector(2) && // ciphers
		f.skipVector(1) // compression
	switch {
	case !extensions:
		return "", errors.New("that is cut short before its extensions")
	case len(f) == 0: // SSL 3.0 and TLS 1.0 have none
		return "", nil
	}
	f, ok := f.lastVector(2)
	if !ok {
		return "", errors.New("whose extensions do not fill it")
	}
	name, found := "", false
	for len(f) > 0 {
		const serverNameType = 0
		kind, ok := f.number(2)
		data, ok2 := f.vector(2)
		switch {
		case !ok || !ok2:
			return "", errors.New("with an extension that is cut short")
		case kind != serverNameType:
			continue
		case found:
			return "", errors.New("that names the server twice")
		}
		found = true
		var err error
		if name, err = nameOf(data); err != nil {
			return "", err
		}
	}
	return name, nil
}

// nameOf reads the extension server_name: a list of names, one at most of each
// type, of which 0, of a host, is the only one there has ever been.
func nameOf(data fields) (name string, err error) {
	list, ok := data.lastVector(2)
	ok = ok && len(list) > 0
	for ok && len(list) > 0 {
		const host = 0
		kind, ok1 := list.number(1)
		value, ok2 := list.vector(2)
		if ok = ok1 && ok2 && len(value) > 0; ok && kind == host {
			if name != "" {
				return "", errors.New("that names the server twice")
			}
			name = string(value)
		}
	}
	if !ok {
		return "", errors.New("whose server name is cut short")
	}
	return name, nil
}

// hostName returns the name of a host in lower case, "" for what is none: RFC 1123
// section 2.1, with underscores, which are in use. Addresses "are not permitted".
func hostName(name string) string {
	const (
		digits            = "0123456789"
		letters           = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" + digits + "-_"
		maxName, maxLabel = 253, 63
	)
	name = strings.TrimSuffix(name, ".")
	if len(name) > maxName {
		return ""
	}
	last := ""
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > maxLabel || label[0] == '-' || strings.Trim(label, letters) != "" {
			return ""
		}
		last = label
	}
	if strings.Trim(last, digits) == "" { // an address, as no top-level domain is a number
		return ""
	}
	return strings.ToLower(name)
}

// fields reads what is left of a message from its beginning.
type fields []byte

func (f *fields) skip(n int) bool {
	if len(*f) < n {
		return false
	}
	*f = (*f)[n:]
	return true
}

// number reads an integer of so many bytes.
func (f *fields) number(size int) (n int, ok bool) {
	b := *f
	if !f.skip(size) {
		return 0, false
	}
	for _, c := range b[:size] {
		n = n<<8 | int(c)
	}
	return n, true
}

// vector reads what has its length, of so many bytes, before it.
func (f *fields) vector(size int) (fields, bool) {
	n, ok := f.number(size)
	b := *f
	if !ok || !f.skip(n) {
		return nil, false
	}
	return b[:n], true
}

// lastVector is a vector with nothing after it.
func (f *fields) lastVector(size int) (fields, bool) {
	v, ok := f.vector(size)
	return v, ok && len(*f) == 0
}

func (f *fields) skipVector(size int) bool {
	_, ok := f.vector(size)
	return ok
}
