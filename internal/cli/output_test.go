package cli

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode"
)

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

func TestATableFoldsItsLastColumnToTheTerminal(t *testing.T) {
	rows := [][2]string{{"name", "one two three four five six seven"}, {"n", strings.Repeat("x", 25)}}
	columns := []column[[2]string]{
		{head: "a", text: func(r [2]string) string { return r[0] }},
		{head: "b", text: func(r [2]string) string { return r[1] }},
	}
	for width, want := range map[int]string{
		0:  "A     B\nname  one two three four five six seven\nn     xxxxxxxxxxxxxxxxxxxxxxxxx\n",
		26: "A     B\nname  one two three four\n      five six seven\nn     xxxxxxxxxxxxxxxxxxxx\n      xxxxx\n",
		19: "A     B\nname  one two three four five six seven\nn     xxxxxxxxxxxxxxxxxxxxxxxxx\n",
	} {
		var b strings.Builder
		if n, err := printTable(&b, each(rows), columns, false, width); n != 2 || err != nil || b.String() != want {
			t.Errorf("at width %d, %d rows, %v:\n%swant:\n%s", width, n, err, b.String(), want)
		}
	}
}
