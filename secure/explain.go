package secure

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
)

// HandshakeError says why there is no TLS connection.
type HandshakeError struct {
	Op     string   // what was being done, as the error around says: "connect tls://host:443"; may be empty
	Reason string   // one line
	Advice string   // what to do next, one line; empty where nothing is known to help
	Chain  []string // the certificates that the peer sent, one a line, with what is wrong with each, if that was the reason
	Err    error    // of package tls, or of the connection
}

// Error is one line of reason and advice. With a chain it is the reason, a line
// for each certificate, and the advice.
func (e *HandshakeError) Error() string {
	s := "TLS: " + e.Reason
	if e.Op != "" {
		s = e.Op + ": " + e.Reason
	}
	before := ": "
	if len(e.Chain) > 0 {
		s += "; the peer sent\n  " + strings.Join(e.Chain, "\n  ")
		before = "\nadvice: "
	}
	if e.Advice != "" {
		s += before + e.Advice
	}
	return s
}

// Unwrap implements the interface of package errors.
func (e *HandshakeError) Unwrap() error { return e.Err }

// Explain makes a [HandshakeError] of an error that comes of a client's handshake,
// or of a Read after it: servers of TLS 1.3 refuse a client certificate only then.
// Errors that are not of TLS come back as they are. [Connect] and [Accept] explain
// by themselves, and know more: what the peer said before it closed or fell silent.
func Explain(err error) error { return new(handshake).explain(err) }

func (h *handshake) explain(err error) error {
	var done *HandshakeError
	if err == nil || errors.As(err, &done) {
		return err
	}
	for _, try := range []func(error) *HandshakeError{h.chain, h.pinned, h.notTLS, h.echoed, h.alert, h.ended, h.silent, h.local} {
		if e := try(err); e != nil {
			e.Op, e.Err = around(err, e.Err), err
			return e
		}
	}
	return err
}

// around is what an error says before the one that it wraps.
func around(err, inner error) string {
	before, ok := strings.CutSuffix(err.Error(), inner.Error())
	if !ok {
		return ""
	}
	return strings.TrimSuffix(before, ": ")
}

// pinned explains a certificate that is not the one of the pin.
func (h *handshake) pinned(err error) *HandshakeError {
	var e *pinError
	if !errors.As(err, &e) {
		return nil
	}
	got := Fingerprint(e.chain[0])
	return &HandshakeError{
		Err:    e,
		Reason: fmt.Sprintf("the certificate is not the pinned one: it is %s, the pin is %s", got, e.pinned),
		Advice: "if the peer has a new certificate, compare it with what its owner says and pin that one",
		Chain:  describeChain(e.chain, map[int]string{0: "not the pinned one"}),
	}
}

// notTLS explains a first record that is none.
func (h *handshake) notTLS(err error) *HandshakeError {
	var e tls.RecordHeaderError
	if !errors.As(err, &e) {
		return nil
	}
	heard := e.RecordHeader[:]
	if h.conn != nil && len(h.conn.heard) > 0 {
		heard = h.conn.heard
	}
	if _, ok := LooksLikeTLS(heard); ok {
		return &HandshakeError{Err: e, Reason: "the peer sent a record that has no place in a handshake: " + strings.TrimPrefix(e.Error(), "tls: ")}
	}
	advice := "connect to it without TLS"
	if h.server {
		advice = "let it connect with TLS"
	}
	return &HandshakeError{Err: e, Reason: "the peer does not speak TLS: it said " + firstLine(heard), Advice: advice}
}

// echoed explains a peer that sends back the client's own hello.
func (h *handshake) echoed(err error) *HandshakeError {
	if h.server || h.conn == nil || len(h.conn.heard) <= recordHeader || h.conn.heard[0] != recordHandshake || h.conn.heard[recordHeader] != clientHello {
		return nil
	}
	return &HandshakeError{Err: err, Reason: "the peer does not speak TLS: it sends back what it gets", Advice: "connect to it without TLS"}
}

// firstLine quotes the beginning of what a peer said.
func firstLine(heard []byte) string {
	const most = 80 // bytes
	line := string(heard[:min(len(heard), most)])
	if i := strings.IndexAny(line, "\r\n"); i > 0 {
		line = line[:i]
	}
	return `"` + shown(line) + `"`
}

// alert explains the refusal of a peer.
func (h *handshake) alert(err error) *HandshakeError {
	code, op := remoteAlert(err)
	if op == nil {
		code, op = h.unreadAlert(err)
	}
	if op == nil {
		return nil
	}
	meaning, advice := h.meaning(code)
	reason := fmt.Sprintf("the peer refused with the alert %q (%d)", alertName(code), code)
	if meaning != "" {
		reason += ": " + meaning
	}
	return &HandshakeError{Err: op, Reason: reason, Advice: advice}
}

// ended explains a connection that broke off.
func (h *handshake) ended(err error) *HandshakeError {
	if h.conn == nil || !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		return nil
	}
	const what = "the peer closed the connection during the handshake"
	switch {
	case h.asked:
		return &HandshakeError{Err: err, Reason: what + ", after it asked for a client certificate", Advice: "give a certificate and its key"}
	case len(h.conn.heard) > 0:
		return &HandshakeError{Err: err, Reason: what}
	case h.server:
		return &HandshakeError{Err: err, Reason: what + ", and sent nothing"}
	}
	return &HandshakeError{Err: err, Reason: what, Advice: "it may not speak TLS here, or want another server name"}
}

// silent explains a time that has run out.
func (h *handshake) silent(err error) *HandshakeError {
	if h.conn == nil || !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	switch {
	case len(h.conn.heard) > 0:
		return &HandshakeError{Err: err, Reason: "the handshake took too long"}
	case h.server:
		return &HandshakeError{Err: err, Reason: "the peer sent nothing in time"}
	}
	return &HandshakeError{Err: err, Reason: "the peer did not answer in time", Advice: "it may not speak TLS here"}
}

// local is what package tls has found by itself, where it has but a text.
func (h *handshake) local(err error) *HandshakeError {
	for ; err != nil; err = errors.Unwrap(err) {
		text, ok := strings.CutPrefix(strings.TrimPrefix(err.Error(), "local error: "), "tls: ")
		if !ok {
			continue
		}
		e := &HandshakeError{Err: err, Reason: shown(nameVersions(text))}
		if strings.Contains(text, "version") {
			e.Advice = "let the peer speak TLS 1.2 or 1.3"
		}
		return e
	}
	return nil
}

var version = regexp.MustCompile(`\b30[0-4]\b`)

// nameVersions writes "TLS 1.1" for 302, as package tls writes versions.
func nameVersions(text string) string {
	if !strings.Contains(text, "version") {
		return text
	}
	return version.ReplaceAllStringFunc(text, func(hex string) string {
		n, err := strconv.ParseUint(hex, 16, 16)
		if err != nil {
			return hex
		}
		return tls.VersionName(uint16(n))
	})
}
