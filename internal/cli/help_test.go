package cli

import (
	"bytes"
	"errors"
	"io"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

func TestHelpOfEveryCommandOpensWithExamplesAndFits80Columns(t *testing.T) {
	a := &app{in: strings.NewReader(""), out: io.Discard, err: io.Discard}
	var check func(c *cobra.Command)
	calls := regexp.MustCompile(`^  (.*\$\()?ft `) // or takes what it prints
	check = func(c *cobra.Command) {
		if c.Name() == "supervise" { // ft itself calls it
			return
		}
		var b bytes.Buffer
		c.InitDefaultHelpFlag()
		writeHelp(&b, c)
		help := b.String()
		if !strings.HasPrefix(help, "Examples:\n  ") {
			t.Errorf("help of %q does not open with examples:\n%s", c.CommandPath(), help)
		}
		examples := strings.Split(c.Example, "\n")
		if len(examples) < 2 || len(examples) > 3 {
			t.Errorf("%q has %d examples, want two or three", c.CommandPath(), len(examples))
		}
		for _, e := range examples {
			if !calls.MatchString(e) {
				t.Errorf("example %q of %q is not a command line", e, c.CommandPath())
			}
		}
		for line := range strings.Lines(help) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > helpWidth {
				t.Errorf("help of %q has a line of %d columns: %s", c.CommandPath(), n, line)
			}
		}
		for _, sub := range c.Commands() {
			check(sub)
		}
	}
	check(a.root())
}

func TestWrapBreaksAtSpaces(t *testing.T) {
	long := strings.Repeat("x", 100)
	for _, tt := range []struct{ text, indent, want string }{
		{"", "  ", ""},
		{"one  two\nthree", "  ", "  one two three"},
		{strings.Repeat("12345678 ", 9), "", strings.Repeat("12345678 ", 8) + "12345678"},
		{strings.Repeat("123456789 ", 9), "", strings.Repeat("123456789 ", 7) + "123456789\n123456789"},
		{"a " + long + " b", " ", " a\n " + long + "\n b"},
	} {
		if got := wrap(tt.text, tt.indent); got != tt.want {
			t.Errorf("wrap(%q, %q)\ngot  %q\nwant %q", tt.text, tt.indent, got, tt.want)
		}
	}
}

func TestHelpListsEachColumnOnALine(t *testing.T) {
	var b bytes.Buffer
	if err := writeHelp(&b, (&app{}).ls()); err != nil {
		t.Fatal(err)
	}
	want := "\nColumns:\n\n  proto      protocol\n  state      state, as the kernel names it\n"
	if !strings.Contains(b.String(), want) {
		t.Errorf("got\n%swant within it\n%s", &b, want)
	}
}

func TestHelpThatCannotBeWrittenIsAnError(t *testing.T) {
	if err := writeHelp(failing{}, (&app{}).ls()); !errors.Is(err, errFull) {
		t.Errorf("got error %v, want %v", err, errFull)
	}
}
