package cli

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"unicode/utf8"

	"charm.land/lipgloss/v2"
	"golang.org/x/term"

	"github.com/fivetuple/fivetuple/filter"
	"github.com/fivetuple/fivetuple/internal/printable"
	"github.com/fivetuple/fivetuple/port/lease"
	"github.com/fivetuple/fivetuple/sockdiag"
	"github.com/fivetuple/fivetuple/table"
)

// printSockets prints rows in the format of -o, and below a table for people
// how many there are and why some have no owner. The table takes no more than so
// many lines unless they are 0.
func (a *app) printSockets(t *table.Table, l listing, lines int) error {
	var below footer
	if a.isTable() {
		below = newFooter(t, len(t.Rows), l)
		l.lines = below.room(lines, terminalWidth(a.out))
	}
	p := a.socketPrinter(l)
	for i := range t.Rows {
		if err := p.row(&t.Rows[i]); err != nil {
			return err
		}
	}
	if err := p.end(); err != nil {
		return err
	}
	below.print(a.err)
	return nil
}

// streams says whether rows may be printed as the kernel gives them: then the
// list of a large machine is never in memory. A table with owners says below
// what it could not see, and TCP_INFO of one that is gathered is not kept.
func (l *listing) streams(isTable bool) bool {
	q := l.query
	whole := isTable && (q.Owners || q.Details&sockdiag.WithInfo != 0)
	return !whole && !q.Peers && !q.Rates && len(q.Namespaces) == 0 && len(l.sort) == 0 && l.by == ""
}

// streamSockets prints rows while the kernel is still telling them: the dump is
// read ahead of what is done here. A table that is short enough to be sorted is
// gathered first. It returns how many there were.
func (a *app) streamSockets(ctx context.Context, l listing) (n int, err error) {
	var first, full []table.Row
	gather := a.isTable()
	p := a.socketPrinter(l)
	readErr := table.Each(ctx, l.query, func(r *table.Row) bool {
		n++
		if gather && n <= sortedRows {
			first = append(first, *r)
			return true
		}
		for i := range first {
			if err == nil {
				err = p.row(&first[i])
			}
		}
		first = nil
		if r.QueueFull() && gather {
			full = append(full, *r)
		}
		if err == nil {
			err = p.row(r)
		}
		return err == nil
	})
	switch {
	case err != nil:
		return n, err
	case readErr != nil:
		return n, readErr
	case !gather:
		return n, p.end()
	case n <= sortedRows:
		t := &table.Table{Rows: first}
		l.order(t.Rows)
		return n, a.printSockets(t, l, 0)
	}
	if err := p.end(); err != nil {
		return n, err
	}
	newFooter(&table.Table{Rows: full}, n, l).print(a.err)
	return n, nil
}

func (a *app) isTable() bool { return a.format == formatTable || a.format == formatWide }

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
		return newJSONSockets(lines, fields, fmt.Sprintf("{\n  \"schema\": %d,\n  \"sockets\": [\n    ", schema), ",\n    ", "\n  ]\n}\n")
	case formatNDJSON:
		return newJSONSockets(lines, fields, "", "\n", "\n")
	case formatCSV:
		return &csvSockets{lineWriter: lines, columns: l.columns}
	}
	return newTableSockets(lines, l.columns, useColor(a.out), terminalWidth(a.out), l.lines)
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
	keys                   []string // of the columns, with what stands around them
	before, between, after string
	n                      int
}

func newJSONSockets(lines lineWriter, columns []table.Column, before, between, after string) *jsonSockets {
	p := &jsonSockets{lineWriter: lines, columns: columns, before: before, between: between, after: after}
	open := `{"`
	for _, c := range columns {
		p.keys = append(p.keys, open+c.Key+`":`)
		open = `,"`
	}
	return p
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
		for i := range p.columns {
			p.buf = p.columns[i].Value(append(p.buf, p.keys[i]...), r)
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
	for i := range p.columns {
		c := &p.columns[i]
		if i > 0 {
			p.buf = append(p.buf, ',')
		}
		start := len(p.buf)
		switch p.buf = c.Value(p.buf, r); p.buf[start] {
		case 'n': // null
			p.buf = p.buf[:start]
		case '"', '[', '{': // text, and what JSON alone can structure
			p.buf = quoteCSV(c.Text(p.buf[:start], r), start)
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

// quoteCSV quotes the field that begins at start where RFC 4180 wants it.
func quoteCSV(b []byte, start int) []byte {
	if !bytes.ContainsAny(b[start:], ",\"\r\n") {
		return b
	}
	field := strings.ReplaceAll(string(b[start:]), `"`, `""`)
	return append(append(append(b[:start], '"'), field...), '"')
}

// tableSockets keeps the cells of the first rows to know how wide the columns
// are; those beyond them are printed at once, and may be wider. On a terminal no
// line is longer than it is wide, but for a word that is: the columns are
// narrowed so that the lines of most rows fit, and what goes beyond the edge
// stands in the next line.
type tableSockets struct {
	lineWriter
	columns []table.Column
	color   bool
	room    int // columns of the terminal, 0 for no bound
	lines   int // to print at most, 0 for no bound
	widths  []int
	rows    int
	text    []byte // of the cells that are kept, one behind the other
	cells   []cell
	settled bool // the widths: the head is printed
	at      int  // in the line that is printed
	printed int  // lines
}

// cell is where a cell ends in the text, and the columns that it takes.
type cell struct{ end, width int }

func newTableSockets(lines lineWriter, columns []table.Column, color bool, room, most int) *tableSockets {
	p := &tableSockets{lineWriter: lines, color: color, room: room, lines: most}
	for _, c := range columns {
		if c.Name == "queue" {
			c.Text = markFull(c.Text)
		}
		p.columns = append(p.columns, c)
		p.widths = append(p.widths, len(c.Head))
	}
	return p
}

// markFull says beside the numbers of an accept queue that it is full.
func markFull(text func([]byte, *table.Row) []byte) func([]byte, *table.Row) []byte {
	return func(b []byte, r *table.Row) []byte {
		if r.QueueFull() {
			b = append(b, "full "...)
		}
		return text(b, r)
	}
}

func (p *tableSockets) row(r *table.Row) error {
	p.rows++
	if p.lines > 0 && p.rows > p.lines {
		return nil // beyond the screen
	}
	for i := range p.columns {
		start := len(p.text)
		if p.text = p.columns[i].Text(p.text, r); len(p.text) == start {
			p.text = append(p.text, '-')
		}
		width := len(p.text) - start
		if !ascii(p.text[start:]) {
			p.text = append(p.text[:start], printable.Escape(string(p.text[start:]))...)
			width = lipgloss.Width(string(p.text[start:]))
		}
		p.cells = append(p.cells, cell{len(p.text), width})
		if !p.settled {
			p.widths[i] = max(p.widths[i], width)
		}
	}
	if p.settled || p.lines == 0 && p.rows == sortedRows {
		return p.print()
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
	if p.rows > 0 {
		if err := p.print(); err != nil {
			return err
		}
	}
	return p.flush()
}

// print prints the rows that are kept, and before the first of them the head.
func (p *tableSockets) print() error {
	if !p.settled {
		p.settled = true
		p.head()
	}
	start, kept := 0, p.cells
	for row := 1; len(kept) > 0; row++ {
		before, printed := len(p.buf), p.printed
		for i, c := range kept[:len(p.columns)] {
			p.cell(i, p.text[start:c.end], c.width)
			start = c.end
		}
		kept = kept[len(p.columns):]
		if p.lines > 0 && (p.printed > p.lines || p.printed == p.lines && row < p.rows) {
			p.buf = fmt.Appendf(p.buf[:before], "and %d more\n", p.rows-row+1)
			p.printed = printed + 1
			break
		}
		if p.lines > 0 {
			continue // a screenful is written at once
		}
		if err := p.flushFull(); err != nil {
			return err
		}
	}
	p.text, p.cells = p.text[:0], p.cells[:0]
	return nil
}

func (p *tableSockets) head() {
	if p.room > 0 {
		p.narrow()
	}
	if p.color {
		p.buf = append(p.buf, "\x1b[1m"...)
	}
	for i, c := range p.columns {
		p.cell(i, []byte(c.Head), len(c.Head))
	}
	if p.color {
		p.buf = append(p.buf, "\x1b[0m"...)
	}
}

const (
	cellGap   = "  "
	nextLine  = "    " // before what did not fit
	leastFold = 15     // columns that are enough to fold a cell in its place
	leastCell = 21     // enough for an IPv4 address and port
)

// narrow takes from the widest columns what lets a line fit the terminal, with
// room for the last column. Their longer cells push the rest of their line.
func (p *tableSockets) narrow() {
	last := len(p.columns) - 1
	for {
		total, widest := min(p.widths[last], leastFold)+last*len(cellGap), -1
		for i, w := range p.widths[:last] {
			total += w
			if !p.columns[i].Right && w > leastCell && (widest < 0 || w > p.widths[widest]) {
				widest = i
			}
		}
		if total <= p.room || widest < 0 {
			return
		}
		p.widths[widest]--
	}
}

// cell appends one cell, and the end of the line after the last.
func (p *tableSockets) cell(i int, text []byte, width int) {
	last := i == len(p.columns)-1
	pad := max(p.widths[i]-width, 0)
	if i > 0 {
		p.buf = append(p.buf, cellGap...)
		p.at += len(cellGap)
	}
	left := 0
	if p.columns[i].Right {
		left, pad = pad, 0
	}
	if p.room > 0 && i > 0 && p.at+left+width > p.room && !(last && left == 0 && p.room-p.at >= leastFold) {
		p.buf = append(bytes.TrimRight(p.buf, " "), "\n"+nextLine...)
		p.printed++
		p.at, left, pad = len(nextLine), 0, 0
	}
	p.pad(left)
	p.at += left
	if last && p.room > 0 && p.at+width > p.room {
		text = p.fold(text)
	}
	p.buf = append(p.buf, text...)
	if last {
		p.buf = append(p.buf, '\n')
		p.printed++
		p.at = 0
		return
	}
	p.pad(pad)
	p.at += width + pad
}

// fold appends what fits in the line, and lines of the rest in the same place,
// and returns what of it goes in the last one.
func (p *tableSockets) fold(text []byte) []byte {
	rest := string(text)
	for room := p.room - p.at; room > 0 && lipgloss.Width(rest) > room; {
		end, space, width := 0, 0, 0
		for i, r := range rest {
			if width += lipgloss.Width(string(r)); width > room {
				break
			}
			if end = i + utf8.RuneLen(r); r == ' ' && width >= room/2 {
				space = end
			}
		}
		if end == 0 || end == len(rest) {
			break
		}
		end = cmp.Or(space, end)
		p.buf = append(append(p.buf, strings.TrimRight(rest[:end], " ")...), '\n')
		p.printed++
		p.pad(p.at)
		rest = strings.TrimLeft(rest[end:], " ")
	}
	return []byte(rest)
}

func (p *tableSockets) pad(n int) {
	const spaces = "                                                                "
	for ; n > len(spaces); n -= len(spaces) {
		p.buf = append(p.buf, spaces...)
	}
	p.buf = append(p.buf, spaces[:n]...)
}

// footer is what stands below a table: how many sockets there are, why some
// have no owner, and what of them needs looking after.
type footer []string

// newFooter is of a table of n rows; t may lack those that need no word.
func newFooter(t *table.Table, n int, l listing) footer {
	line := plural(n, "socket")
	if n > sortedRows && len(l.sort) == 0 {
		line += ", as the kernel gives them (--sort puts them in order)"
	}
	counts := map[table.Unowned]int{}
	if l.query.Owners {
		counts = t.CountUnowned()
	}
	var reasons []string
	total := 0
	for _, reason := range slices.Sorted(maps.Keys(counts)) {
		total += counts[reason]
		reasons = append(reasons, fmt.Sprintf("%d %s", counts[reason], reason))
	}
	if total > 0 {
		line += fmt.Sprintf(", %d without an owner: %s", total, strings.Join(reasons, ", "))
	}
	// Who asks for owners may miss sockets for the same reasons.
	if asks := usesOwners(l.query.Filter); t.Unreadable > 0 && (asks || counts[table.Denied] > 0) {
		processes := "1 process"
		if t.Unreadable > 1 {
			processes = fmt.Sprintf("%d processes", t.Unreadable)
		}
		line += fmt.Sprintf(" (%s may not be looked into%s)", processes, asRoot())
	} else if t.Partial != "" && (asks || counts[table.Hidden] > 0) {
		line += fmt.Sprintf(" (%s)", t.Partial)
	}
	if t.Unentered > 0 {
		line += fmt.Sprintf("; %s may not be entered%s", plural(t.Unentered, "network namespace"), asRoot())
	}
	f := footer(strings.Split(wrap(line, ""), "\n"))
	if full := fullQueues(t.Rows); full != "" {
		f = append(f, "ft: "+printable.Escape(full))
	}
	if ephemeral, err := lease.EphemeralRange(); err == nil && l.query.States == 0 {
		for _, leak := range t.Leaks(ephemeral) {
			f = append(f, "ft: "+printable.Escape(leak))
		}
	}
	return f
}

// asRoot advises those whom it may help.
func asRoot() string {
	if os.Geteuid() == 0 {
		return ""
	}
	return "; run as root to see"
}

// fullQueues says which listeners accept too slowly, "" if none does.
func fullQueues(rows []table.Row) string {
	n, first := 0, ""
	for i := range rows {
		if r := &rows[i]; r.QueueFull() {
			if n++; n == 1 {
				first = fmt.Sprintf("%s %v", r.Protocol, r.LocalEnd())
				if len(r.Owners) > 0 {
					first += fmt.Sprintf(" (%s/%d)", r.Owners[0].Command, r.Owners[0].PID)
				}
			}
		}
	}
	switch n {
	case 0:
		return ""
	case 1:
		return "the accept queue of " + first + " is full: its peers wait until the program accepts; see ft inspect"
	}
	return fmt.Sprintf("the accept queues of %s and %d more are full: their peers wait until the programs accept; see ft inspect", first, n-1)
}

func (f footer) print(w io.Writer) {
	for _, line := range f {
		fmt.Fprintln(w, line)
	}
}

// room is how many lines a screen has beside the footer, where the cursor needs
// one too: enough for a head and a row at least. 0 lines are no screen.
func (f footer) room(lines, width int) int {
	const least = 3
	if lines == 0 {
		return 0
	}
	for _, line := range f {
		lines -= 1 + (len(line)-1)/max(width, 1)
	}
	return max(lines-1, least)
}

// terminalHeight is how many lines the terminal that w is has, 0 if it is none.
func terminalHeight(w any) int {
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	_, height, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return height
}

// usesOwners says whether a filter can only be judged with owners.
func usesOwners(f *filter.Filter) bool {
	return f.Uses(filter.FieldPID) || f.Uses(filter.FieldCommand) || f.Uses(filter.FieldUnit) || f.Uses(filter.FieldContainer)
}
