package join

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"
)

// hear has a telnetIn read the pieces and returns the data and the answers.
func hear(t testing.TB, pieces ...string) (data, answers string, err error) {
	t.Helper()
	in := &telnetIn{answer: func(b []byte) { answers += string(b) }}
	for _, p := range pieces {
		b, err := in.apply([]byte(p))
		if err != nil {
			return data, answers, err
		}
		data += string(b)
	}
	return data, answers, nil
}

func TestTelnetIsTakenOutAndAnswered(t *testing.T) {
	const (
		IAC, DONT, DO, WONT, WILL, SB, SE = "\xff", "\xfe", "\xfd", "\xfc", "\xfb", "\xfa", "\xf0"
		binary, echo, sga, naws           = "\x00", "\x01", "\x03", "\x1f"
	)
	tests := map[string]struct{ in, data, answers string }{
		"plain":                 {"login: ", "login: ", ""},
		"doubled 255":           {"a" + IAC + IAC + "b", "a\xffb", ""},
		"commands":              {"a" + IAC + "\xf1" + IAC + "\xf9" + IAC + "\xf6b", "ab", ""},
		"will echo":             {IAC + WILL + echo, "", IAC + DO + echo},
		"will go on":            {IAC + WILL + sga, "", IAC + DO + sga},
		"will binary":           {IAC + WILL + binary, "", IAC + DONT + binary},
		"do sga":                {IAC + DO + sga, "", IAC + WILL + sga},
		"do echo":               {IAC + DO + echo, "", IAC + WONT + echo},
		"do binary":             {IAC + DO + binary, "", IAC + WONT + binary},
		"do naws":               {IAC + DO + naws, "", IAC + WONT + naws},
		"again":                 {IAC + WILL + echo + IAC + WILL + echo, "", IAC + DO + echo},
		"on and off":            {IAC + WILL + echo + IAC + WONT + echo, "", IAC + DO + echo + IAC + DONT + echo},
		"off already":           {IAC + WONT + echo + IAC + DONT + sga, "", ""},
		"refused again":         {strings.Repeat(IAC+DO+naws, 2), "", strings.Repeat(IAC+WONT+naws, 2)},
		"a loop comes to rest":  {strings.Repeat(IAC+DO+naws, 2*maxAnswers), "", strings.Repeat(IAC+WONT+naws, maxAnswers)},
		"subnegotiation":        {"a" + IAC + SB + "\x18\x01" + IAC + IAC + "x" + IAC + SE + "b", "ab", ""},
		"unended before a verb": {IAC + SB + "x" + IAC + WILL + sga + "b", "b", IAC + DO + sga},
		"CR NUL":                {"a\r\x00b\r\nc\r\r\x00" + "\x00", "a\rb\r\nc\r\r\x00", ""},
		"CR before a command":   {"\r" + IAC + WILL + sga + "\n", "\r\n", IAC + DO + sga},
		"cut":                   {"a" + IAC + WILL, "a", ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			check := func(pieces ...string) {
				t.Helper()
				data, answers, err := hear(t, pieces...)
				if data != test.data || answers != test.answers || err != nil {
					t.Errorf("%q: got %q, answers %q, %v, want %q, %q", pieces, data, answers, err, test.data, test.answers)
				}
			}
			check(test.in)
			check(strings.Split(test.in, "")...) // byte by byte, but for what is UTF-8
			for i := range test.in {
				check(test.in[:i], test.in[i:])
			}
		})
	}
}

func TestAnEndlessSubnegotiationIsAnError(t *testing.T) {
	if _, _, err := hear(t, "\xff\xfa", strings.Repeat("x", maxSubnegotiation)); err != nil {
		t.Errorf("the longest: %v", err)
	}
	if _, _, err := hear(t, "\xff\xfa", strings.Repeat("x", maxSubnegotiation+1)); err == nil {
		t.Error("no error for a longer one")
	}
}

func TestBytesAreMadeFitForTelnet(t *testing.T) {
	for in, want := range map[string]string{
		"plain\n":    "plain\n",
		"\xff":       "\xff\xff",
		"a\xff\xffb": "a\xff\xff\xff\xffb",
		"a\r\nb":     "a\r\nb",
		"a\rb":       "a\r\x00b",
		"\r\r\n":     "\r\x00\r\n",
		"\r\xff":     "\r\x00\xff\xff",
	} {
		for i := range len(in) + 1 {
			var out telnetOut
			first, _ := out.apply([]byte(in[:i]))
			got := string(first)
			second, _ := out.apply([]byte(in[i:]))
			if got += string(second); got != want {
				t.Errorf("%q, cut at %d: got %q, want %q", in, i, got, want)
			}
		}
	}
}

func TestTelnetThroughRun(t *testing.T) {
	a, peerA := tcpPair(t)
	b, peerB := tcpPair(t)
	done := run(t.Context(), a, b, Options{Telnet: true, CRLF: true})
	write(t, peerB, "\xff\xfd\x1f\xff\xfb\x01login: ")
	wantRead(t, peerA, "login: ")
	wantRead(t, peerB, "\xff\xfc\x1f\xff\xfd\x01")
	write(t, peerA, "me\xff\n")
	wantRead(t, peerB, "me\xff\xff\r\n")
	closeWrite(t, peerA)
	closeWrite(t, peerB)
	o := wait(t, done)
	if o.err != nil {
		t.Error(o.err)
	}
	wantBytes(t, o.result, 6, 7)
}

func TestAnAnswerDoesNotWaitForAPeerThatWritesFirst(t *testing.T) {
	a, peerA := tcpPair(t)
	b, peerB := tcpPair(t)
	done := run(t.Context(), a, b, Options{Telnet: true})
	fill(t, peerA) // B reads nothing
	flood := strings.Repeat("x", 8<<20)
	go io.WriteString(peerB, "\xff\xfd\x1f"+flood)
	wantRead(t, peerA, flood)
	closeWrite(t, peerA)
	all, err := io.ReadAll(peerB)
	if err != nil || !bytes.Contains(all, []byte("\xff\xfc\x1f")) {
		t.Errorf("no answer among %d bytes, %v", len(all), err)
	}
	closeWrite(t, peerB)
	if o := wait(t, done); o.err != nil {
		t.Error(o.err)
	}
}

func TestNcatSpeaksTelnetWithUs(t *testing.T) {
	ncat, err := exec.LookPath("ncat")
	if err != nil {
		t.Fatal("ncat is missing: apt-get install ncat")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	program := exec.CommandContext(t.Context(), ncat, "-t", "127.0.0.1", port)
	program.Stdin = strings.NewReader("hello\n")
	var shown bytes.Buffer
	program.Stdout = &shown
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	a, peerA := tcpPair(t)
	write(t, b, "\xff\xfd\x1f") // ncat refuses
	done := run(t.Context(), a, b, Options{Telnet: true})
	wantRead(t, peerA, "hello\n")
	write(t, peerA, "byte \xff\n")
	closeWrite(t, peerA)
	wait(t, done)
	program.Wait()
	if !strings.Contains(shown.String(), "byte \xff") {
		t.Errorf("ncat showed %q", shown.String())
	}
}

func FuzzTelnet(f *testing.F) {
	for _, seed := range []string{"plain", "\xff\xff\r\x00", "\xff\xfb\x01\xff\xfd\x03", "\xff\xfa\x18\x01\xff\xf0x", "\xff\xfa\xff\xfa\xff", "\xff\xfb\x03\xff\xfc\x03"} {
		f.Add([]byte(seed), uint8(3))
	}
	f.Fuzz(func(t *testing.T, b []byte, cut uint8) {
		i := min(int(cut), len(b))
		data, answers, err := hear(t, string(b))
		cutData, cutAnswers, cutErr := hear(t, string(b[:i]), string(b[i:]))
		if data != cutData || answers != cutAnswers || fmt.Sprint(err) != fmt.Sprint(cutErr) {
			t.Errorf("cut at %d: %q %q %v, whole: %q %q %v", i, cutData, cutAnswers, cutErr, data, answers, err)
		}
		if len(data) > len(b) || len(answers) > len(b) {
			t.Errorf("%d bytes became %d and answers of %d", len(b), len(data), len(answers))
		}
		// What we say is understood, and two of us come to rest.
		var out telnetOut
		said, _ := out.apply(b)
		if heard, replies, err := hear(t, string(said)); heard != string(b) || replies != "" || err != nil {
			t.Errorf("said %q, heard %q, replies %q, %v", b, heard, replies, err)
		}
		var line string
		talkers := []*telnetIn{{}, {}}
		for _, talker := range talkers {
			talker.answer = func(b []byte) { line += string(b) }
		}
		line = string(b)
		for i := range 2*maxAnswers + 2 {
			hearing := line
			line = ""
			if _, err := talkers[i%2].apply([]byte(hearing)); err != nil || line == "" {
				return
			}
		}
		t.Errorf("still talking: %q", line)
	})
}
