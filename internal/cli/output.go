package cli

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/fivetuple/fivetuple/internal/printable"
)

// The formats of -o.
const (
	formatTable  = "table"
	formatWide   = "wide"
	formatJSON   = "json"   // one document: {"schema": 1, "NAME": [...]}
	formatNDJSON = "ndjson" // one object a line
	formatCSV    = "csv"    // the wide table's columns, with their keys
)

// schema is the version of the JSON documents: it grows when a key changes its meaning.
const schema = 1

func checkFormat(f string) error {
	if !slices.Contains([]string{formatTable, formatWide, formatJSON, formatNDJSON, formatCSV}, f) {
		return usage("unknown output format %q: want table, wide, json, ndjson or csv", f)
	}
	return nil
}

// column is one column of a table of rows of type T.
type column[T any] struct {
	head  string         // of the table
	right bool           // numbers are aligned to the right
	wide  bool           // only in wide tables and CSV
	slim  bool           // only in tables that are not wide: several columns in one
	text  func(T) string // empty cells are "-" in tables

	// CSV is for programs: where text is for people, these are the key, if it
	// is not head in snake_case, and the value.
	key   string
	value func(T) string
}

func (c column[T]) csvKey() string {
	if c.key != "" {
		return c.key
	}
	return strings.ReplaceAll(strings.ToLower(c.head), " ", "_")
}

func (c column[T]) csvValue(row T) string {
	if c.value != nil {
		return c.value(row)
	}
	return c.text(row)
}

// printRows prints rows in the format of -o. In JSON the rows are marshalled
// as they are, in a list called name. It returns how many there were.
func printRows[T any](a *app, name string, rows iter.Seq2[T, error], columns []column[T]) (int, error) {
	w := bufio.NewWriter(a.out)
	n, err := 0, error(nil)
	switch a.format {
	case formatJSON:
		n, err = printJSON(w, name, rows)
	case formatNDJSON:
		for row, rerr := range rows {
			if err = rerr; err == nil {
				err = writeJSON(w, row, "\n")
			}
			if err != nil {
				break
			}
			n++
			w.Flush() // whoever reads gets each row at once
		}
	case formatCSV:
		n, err = printCSV(w, rows, visible(columns, true), isTerminal(a.out))
	default:
		n, err = printTable(w, rows, visible(columns, a.format == formatWide), useColor(a.out), terminalWidth(a.out))
	}
	if ferr := w.Flush(); err == nil {
		err = ferr
	}
	return n, err
}

// printJSON writes the rows as they come. A document that an error cuts short is
// not closed: nobody takes it for complete.
func printJSON[T any](w io.Writer, name string, rows iter.Seq2[T, error]) (int, error) {
	fmt.Fprintf(w, "{\n  \"schema\": %d,\n  %q: [", schema, name)
	n := 0
	for row, err := range rows {
		if err != nil {
			return n, err
		}
		if n > 0 {
			fmt.Fprint(w, ",")
		}
		fmt.Fprint(w, "\n    ")
		if err := writeJSON(w, row, ""); err != nil {
			return n, err
		}
		n++
	}
	if n > 0 {
		fmt.Fprint(w, "\n  ")
	}
	_, err := fmt.Fprint(w, "]\n}\n")
	return n, err
}

// writeJSON writes one value on one line, and end. What a terminal would obey
// and JSON lets through, DEL and the C1 controls, can only be in its strings:
// it is escaped.
func writeJSON(w io.Writer, v any, end string) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if bytes.ContainsFunc(b, unicode.IsControl) {
		b = []byte(escapeControls(string(b)))
	}
	_, err = fmt.Fprintf(w, "%s%s", b, end)
	return err
}

func escapeControls(s string) string {
	var b strings.Builder
	for _, r := range s {
		if unicode.IsControl(r) {
			fmt.Fprintf(&b, `\u%04x`, r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

func printCSV[T any](w io.Writer, rows iter.Seq2[T, error], columns []column[T], terminal bool) (int, error) {
	c := csv.NewWriter(w)
	defer c.Flush()
	record := make([]string, len(columns))
	for i, col := range columns {
		record[i] = col.csvKey()
	}
	c.Write(record)
	n := 0
	for row, err := range rows {
		if err != nil {
			return n, err
		}
		for i, col := range columns {
			record[i] = col.csvValue(row)
			if terminal {
				record[i] = printable.Escape(record[i])
			}
		}
		c.Write(record)
		n++
	}
	c.Flush()
	return n, c.Error()
}

func visible[T any](columns []column[T], wide bool) []column[T] {
	return slices.DeleteFunc(slices.Clone(columns), func(c column[T]) bool { return c.wide && !wide || c.slim && wide })
}

// printTable reads all rows first, to know how wide the columns are. Those before
// an error are printed. A last column that goes beyond width is folded under
// itself; width 0 is no bound.
func printTable[T any](w io.Writer, rows iter.Seq2[T, error], columns []column[T], color bool, width int) (int, error) {
	var cells [][]string
	widths := make([]int, len(columns))
	for i, c := range columns {
		widths[i] = len(c.head)
	}
	var err error
	for row, rerr := range rows {
		if err = rerr; err != nil {
			break
		}
		line := make([]string, len(columns))
		for i, c := range columns {
			line[i] = cmp.Or(printable.Escape(c.text(row)), "-")
			widths[i] = max(widths[i], utf8.RuneCountInString(line[i]))
		}
		cells = append(cells, line)
	}
	if len(cells) == 0 {
		return 0, err
	}
	head := make([]string, len(columns))
	for i, c := range columns {
		head[i] = strings.ToUpper(c.head)
	}
	if color {
		fmt.Fprint(w, "\x1b[1m")
	}
	writeLine(w, head, widths, columns)
	if color {
		fmt.Fprint(w, "\x1b[0m")
	}
	last := len(columns) - 1
	room := width - 2*last
	for _, n := range widths[:last] {
		room -= n
	}
	for _, line := range cells {
		parts := fold(line[last], room)
		for i, part := range parts {
			line[last] = part
			writeLine(w, line, widths, columns)
			if i == 0 {
				line = make([]string, len(columns))
			}
		}
	}
	return len(cells), err
}

// fold breaks text at spaces into lines that fit the room, if that is enough
// for a word or two.
func fold(s string, room int) (lines []string) {
	const least = 15
	for room >= least && utf8.RuneCountInString(s) > room {
		runes := []rune(s)
		at := room
		for i := room; i > room/2; i-- {
			if runes[i] == ' ' {
				at = i
				break
			}
		}
		lines, s = append(lines, string(runes[:at])), strings.TrimLeft(string(runes[at:]), " ")
	}
	return append(lines, s)
}

func writeLine[T any](w io.Writer, line []string, widths []int, columns []column[T]) {
	var b strings.Builder
	for i, cell := range line {
		pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
		if i > 0 {
			b.WriteString("  ")
		}
		if columns[i].right {
			b.WriteString(pad + cell)
		} else {
			b.WriteString(cell + pad)
		}
	}
	fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
}

// plural writes a count with its noun: "1 port", "2 ports".
func plural[N int | uint64](n N, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// each makes rows of a slice.
func each[T any](rows []T) iter.Seq2[T, error] { return eachUntil(rows, nil) }

// eachUntil makes rows of a slice that the error, unless it is nil, cut short.
func eachUntil[T any](rows []T, err error) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for _, row := range rows {
			if !yield(row, nil) {
				return
			}
		}
		if err != nil {
			yield(*new(T), err)
		}
	}
}

func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// terminalWidth is the width of the terminal that w is, 0 if it is none.
func terminalWidth(w any) int {
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return width
}

// useColor says whether w is a terminal that wants colour (no-color.org).
func useColor(w any) bool {
	return isTerminal(w) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}
