package dial

import (
	"bytes"
	"net/url"
	"strings"
	"testing"
)

// talk is a proxy that says what it says, whatever it is asked.
type talk struct{ *bytes.Reader }

func (talk) Write(b []byte) (int, error) { return len(b), nil }

func FuzzAnswerOfAnHTTPProxy(f *testing.F) {
	for _, s := range []string{"HTTP/1.1 200 OK\r\n\r\nhello", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 407 no\n\n", "HTTP/1.1 9\r\n\r\n", "HTTP/1.1\n\n", "\x05\x00"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		in := talk{bytes.NewReader(answer)}
		if err := askHTTP(in, target{"far.test", 7}, nil); err != nil {
			return
		}
		read := string(answer[:len(answer)-in.Len()])
		if !strings.HasSuffix(read, "\n\r\n") && !strings.HasSuffix(read, "\n\n") {
			t.Errorf("connected after %q", read)
		}
	})
}

func FuzzAnswerOfASOCKS5Proxy(f *testing.F) {
	for _, s := range []string{"\x05\x00\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50hello", "\x05\x02\x01\x00\x05\x00\x00\x03\x01a\x00\x50hello", "\x05\xff", "\x05\x00\x05\x05\x00\x01\x00\x00"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		in := talk{bytes.NewReader(answer)}
		if err := askSOCKS5(in, target{"far.test", 7}, url.UserPassword("me", "secret")); err != nil {
			return
		}
		// Two for the method, two if it is a password, and a reply of 7 to 262 bytes.
		if read := len(answer) - in.Len(); read < 9 || read > 266 {
			t.Errorf("connected after %d bytes of %q", read, answer)
		}
	})
}
