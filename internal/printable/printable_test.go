package printable

import "testing"

func TestEscapeLeavesNothingThatSpeaksToTheTerminal(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"", ""},
		{`plain "quoted" C:\path µ 世`, `plain "quoted" C:\path µ 世`},
		{"\x1b[31mred", `\x1b[31mred`},
		{"a\tb\r\n", `a\tb\r\n`},
		{"a\x00b", `a\x00b`},
		{"\u009b2J", `\u009b2J`},
		{"\x9b2J", `\x9b2J`},
		{"\u202edlrow", `\u202edlrow`},
		{"say \"\x07\"", `say "\a"`},
		{"\\\"\x07", `\\"\a`},
		{"\x7f", `\x7f`},
	} {
		if got := Escape(tt.text); got != tt.want {
			t.Errorf("Escape(%q)\ngot  %s\nwant %s", tt.text, got, tt.want)
		}
	}
}
