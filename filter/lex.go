package filter

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// token is a word, or one of ( ) , ! & | and the comparisons.
type token struct {
	text   string
	at     int // byte offset
	word   bool
	quoted bool // a word in quotes: of no meaning to the language
}

func (t token) end() bool { return !t.word && t.text == "" }

// is says whether the token is this sign, or this word in whatever case.
func (t token) is(s string) bool { return !t.quoted && strings.EqualFold(t.text, s) }

// describe names the token for an error.
func (t token) describe() string {
	if t.end() {
		return "the end"
	}
	return fmt.Sprintf("%q", t.text)
}

// lex cuts text into tokens, the last of which is the end.
func lex(text string) ([]token, *fault) {
	tokens := make([]token, 0, 16)
	for i := 0; i < len(text); {
		c, size := utf8.DecodeRuneInString(text[i:])
		switch {
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			i += size
			continue
		case isSign(c):
			t := sign(text[i:])
			tokens = append(tokens, token{text: t, at: i})
			i += len(t)
			continue
		}
		t, next, err := lexWord(text, i)
		if err != nil {
			return nil, err
		}
		tokens = append(tokens, t)
		i = next
	}
	return append(tokens, token{at: len(text)}), nil
}

func isSign(c rune) bool { return strings.ContainsRune("()!=<>&|,", c) }

// sign cuts a sign of one or two characters off. && and || are & and |.
func sign(s string) string {
	if len(s) > 1 {
		switch s[:2] {
		case "==", "!=", "<=", ">=", "<>", "&&", "||":
			return s[:2]
		}
	}
	return s[:1]
}

// lexWord reads up to a space or sign that is not between quotes. Within
// quotes a backslash takes a quote or a backslash as it is.
func lexWord(text string, start int) (token, int, *fault) {
	var b []byte // only once there are quotes: the text itself otherwise
	quoted, inside := false, false
	i := start
	for i < len(text) {
		c, size := utf8.DecodeRuneInString(text[i:])
		switch {
		case c == utf8.RuneError && size == 1:
			return token{}, 0, faultAt(i, "this is not UTF-8 text")
		case c == '"':
			if !quoted {
				quoted, b = true, []byte(text[start:i])
			}
			inside = !inside
			i++
			continue
		case !inside && (c == ' ' || c == '\t' || c == '\n' || c == '\r' || isSign(c)):
			return newWord(text, start, i, quoted, b), i, nil
		case !unicode.IsPrint(c):
			return token{}, 0, faultAt(i, "the character %q does not print", c)
		case inside && c == '\\' && i+1 < len(text) && (text[i+1] == '"' || text[i+1] == '\\'):
			i++
		}
		if quoted {
			b = append(b, text[i:i+size]...)
		}
		i += size
	}
	if inside {
		return token{}, 0, faultAt(start, "the quote is not closed: want a \" at the end")
	}
	return newWord(text, start, i, quoted, b), i, nil
}

func newWord(text string, start, end int, quoted bool, b []byte) token {
	t := token{text: text[start:end], at: start, word: true, quoted: quoted}
	if quoted {
		t.text = string(b)
	}
	return t
}

// quote writes text so that lex reads it as one word that is a value.
func quote(text string) string {
	plain := text != ""
	for _, c := range text {
		if c == ' ' || c == '"' || isSign(c) {
			plain = false
		}
	}
	if _, isRelation := relationOf(text); plain && !isRelation {
		return text
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(text) + `"`
}
