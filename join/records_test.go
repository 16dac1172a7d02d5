package join

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
)

// split returns the records that a source makes of the text, read whole and byte by
// byte, which must be the same.
func split(t *testing.T, text string, make func(read func([]byte) (int, error)) source) (list []string, err error) {
	t.Helper()
	var lists [2][]string
	var errs [2]error
	for i, r := range []io.Reader{strings.NewReader(text), iotest.OneByteReader(strings.NewReader(text))} {
		s := make(r.Read)
		for {
			b, err := s.next()
			if err != nil {
				errs[i] = err
				break
			}
			lists[i] = append(lists[i], string(b))
		}
	}
	if !slices.Equal(lists[0], lists[1]) || errs[0].Error() != errs[1].Error() {
		t.Errorf("%q: read whole %q, %v; byte by byte %q, %v", text, lists[0], errs[0], lists[1], errs[1])
	}
	return lists[0], errs[0]
}

func TestLinesAreRecords(t *testing.T) {
	const limit = 5
	tests := []struct {
		in      string
		records []string
		want    error
	}{
		{"", nil, io.EOF},
		{"\n", []string{""}, io.EOF},
		{"a\nbc\n", []string{"a", "bc"}, io.EOF},
		{"a\n\nb", []string{"a", "", "b"}, io.EOF},
		{"a\r\nb", []string{"a\r", "b"}, io.EOF},
		{"12345\n12345", []string{"12345", "12345"}, io.EOF},
		{"1\n123456\n2\n", []string{"1"}, ErrTooLong},
		{"123456", nil, ErrTooLong},
		{strings.Repeat("1234\n", 20), slices.Repeat([]string{"1234"}, 20), io.EOF},
	}
	for _, test := range tests {
		got, err := split(t, test.in, func(read func([]byte) (int, error)) source { return &lines{read: read, limit: limit} })
		if !slices.Equal(got, test.records) || !errors.Is(err, test.want) {
			t.Errorf("%q: got %q, %v, want %q, %v", test.in, got, err, test.records, test.want)
		}
	}
}

func TestLengthsAreBeforeRecords(t *testing.T) {
	const limit = 5
	tests := []struct {
		in      string
		records []string
		want    error
	}{
		{"", nil, io.EOF},
		{"\x00\x00\x00\x00", []string{""}, io.EOF},
		{"\x00\x00\x00\x01a\x00\x00\x00\x05a\nb\nc", []string{"a", "a\nb\nc"}, io.EOF},
		{"\x00\x00\x00\x06abcdef", nil, ErrTooLong},
		{"\xff\xff\xff\xffa", nil, ErrTooLong},
		{"\x00\x00\x00\x01a\x00", []string{"a"}, io.ErrUnexpectedEOF},
		{"\x00\x00\x00\x05abcd", nil, io.ErrUnexpectedEOF},
		{"\x00\x00\x00\x05", nil, io.ErrUnexpectedEOF},
	}
	for _, test := range tests {
		got, err := split(t, test.in, func(read func([]byte) (int, error)) source { return &lengths{read: read, limit: limit} })
		if !slices.Equal(got, test.records) || !errors.Is(err, test.want) {
			t.Errorf("%q: got %q, %v, want %q, %v", test.in, got, err, test.records, test.want)
		}
	}
}

func TestALoneLFBecomesCRLF(t *testing.T) {
	for in, want := range map[string]string{
		"":             "",
		"a\nb":         "a\r\nb",
		"a\r\nb\n":     "a\r\nb\r\n",
		"\n\n":         "\r\n\r\n",
		"\r\n\n":       "\r\n\r\n",
		"\r\r\n":       "\r\r\n",
		"a\rb\n\r":     "a\rb\r\n\r",
		"é\nno end\r ": "é\r\nno end\r ",
	} {
		for i := range len(in) + 1 {
			var c crlf
			first, _ := c.apply([]byte(in[:i]))
			got := string(first)
			second, _ := c.apply([]byte(in[i:]))
			if got += string(second); got != want {
				t.Errorf("%q, cut at %d: got %q, want %q", in, i, got, want)
			}
		}
	}
}

func TestRecordsKeepTheirBounds(t *testing.T) {
	recordPairs := map[string]pair{"udp": udpPair, "unixgram": unixgramPair, "seqpacket": seqpacketPair}
	tests := map[string]struct {
		messages  Framing
		in        string // of the byte end
		records   []string
		answers   []string
		out       string
		multiline uint64
	}{
		"lines":     {Lines, "one\ntwo three\nfour", []string{"one", "two three", "four"}, []string{"a", "b\nc"}, "a\nb\nc\n", 1},
		"lengths":   {Lengths, "\x00\x00\x00\x03one\x00\x00\x00\x01\n", []string{"one", "\n"}, []string{"a\n", "bc"}, "\x00\x00\x00\x02a\n\x00\x00\x00\x02bc", 0},
		"datagrams": {Datagrams, "one\ntwo", []string{"one\ntwo"}, []string{"a\n", "b"}, "a\nb", 0},
		"bytes":     {Bytes, "one\ntwo", []string{"one\ntwo"}, []string{"a\n", "b"}, "a\nb", 0},
	}
	for kindName, kind := range recordPairs {
		for name, test := range tests {
			t.Run(kindName+" "+name, func(t *testing.T) {
				a, peerA := tcpPair(t)
				b, peerB := kind(t)
				done := run(t.Context(), a, b, Options{RecordsB: true, Messages: test.messages, QuitAfter: 100 * 1e6})
				write(t, peerA, test.in)
				closeWrite(t, peerA)
				for _, want := range test.records {
					wantRecord(t, peerB, want)
				}
				for _, answer := range test.answers {
					write(t, peerB, answer)
				}
				wantAll(t, peerA, test.out)
				o := wait(t, done)
				if o.err != nil || o.result.AToB.Messages != uint64(len(test.records)) || o.result.BToA.Messages != uint64(len(test.answers)) ||
					o.result.BToA.Multiline != test.multiline {
					t.Errorf("got %v, %+v", o.err, o.result)
				}
			})
		}
		t.Run(kindName+" to udp", func(t *testing.T) {
			a, peerA := kind(t)
			b, peerB := udpPair(t)
			ctx, cancel := context.WithCancel(t.Context())
			done := run(ctx, a, b, Options{RecordsA: true, RecordsB: true})
			big := string(random(1, 60_000))
			for _, text := range []string{"one", "two\n", big} {
				write(t, peerA, text)
				wantRecord(t, peerB, text)
				write(t, peerB, text)
				wantRecord(t, peerA, text)
			}
			cancel()
			o := wait(t, done)
			if o.result.AToB.Messages != 3 || o.result.BToA.Messages != 3 {
				t.Errorf("got %v, %+v", o.err, o.result)
			}
		})
	}
}

func wantRecord(t testing.TB, c net.Conn, want string) {
	t.Helper()
	buf := make([]byte, 70_000)
	n, err := c.Read(buf)
	if err != nil || string(buf[:n]) != want {
		t.Fatalf("got a record of %d bytes, %.20q, %v, want %d, %.20q", n, buf[:n], err, len(want), want)
	}
}

func TestEmptyDatagramsAreRecords(t *testing.T) {
	a, peerA := tcpPair(t)
	b, peerB := udpPair(t)
	done := run(t.Context(), a, b, Options{RecordsB: true, Messages: Lines, QuitAfter: 100 * 1e6})
	write(t, peerA, "\nx\n\n")
	for _, want := range []string{"", "x", ""} {
		wantRecord(t, peerB, want)
	}
	for _, answer := range []string{"", "y", ""} {
		if _, err := peerB.Write([]byte(answer)); err != nil {
			t.Fatal(err)
		}
	}
	closeWrite(t, peerA)
	wantAll(t, peerA, "\ny\n\n")
	if o := wait(t, done); o.err != nil || o.result.AToB.Messages != 3 || o.result.BToA.Messages != 3 {
		t.Errorf("got %v, %+v", o.err, o.result)
	}
}

func TestARecordThatIsTooLongIsAnErrorAndNotCut(t *testing.T) {
	tests := map[string]struct {
		kind    pair
		options Options
		fromA   string
		fromB   string
		words   string
	}{
		"line":              {udpPair, Options{Messages: Lines}, strings.Repeat("x", MaxDatagram+1), "", "more than 65507 bytes"},
		"length":            {udpPair, Options{Messages: Lengths}, "\x00\x00\xff\xe4" + strings.Repeat("x", MaxDatagram+1), "", "65508 bytes"},
		"received":          {unixgramPair, Options{MaxMessage: 10}, "", "elevenbytes", "more than 10 bytes"},
		"for UDP":           {udpPair, Options{Messages: Lines, MaxMessage: 70_000}, strings.Repeat("x", 66_000) + "\n", "", "66000 bytes"},
		"for the seqpacket": {seqpacketPair, Options{Messages: Lines, MaxMessage: 100 << 20}, strings.Repeat("x", 32<<20) + "\n", "", "33554432 bytes"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			a, peerA := tcpPair(t)
			b, peerB := test.kind(t)
			test.options.RecordsB = true
			done := run(t.Context(), a, b, test.options)
			if test.fromB != "" {
				write(t, peerB, test.fromB)
			}
			io.WriteString(peerA, test.fromA) // may end early
			o := wait(t, done)
			wantError(t, o.err, ErrTooLong, test.words)
			wantBytes(t, o.result, 0, 0)
		})
	}
}

func TestTheLongestDatagramPasses(t *testing.T) {
	a, peerA := tcpPair(t)
	b, peerB := udpPair(t)
	longest := strings.Repeat("x", MaxDatagram)
	done := run(t.Context(), a, b, Options{RecordsB: true, Messages: Lines, QuitAfter: 100 * 1e6})
	write(t, peerA, longest)
	closeWrite(t, peerA)
	wantRecord(t, peerB, longest)
	write(t, peerB, longest)
	wantAll(t, peerA, longest+"\n")
	if o := wait(t, done); o.err != nil {
		t.Error(o.err)
	}
}

func TestACutLengthIsAnError(t *testing.T) {
	a, peerA := tcpPair(t)
	b, _ := udpPair(t)
	done := run(t.Context(), a, b, Options{RecordsB: true, Messages: Lengths})
	write(t, peerA, "\x00\x00\x00\x05abc")
	closeWrite(t, peerA)
	wantError(t, wait(t, done).err, io.ErrUnexpectedEOF, "after 7 bytes")
}

func TestCRLFInDatagramsStaysWithinTheLongest(t *testing.T) {
	a, peerA := tcpPair(t)
	b, peerB := udpPair(t)
	done := run(t.Context(), a, b, Options{RecordsB: true, CRLF: true, MaxMessage: 100, QuitAfter: -1})
	write(t, peerA, strings.Repeat("\n", 50))
	wantRecord(t, peerB, strings.Repeat("\r\n", 50))
	closeWrite(t, peerA)
	if o := wait(t, done); o.err != nil && !errors.Is(o.err, syscall.ECONNREFUSED) {
		t.Error(o.err)
	}
}

func FuzzRecords(f *testing.F) {
	f.Add([]byte("a\nb\n\n"), uint8(4), uint16(10))
	f.Add([]byte("\x00\x00\x00\x01a\x00\x00\x00\x00"), uint8(2), uint16(3))
	f.Fuzz(func(t *testing.T, b []byte, step uint8, limit uint16) {
		max := int(limit) + 1
		for _, make := range []func(read func([]byte) (int, error)) source{
			func(read func([]byte) (int, error)) source { return &lines{read: read, limit: max} },
			func(read func([]byte) (int, error)) source { return &lengths{read: read, limit: max} },
		} {
			r := &stepReader{b, int(step) + 1}
			s := make(r.Read)
			for total := 0; ; {
				record, err := s.next()
				if err != nil {
					break
				}
				if total += len(record); len(record) > max || total > len(b) {
					t.Fatalf("a record of %d bytes, %d in all, of %d", len(record), total, len(b))
				}
			}
		}
	})
}

// stepReader reads a few bytes at a time.
type stepReader struct {
	b    []byte
	step int
}

func (s *stepReader) Read(p []byte) (int, error) {
	if len(s.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.b[:min(len(s.b), s.step)])
	s.b = s.b[n:]
	return n, nil
}
