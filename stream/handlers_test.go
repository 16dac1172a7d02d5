package stream

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestChatSpeaksToAllAndToOne(t *testing.T) {
	ln := serve(t, &Server{Handler: Chat()}, "0")
	line := func(c net.Conn) string {
		var b []byte
		for {
			ch := readFull(t, c, 1)
			if ch[0] == '\n' {
				return string(b)
			}
			b = append(b, ch[0])
		}
	}
	a := connect(t, ln)
	if got := line(a); !strings.HasPrefix(got, "* you are 1;") {
		t.Fatalf("got %q", got)
	}
	b := connect(t, ln)
	line(b)
	fmt.Fprint(a, "hel")
	fmt.Fprint(a, "lo\r\n/to 2 psst\n/to 9 x\n/who\n")
	for _, want := range []string{"[1] hello", "[1 to you] psst"} {
		if got := line(b); got != want {
			t.Errorf("b got %q, want %q", got, want)
		}
	}
	for _, want := range []string{"[1] hello", "* nobody here is 9", "* here: 1 2"} {
		if got := line(a); got != want {
			t.Errorf("a got %q, want %q", got, want)
		}
	}
	fmt.Fprint(a, "/quit\n")
	if _, err := a.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after /quit: %v", err)
	}
	fmt.Fprint(b, strings.Repeat("x", maxChatLine+1))
	if _, err := io.ReadAll(b); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("after too long a line: %v", err)
	}
}

func TestDaytimeAndChargen(t *testing.T) {
	got, err := io.ReadAll(connect(t, serve(t, &Server{Handler: Daytime()}, "0")))
	if _, perr := time.Parse("Monday, January 2, 2006 15:04:05-MST\r\n", string(got)); err != nil || perr != nil {
		t.Errorf("daytime: %q, %v, %v", got, err, perr)
	}
	c := connect(t, serve(t, &Server{Handler: Chargen()}, "0"))
	lines := readFull(t, c, 74*96)
	if got, want := string(lines[:74]), ` !"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\]^_`+"`abcdefg\r\n"; got != want {
		t.Errorf("first line %q, want %q", got, want)
	}
	if !bytes.Equal(lines[:74], lines[74*95:]) {
		t.Error("the pattern does not begin again after 95 lines")
	}
}

func TestTheLastLineOfAChatNeedsNoEnd(t *testing.T) {
	s := &Server{Handler: Chat()}
	ln := serve(t, s, "0")
	a := connect(t, ln)
	waitForConns(t, s, 1)
	b := connect(t, ln)
	waitForConns(t, s, 2)
	io.WriteString(b, "one\ntwo\x1b[31m")
	b.(*net.TCPConn).CloseWrite()
	io.ReadAll(b)
	a.(*net.TCPConn).CloseWrite()
	got, err := io.ReadAll(a)
	if err != nil || !strings.HasSuffix(string(got), "[2] one\n[2] two[31m\n") {
		t.Errorf("got %q, %v", got, err)
	}
}
