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
