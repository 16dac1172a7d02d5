package filter

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// SyntaxError says where the text of a filter is wrong, and what was expected.
type SyntaxError struct {
	Text    string
	Column  int // in characters, from 1; one past the end where something is missing
	Message string
	Err     error // why a name could not be looked up; nil where the text itself is wrong
}

// Unwrap returns Err.
func (e *SyntaxError) Unwrap() error { return e.Err }

// Error shows the text with a mark below the column.
func (e *SyntaxError) Error() string {
	line, mark := excerpt([]rune(e.Text), e.Column-1)
	return fmt.Sprintf("filter, column %d: %s\n  %s\n  %s^", e.Column, e.Message, line, mark)
}

// excerpt cuts out what is around the column, on one line. Tabs stay, and stay
// above each other.
func excerpt(text []rune, column int) (line, before string) {
	const around = 60
	start, end := 0, len(text)
	var head, tail string
	if column > around {
		start, head = column-around, "..."
	}
	if end > column+around {
		end, tail = column+around, "..."
	}
	shown := slices.Clone(text[start:end])
	gap := make([]rune, 0, len(shown)+1)
	for i, c := range shown {
		if c != '\t' && (!unicode.IsPrint(c) || c == utf8.RuneError) {
			shown[i] = ' '
		}
		switch {
		case start+i >= column:
		case c == '\t':
			gap = append(gap, '\t')
		default:
			gap = append(gap, ' ')
		}
	}
	return head + string(shown) + tail, strings.Repeat(" ", len(head)) + string(gap)
}

// fault is a SyntaxError in the making, at a byte offset.
type fault struct {
	at      int
	message string
	err     error
}

func faultAt(at int, format string, args ...any) *fault {
	return &fault{at: at, message: fmt.Sprintf(format, args...)}
}

func (f *fault) in(text string) *SyntaxError {
	return &SyntaxError{Text: text, Column: utf8.RuneCountInString(text[:f.at]) + 1, Message: f.message, Err: f.err}
}

// suggest proposes the words that are one or two letters off: `: did you mean
// "port"?`, or "".
func suggest(word string, known []string) string {
	word = strings.ToLower(word)
	allowed := 1 + len(word)/5
	var near []string
	for _, k := range known {
		if d := distance(word, k, allowed); d <= allowed && d < len(k) && !slices.Contains(near, fmt.Sprintf("%q", k)) {
			near = append(near, fmt.Sprintf("%q", k))
		}
	}
	if len(near) == 0 || len(near) > 4 {
		return ""
	}
	return ": did you mean " + strings.Join(near, " or ") + "?"
}

// distance is how many letters must be put in, left out, changed or swapped
// with their neighbour to make b of a; limit+1 if more than limit.
func distance(a, b string, limit int) int {
	if len(a)-len(b) > limit || len(b)-len(a) > limit || len(a) > 64 || len(b) > 64 {
		return limit + 1
	}
	var before, previous, current [66]int
	for j := range len(b) + 1 {
		previous[j] = j
	}
	for i := range len(a) {
		current[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			current[j+1] = min(previous[j+1]+1, current[j]+1, previous[j]+cost)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				current[j+1] = min(current[j+1], before[j-1]+1)
			}
		}
		before, previous = previous, current
	}
	return previous[len(b)]
}
