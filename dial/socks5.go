package dial

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"syscall"
)

// Numbers of RFC 1928 and RFC 1929.
const (
	socksVersion     = 5
	socksConnect     = 1
	socksAnonymous   = 0
	socksPassword    = 2
	socksNoMethod    = 0xff
	socksIPv4        = 1
	socksName        = 3
	socksIPv6        = 4
	socksAuthVersion = 1
	socksMaxText     = 255 // of a name, a user and a password
)

// askSOCKS5 has a SOCKS5 proxy connect to a target.
func askSOCKS5(rw io.ReadWriter, t target, user *url.Userinfo) error {
	err := socksLogin(rw, user)
	if err == nil {
		err = socksRequest(rw, t)
	}
	return hungUp(err, "SOCKS5")
}

// socksLogin agrees on a way to say who asks, and says it (RFC 1928 section 3, RFC 1929).
func socksLogin(rw io.ReadWriter, user *url.Userinfo) error {
	hello := []byte{socksVersion, 1, socksAnonymous}
	if user != nil {
		hello = []byte{socksVersion, 2, socksAnonymous, socksPassword}
	}
	answer, err := socksExchange(rw, hello, 2)
	if err != nil {
		return err
	}
	switch method := answer[1]; {
	case answer[0] != socksVersion:
		return fmt.Errorf("it does not speak SOCKS5: its answer begins with %q", answer)
	case method == socksAnonymous:
		return nil
	case method == socksPassword && user != nil:
		return socksAuthenticate(rw, user)
	case method == socksNoMethod && user == nil:
		return fmt.Errorf("%w: the proxy wants a user and a password: socks5://user:password@host:port", os.ErrPermission)
	case method == socksNoMethod:
		return fmt.Errorf("%w: the proxy takes no user and password", os.ErrPermission)
	default:
		return fmt.Errorf("the proxy chose the authentication method %d, which was not offered", method)
	}
}

func socksAuthenticate(rw io.ReadWriter, user *url.Userinfo) error {
	name := user.Username()
	password, _ := user.Password()
	if len(name) > socksMaxText || len(password) > socksMaxText {
		return fmt.Errorf("a user and a password have at most %d bytes with SOCKS5", socksMaxText)
	}
	login := append([]byte{socksAuthVersion, byte(len(name))}, name...)
	login = append(append(login, byte(len(password))), password...)
	answer, err := socksExchange(rw, login, 2)
	if err != nil {
		return err
	}
	if answer[1] != 0 {
		return fmt.Errorf("%w: the proxy does not accept the user %q with this password", os.ErrPermission, name)
	}
	return nil
}

// socksRequest asks for the connection (RFC 1928 sections 4 to 6).
func socksRequest(rw io.ReadWriter, t target) error {
	request := []byte{socksVersion, socksConnect, 0}
	switch addr, ok := t.isAddr(); {
	case ok && addr.Unmap().Is4():
		request = append(append(request, socksIPv4), addr.Unmap().AsSlice()...)
	case ok:
		request = append(append(request, socksIPv6), addr.AsSlice()...)
	case len(t.host) > socksMaxText:
		return fmt.Errorf("a host name has at most %d bytes with SOCKS5", socksMaxText)
	default:
		request = append(append(request, socksName, byte(len(t.host))), t.host...)
	}
	answer, err := socksExchange(rw, binary.BigEndian.AppendUint16(request, t.port), 5)
	if err != nil {
		return err
	}
	if answer[0] != socksVersion {
		return fmt.Errorf("it does not speak SOCKS5: its answer begins with %q", answer)
	}
	if code := answer[1]; code != 0 {
		return socksError(code, t)
	}
	// What is left is the address that the proxy connects from: of no use here. The
	// first byte of it has been read.
	var rest int
	switch answer[3] {
	case socksIPv4:
		rest = 4 - 1
	case socksIPv6:
		rest = 16 - 1
	case socksName:
		rest = int(answer[4])
	default:
		return fmt.Errorf("the proxy answered with an address of the unknown type %d", answer[3])
	}
	_, err = io.CopyN(io.Discard, rw, int64(rest+2))
	return err
}

// socksExchange sends a message and reads the first n bytes of the answer.
func socksExchange(rw io.ReadWriter, message []byte, n int) ([]byte, error) {
	if _, err := rw.Write(message); err != nil {
		return nil, err
	}
	answer := make([]byte, n)
	_, err := io.ReadFull(rw, answer)
	return answer, err
}

// socksError is a reply of RFC 1928 section 6 as connect(2) would have put it.
func socksError(code byte, t target) error {
	var err error
	switch code {
	case 1:
		return fmt.Errorf("the proxy could not connect to %s and does not say why (general SOCKS server failure)", t)
	case 2:
		return fmt.Errorf("%w: the proxy's rules do not allow a connection to %s", os.ErrPermission, t)
	case 3:
		err = syscall.ENETUNREACH
	case 4:
		err = syscall.EHOSTUNREACH
	case 5:
		err = syscall.ECONNREFUSED
	case 6:
		return fmt.Errorf("%w: the proxy's packets to %s were on the way for too long (TTL expired)", syscall.EHOSTUNREACH, t)
	case 7:
		return fmt.Errorf("%w: the proxy does not make connections (command not supported)", errors.ErrUnsupported)
	case 8:
		return fmt.Errorf("%w: the proxy does not take this kind of address: %s", errors.ErrUnsupported, t)
	default:
		return fmt.Errorf("the proxy could not connect to %s: unknown reply %d", t, code)
	}
	return fmt.Errorf("it could not connect to %s: %w", t, err)
}
