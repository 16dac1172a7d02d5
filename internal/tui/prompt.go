package tui

import (
	"context"
	"errors"
	"strings"
	"time"
	"unicode"

	tea "charm.land/bubbletea/v2"

	"github.com/fivetuple/fivetuple/filter"
)

// prompt is the line in which the filter is typed. What is typed takes effect as
// soon as it is a filter; until then the last good one goes on.
type prompt struct {
	open   bool
	line   []rune
	cursor int
	edits  int // so that the parse of an earlier text is told apart
	err    error
	// What Esc goes back to.
	before     *filter.Filter
	beforeText string
}

type (
	debounceMsg int
	parsedMsg   struct {
		edit   int
		text   string
		filter *filter.Filter
		err    error
	}
)

const (
	// typingPause is how long after a key the text is parsed: names in it may be
	// looked up, and not each of their beginnings shall be.
	typingPause = 250 * time.Millisecond
	lookupLimit = 5 * time.Second
)

func (m *model) openPrompt() tea.Cmd {
	m.prompt = prompt{open: true, line: []rune(m.text), cursor: len([]rune(m.text)), edits: m.prompt.edits + 1, before: m.filter, beforeText: m.text}
	m.turn()
	return nil
}

// edit takes a key, or what was pasted, into the line.
func (m *model) edit(msg tea.Msg) tea.Cmd {
	p := &m.prompt
	switch msg := msg.(type) {
	case tea.PasteMsg:
		p.insert(msg.Content)
	case tea.KeyPressMsg:
		switch name := msg.String(); name {
		case "enter":
			return m.closePrompt()
		case "esc":
			return m.cancelPrompt()
		default:
			if !p.key(name, msg.Text) {
				return nil
			}
		}
	}
	p.edits++
	n := debounceMsg(p.edits)
	return tea.Tick(typingPause, func(time.Time) tea.Msg { return n })
}

// closePrompt parses what was typed at once, and stays open if it is no filter.
func (m *model) closePrompt() tea.Cmd {
	m.prompt.edits++
	cmd := m.parseLine()
	return func() tea.Msg {
		parsed := cmd().(parsedMsg)
		return enteredMsg(parsed)
	}
}

// enteredMsg is a parsedMsg that ends the typing.
type enteredMsg parsedMsg

func (m *model) cancelPrompt() tea.Cmd {
	m.prompt.open = false
	m.prompt.edits++
	m.filter, m.text = m.prompt.before, m.prompt.beforeText
	m.turn()
	return m.read()
}

func (m *model) parseLine() tea.Cmd {
	edit, text := m.prompt.edits, strings.TrimSpace(string(m.prompt.line))
	return func() tea.Msg {
		ctx, cancel := context.WithTimeout(m.ctx, lookupLimit)
		defer cancel()
		f, err := m.parse(ctx, text)
		return parsedMsg{edit, text, f, err}
	}
}

// typed goes on with a text once no key came for a while, or it was parsed.
func (m *model) typed(msg tea.Msg) tea.Cmd {
	entered := false
	switch msg := msg.(type) {
	case debounceMsg:
		if int(msg) == m.prompt.edits && m.prompt.open {
			return m.parseLine()
		}
		return nil
	case enteredMsg:
		entered = true
		return m.parsed(parsedMsg(msg), entered)
	case parsedMsg:
		return m.parsed(msg, entered)
	}
	return nil
}

func (m *model) parsed(msg parsedMsg, entered bool) tea.Cmd {
	if msg.edit != m.prompt.edits || !m.prompt.open {
		return nil
	}
	m.prompt.err = msg.err
	defer m.turn() // the prompt takes more or fewer lines
	if msg.err != nil {
		return nil
	}
	m.filter, m.text = msg.filter, msg.text
	if entered {
		m.prompt.open = false
	}
	m.offset = 0
	return m.read()
}

// complaint says what is wrong with the line, with the column to mark, from 0;
// -1 for none.
func (p *prompt) complaint() (text string, column int) {
	if p.err == nil {
		return "", -1
	}
	var syntax *filter.SyntaxError
	if errors.As(p.err, &syntax) {
		lead := len(p.line) - len([]rune(strings.TrimLeftFunc(string(p.line), unicode.IsSpace)))
		return syntax.Message, syntax.Column - 1 + lead
	}
	return firstLine(p.err), -1
}

// key edits the line as readline(3) does; false if the line stays as it was.
func (p *prompt) key(name, text string) bool {
	n := len(p.line)
	switch name {
	case "left", "ctrl+b":
		p.cursor = max(0, p.cursor-1)
		return false
	case "right", "ctrl+f":
		p.cursor = min(n, p.cursor+1)
		return false
	case "home", "ctrl+a":
		p.cursor = 0
		return false
	case "end", "ctrl+e":
		p.cursor = n
		return false
	case "backspace", "ctrl+h":
		p.cut(p.cursor-1, p.cursor)
	case "delete", "ctrl+d":
		p.cut(p.cursor, p.cursor+1)
	case "ctrl+u":
		p.cut(0, p.cursor)
	case "ctrl+k":
		p.cut(p.cursor, n)
	case "ctrl+w":
		start := p.cursor
		for start > 0 && unicode.IsSpace(p.line[start-1]) {
			start--
		}
		for start > 0 && !unicode.IsSpace(p.line[start-1]) {
			start--
		}
		p.cut(start, p.cursor)
	default:
		if text == "" {
			return false
		}
		p.insert(text)
	}
	return true
}

func (p *prompt) cut(from, to int) {
	from, to = max(0, from), min(to, len(p.line))
	p.line = append(p.line[:from:from], p.line[to:]...)
	p.cursor = from
}

// insert leaves out what does not print.
func (p *prompt) insert(text string) {
	var runes []rune
	for _, r := range text {
		if r == '\n' || r == '\t' {
			r = ' '
		}
		if unicode.IsPrint(r) {
			runes = append(runes, r)
		}
	}
	p.line = append(p.line[:p.cursor:p.cursor], append(runes, p.line[p.cursor:]...)...)
	p.cursor += len(runes)
}
