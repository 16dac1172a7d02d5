// Package printable makes text that others chose fit to be shown.
package printable

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Escape writes the text as in a Go string, but with quotes as they are, if
// anything in it does not print, so that it cannot speak to the terminal. Text
// that prints, backslashes too, is left alone.
func Escape(s string) string {
	unprintable := func(r rune) bool { return !unicode.IsPrint(r) }
	if utf8.ValidString(s) && strings.IndexFunc(s, unprintable) < 0 {
		return s
	}
	quoted := strconv.Quote(s)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}
