package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const want = `# Service names and port numbers as of 2025-03-28, from the registry that IANA keeps at
# https://www.iana.org/assignments/service-names-port-numbers/ and places in the public domain (CC0 1.0).
# Port, protocols (t tcp, u udp, s sctp, d dccp), names, description. Written by internal/gen: do not edit.
9	tusd	discard	Discard
63	t	whoispp,whois++	whois++
80	tu	http,www	World Wide Web HTTP
80	s	http	HTTP
465	t	submissions,urd	Message Submission over TLS
700	t	good-name	Two lines and a tab
6000	tu	x11	X Window System
6001	tu	x11	X Window System
6002	tu	x11	X Window System
`

func TestRunWritesTheNamesOfTheRegistry(t *testing.T) {
	out := filepath.Join(t.TempDir(), "iana.txt")
	for range 2 { // the second run replaces the file and must write the same
		var stderr bytes.Buffer
		if err := run([]string{"-in", "testdata/registry.csv", "-out", out}, &stderr); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != want {
			t.Errorf("got:\n%s\nwant:\n%s", got, want)
		}
		for _, left := range []string{`700/tcp "Bad Name"`, `34567/udp "under_score"`} {
			if !strings.Contains(stderr.String(), left) {
				t.Errorf("stderr %q does not say that %s was left out", &stderr, left)
			}
		}
	}
}

func TestRunTakesTheDateFromTheCommandLine(t *testing.T) {
	out := filepath.Join(t.TempDir(), "iana.txt")
	if err := run([]string{"-in", "testdata/registry.csv", "-out", out, "-date", "2030-01-02"}, os.Stderr); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if line, _, _ := strings.Cut(string(got), "\n"); !strings.Contains(line, "as of 2030-01-02,") {
		t.Errorf("first line is %q, want the date 2030-01-02 in it", line)
	}
}

func TestRunRefusesWhatIsNotTheRegistry(t *testing.T) {
	const head = "Service Name,Port Number,Transport Protocol,Description,Registration Date,Modification Date\n"
	for _, test := range []struct{ name, text, want string }{
		{"empty", "", "column names"},
		{"another table", "a,b\n1,2\n", `no column "Service Name"`},
		{"word for a port", head + "http,eighty,tcp,x,,2020-01-01\n", `line 2: port "eighty"`},
		{"port 0", head + "http,0,tcp,x,,2020-01-01\n", `line 2: port "0"`},
		{"port too high", head + "http,65536,tcp,x,,2020-01-01\n", `line 2: port "65536"`},
		{"range backwards", head + "http,9-8,tcp,x,,2020-01-01\n", `line 2: port "9-8"`},
		{"range without an end", head + "http,9-,tcp,x,,2020-01-01\n", `line 2: port "9-"`},
		{"field missing", head + "http,80,tcp,x,2020-01-01\n", "wrong number of fields"},
		{"no date", head + "http,80,tcp,x,,\n", "-date"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			in, out := filepath.Join(dir, "in.csv"), filepath.Join(dir, "out.txt")
			if err := os.WriteFile(in, []byte(test.text), 0o600); err != nil {
				t.Fatal(err)
			}
			err := run([]string{"-in", in, "-out", out}, os.Stderr)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got error %v, want one with %q", err, test.want)
			}
			if _, err := os.Stat(out); !os.IsNotExist(err) {
				t.Errorf("an output was written all the same (stat: %v)", err)
			}
		})
	}
}

func TestWellFormedIsTheSyntaxOfRFC6335(t *testing.T) {
	for name, want := range map[string]bool{
		"http": true, "www-http": true, "3com-tsmux": true, "914c-g": true, "a": true, "CAIlic": true, "fifteen-letters": true,
		"": false, "443": false, "1-2": false, "-http": false, "http-": false, "a--b": false, "sixteen-letters-": false,
		"sixteenletters16": false, "under_score": false, "whois++": false, "z39.50": false, "a b": false, "é": false,
	} {
		if got := wellFormed(name); got != want {
			t.Errorf("wellFormed(%q) = %v, want %v", name, got, want)
		}
	}
}
