package cli

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/fivetuple/fivetuple/filter"
	"github.com/fivetuple/fivetuple/internal/printable"
	"github.com/fivetuple/fivetuple/port/lease"
	"github.com/fivetuple/fivetuple/sockdiag"
	"github.com/fivetuple/fivetuple/table"
)

// printSockets prints rows in the format of -o, and below a table for people
// how many there are and why some have no owner.
func (a *app) printSockets(t *table.Table, l listing) error {
	p := a.socketPrinter(l)
	for i := range t.Rows {
		if err := p.row(&t.Rows[i]); err != nil {
			return err
		}
	}
	if err := p.end(); err != nil {
		return err
	}
	if a.format == formatTable || a.format == formatWide {
		a.footer(t, l)
	}
	return nil
}

// streams says whether rows can be printed as the kernel gives them: then the
// list of a large machine is never in memory.
func (l *listing) streams() bool {
	q := l.query
	sorts := len(l.sort) > 0 || !l.query.Owners && l.query.States != 0 // few, so sorted
	return !q.Owners && !q.Peers && !q.Rates && len(q.Namespaces) == 0 && q.Details&sockdiag.WithInfo == 0 && !sorts && l.by == "" &&
		!usesOwners(q.Filter)
}

// streamSockets prints rows while the kernel is still telling them: the dump is
// read ahead of what is done here.
func (a *app) streamSockets(ctx context.Context, l listing) (n int, err error) {
	p := a.socketPrinter(l)
	readErr := table.Each(ctx, l.query, func(r *table.Row) bool {
		n++
		err = p.row(r)
		return err == nil
	})
	if err == nil {
		err = readErr
	}
	if err == nil {
		err = p.end()
	}
	return n, err
}

// socketPrinter prints one row after the other, as fast as it can: a table of
// 100,000 sockets takes less time than the kernel needs to tell them.
type socketPrinter interface {
	row(*table.Row) error
	end() error
}

func (a *app) socketPrinter(l listing) socketPrinter {
	lines := lineWriter{w: a.out, buf: make([]byte, 0, lineBuffer+4096)}
	fields := l.columns
	if !l.chosen {
		fields = nil
	}
	switch a.format {
	case formatJSON:
		return &jsonSockets{lineWriter: lines, columns: fields, before: fmt.Sprintf("{\n  \"schema\": %d,\n  \"sockets\": [\n    ", schema), between: ",\n    ", after: "\n  ]\n}\n"}
	case formatNDJSON:
		return &jsonSockets{lineWriter: lines, columns: fields, between: "\n", after: "\n"}
	case formatCSV:
		return &csvSockets{lineWriter: lines, columns: l.columns}
	}
	return &tableSockets{lineWriter: lines, columns: l.columns, color: useColor(a.out), room: terminalWidth(a.out), widths: make([]int, len(l.columns))}
}

const lineBuffer = 64 << 10

// lineWriter gathers output to write it in large pieces.
type lineWriter struct {
	w   io.Writer
	buf []byte
}

func (w *lineWriter) flushFull() error {
	if len(w.buf) < lineBuffer {
		return nil
	}
	return w.flush()
}

func (w *lineWriter) flush() error {
	_, err := w.w.Write(w.buf)
	w.buf = w.buf[:0]
	return err
}

// jsonSockets prints objects: whole rows, or the columns that were chosen.
type jsonSockets struct {
	lineWriter
	columns                []table.Column
	before, between, after string
	n                      int
}

func (p *jsonSockets) row(r *table.Row) error {
	if p.n++; p.n == 1 {
		p.buf = append(p.buf, p.before...)
	} else {
		p.buf = append(p.buf, p.between...)
	}
	if p.columns == nil {
		p.buf = r.AppendJSON(p.buf)
	} else {
		p.buf = append(p.buf, '{')
		for i, c := range p.columns {
			if i > 0 {
				p.buf = append(p.buf, ',')
			}
			p.buf = append(append(append(p.buf, '"'), c.Key...), `":`...)
			p.buf = c.Value(p.buf, r)
		}
		p.buf = append(p.buf, '}')
	}
	return p.flushFull()
}

func (p *jsonSockets) end() error {
	switch {
	case p.n > 0:
		p.buf = append(p.buf, p.after...)
	case p.before != "":
		p.buf = append(append(p.buf, strings.TrimSpace(p.before)...), "]\n}\n"...)
	}
	return p.flush()
}

// csvSockets prints the columns with their keys; numbers are as in JSON.
type csvSockets struct {
	lineWriter
	columns []table.Column
	begun   bool
}

func (p *csvSockets) row(r *table.Row) error {
	p.head()
	for i, c := range p.columns {
		if i > 0 {
			p.buf = append(p.buf, ',')
		}
		start := len(p.buf)
		switch p.buf = c.Value(p.buf, r); p.buf[start] {
		case 'n': // null
			p.buf = p.buf[:start]
		case '"', '[', '{': // text, and what JSON alone can structure
			p.buf = appendCSV(p.buf[:start], string(c.Text(nil, r)))
		}
	}
	p.buf = append(p.buf, '\n')
	return p.flushFull()
}

func (p *csvSockets) head() {
	for i, c := range p.columns {
		if p.begun {
			return
		}
		if i > 0 {
			p.buf = append(p.buf, ',')
		}
		p.buf = append(p.buf, c.Key...)
	}
	p.buf = append(p.buf, '\n')
	p.begun = true
}

func (p *csvSockets) end() error {
	if !p.begun {
		p.head()
	}
	return p.flush()
}

// appendCSV quotes a field where RFC 4180 wants it.
func appendCSV(b []byte, s string) []byte {
	if !strings.ContainsAny(s, ",\"\r\n") {
		return append(b, s...)
	}
	return append(append(append(b, '"'), strings.ReplaceAll(s, `"`, `""`)...), '"')
}

// tableSockets keeps the cells to know how wide the columns are.
type tableSockets struct {
	lineWriter
	columns []table.Column
	color   bool
	room    int // columns of the terminal, 0 for no bound
	widths  []int
	cells   []byte
	ends    []int // of the cells, in bytes
}

func (p *tableSockets) row(r *table.Row) error {
	for i, c := range p.columns {
		start := len(p.cells)
		if p.cells = c.Text(p.cells, r); len(p.cells) == start {
			p.cells = append(p.cells, '-')
		} else if !ascii(p.cells[start:]) {
			p.cells = append(p.cells[:start], printable.Escape(string(p.cells[start:]))...)
		}
		p.ends = append(p.ends, len(p.cells))
		p.widths[i] = max(p.widths[i], utf8.RuneCount(p.cells[start:]))
	}
	return nil
}

func ascii(b []byte) bool {
	for _, c := range b {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}

func (p *tableSockets) end() error {
	if len(p.ends) == 0 {
		return nil
	}
	if p.color {
		p.buf = append(p.buf, "\x1b[1m"...)
	}
	for i, c := range p.columns {
		p.widths[i] = max(p.widths[i], len(c.Head))
		p.cell(i, c.Head)
	}
	if p.color {
		p.buf = append(p.buf, "\x1b[0m"...)
	}
	start := 0
	for i, end := range p.ends {
		p.cell(i%len(p.columns), string(p.cells[start:end]))
		start = end
		if err := p.flushFull(); err != nil {
			return err
		}
	}
	return p.flush()
}

const cellGap = "  "

// cell appends one cell, and the end of the line after the last.
func (p *tableSockets) cell(i int, text string) {
	pad := p.widths[i] - utf8.RuneCountInString(text)
	last := i == len(p.columns)-1
	if i > 0 {
		p.buf = append(p.buf, cellGap...)
	}
	if p.columns[i].Right {
		p.pad(pad)
	}
	p.buf = append(p.buf, text...)
	switch {
	case last:
		p.buf = append(p.buf, '\n')
	case !p.columns[i].Right:
		p.pad(pad)
	}
}

func (p *tableSockets) pad(n int) {
	const spaces = "                                                                "
	for ; n > len(spaces); n -= len(spaces) {
		p.buf = append(p.buf, spaces...)
	}
	p.buf = append(p.buf, spaces[:max(n, 0)]...)
}

// footer counts the rows and says why some have no owner.
func (a *app) footer(t *table.Table, l listing) {
	line := plural(len(t.Rows), "socket")
	if l.query.Owners {
		counts := t.CountUnowned()
		var reasons []string
		total := 0
		for _, reason := range slices.Sorted(maps.Keys(counts)) {
			if n := counts[reason]; n > 0 {
				total += n
				reasons = append(reasons, fmt.Sprintf("%d %s", n, reason))
			}
		}
		if total > 0 {
			line += fmt.Sprintf(", %d without an owner: %s", total, strings.Join(reasons, ", "))
		}
		if counts[table.Denied] > 0 {
			line += fmt.Sprintf(" (%s; run as root to see)", plural(t.Unreadable, "process")+" may not be looked into")
		}
	}
	fmt.Fprintln(a.err, wrap(line, ""))
	if ephemeral, err := lease.EphemeralRange(); err == nil && l.query.States == 0 {
		for _, leak := range t.Leaks(ephemeral) {
			a.warn("%s", leak)
		}
	}
}

// usesOwners says whether a filter can only be judged with owners.
func usesOwners(f *filter.Filter) bool {
	return f.Uses(filter.FieldPID) || f.Uses(filter.FieldCommand) || f.Uses(filter.FieldUnit) || f.Uses(filter.FieldContainer)
}
