package cli

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode"
)

func TestPrintableEscapesWhatMovesTheTerminal(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"", ""},
		{`plain "quoted" C:\path µ 世`, `plain "quoted" C:\path µ 世`},
		{"\x1b[31mred", `\x1b[31mred`},
		{"a\tb\r\n", `a\tb\r\n`},
		{"\u009b2J", `\u009b2J`},
		{"\x9b2J", `\x9b2J`},
		{"\u202edlrow", `\u202edlrow`},
		{"say \"\x07\"", `say "\a"`},
		{"\\\"\x07", `\\"\a`},
		{"\x7f", `\x7f`},
	} {
		if got := printable(tt.text); got != tt.want {
			t.Errorf("printable(%q)\ngot  %s\nwant %s", tt.text, got, tt.want)
		}
	}
}

func TestJSONHasNoControlCharactersAndTheSameValue(t *testing.T) {
	text := "\x1b[31m\x7f\u009b2J\u0085 µ 世"
	var b bytes.Buffer
	if err := writeJSON(&b, text, "\n"); err != nil {
		t.Fatal(err)
	}
	line := strings.TrimSuffix(b.String(), "\n")
	if strings.ContainsFunc(line, unicode.IsControl) {
		t.Errorf("%q has control characters", line)
	}
	var got string
	if err := json.Unmarshal([]byte(line), &got); err != nil || got != text {
		t.Errorf("%s read back: got %q, %v, want %q", line, got, err, text)
	}
}
