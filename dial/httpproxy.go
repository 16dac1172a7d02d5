package dial

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strconv"
	"strings"
)

// maxHeader is how much of an answer's header is read, in bytes.
const maxHeader = 64 << 10

// askHTTP has an HTTP proxy connect to a target (RFC 9110 section 9.3.6).
func askHTTP(rw io.ReadWriter, t target, user *url.Userinfo) error {
	request := "CONNECT " + t.String() + " HTTP/1.1\r\nHost: " + t.String() + "\r\n"
	if user != nil {
		password, _ := user.Password()
		login := base64.StdEncoding.EncodeToString([]byte(user.Username() + ":" + password)) // RFC 7617
		request += "Proxy-Authorization: Basic " + login + "\r\n"
	}
	if _, err := io.WriteString(rw, request+"\r\n"); err != nil {
		return err
	}
	for {
		header, err := readHeader(rw)
		if err != nil {
			return hungUp(err, "HTTP")
		}
		status, code, err := parseStatus(header)
		if err != nil {
			return err
		}
		switch code / 100 {
		case 1: // an interim answer (RFC 9110 section 15.2)
			continue
		case 2: // and what a 2xx says of its content does not count here
			return nil
		}
		return connectError(status, code, t)
	}
}

// readHeader reads up to the empty line, byte by byte: what comes after it is the
// target's and is left in the socket.
func readHeader(r io.Reader) (string, error) {
	var header []byte
	var b [1]byte
	for len(header) < maxHeader {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return "", err
		}
		header = append(header, b[0])
		if !isPrefix(header, "HTTP/1.") {
			return "", fmt.Errorf("it does not speak HTTP: its answer begins with %q", header)
		}
		if text := string(header[max(0, len(header)-4):]); strings.HasSuffix(text, "\n\r\n") || strings.HasSuffix(text, "\n\n") {
			return string(header), nil
		}
	}
	return "", fmt.Errorf("the header of the proxy's answer is over %d bytes long", maxHeader)
}

// isPrefix says whether b and s begin alike, as far as both go.
func isPrefix(b []byte, s string) bool {
	n := min(len(b), len(s))
	return string(b[:n]) == s[:n]
}

// parseStatus takes the status line from a header, and the code from it.
func parseStatus(header string) (status string, code int, err error) {
	status, _, _ = strings.Cut(header, "\n")
	status = strings.TrimSuffix(status, "\r")
	if fields := strings.Fields(status); len(fields) >= 2 {
		code, _ = strconv.Atoi(fields[1])
	}
	if code < 100 || code > 599 {
		return "", 0, fmt.Errorf("the proxy answered with the status line %.200q", status)
	}
	return status, code, nil
}

// connectError is an answer that is no connection, with the status line as it came.
func connectError(status string, code int, t target) error {
	err := fmt.Errorf("it answered %.200q to CONNECT %s", status, t)
	switch code {
	case 407:
		return fmt.Errorf("%w: %w: give user and password: http://user:password@host:port", os.ErrPermission, err)
	case 401, 403:
		return fmt.Errorf("%w: %w: the proxy does not allow it", os.ErrPermission, err)
	case 400, 404, 405, 501:
		return fmt.Errorf("%w: %w: is it a proxy, and one that takes CONNECT?", errors.ErrUnsupported, err)
	case 502, 503, 504:
		return fmt.Errorf("%w: the proxy could not connect", err)
	}
	return err
}
