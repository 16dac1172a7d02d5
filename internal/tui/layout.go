package tui

import (
	"slices"
	"strings"
	"unicode/utf8"

	"charm.land/lipgloss/v2"

	"github.com/fivetuple/fivetuple/internal/printable"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/table"
)

// layoutColumn is a column and the room it has on the screen.
type layoutColumn struct {
	table.Column
	width int
	left  bool // if cut, the end is kept: that of an address is its port
}

// widths are the least and the most that a column can use. Others have room for
// nine characters.
var widths = map[string]struct{ least, most int }{
	"proto": {5, 8}, "state": {11, 12}, "recvq": {6, 7}, "sendq": {6, 7},
	"local": {14, 47}, "remote": {14, 47}, "process": {10, 40}, "peer": {10, 40}, "pid": {7, 7},
	"user": {8, 16}, "unit": {10, 30}, "container": {12, 12}, "queue": {9, 11}, "timer": {10, 24},
	"in": {6, 6}, "out": {6, 6}, "cc": {6, 8}, "cookie": {8, 16},
}

// chosen are the columns of a screen in their order, with how badly they are
// wanted: 0 always, the others by what room there is.
var chosen = []struct {
	name string
	want int
}{
	{"proto", 2}, {"state", 1}, {"recvq", 4}, {"sendq", 4}, {"local", 0}, {"remote", 0}, {"in", 0}, {"out", 0},
	{"rtt", 3}, {"retrans", 5}, {"age", 6}, {"process", 0}, {"user", 7}, {"unit", leastWanted},
}

const leastWanted = 8

// columns are those that fit the width, with their widths.
func (m *model) columns() []layoutColumn {
	if len(m.options.Columns) > 0 {
		return fit(m.options.Columns, m.width, m.need)
	}
	var columns []table.Column
	for want := 0; want <= leastWanted; want++ {
		var more []table.Column
		for _, c := range chosen {
			if c.want > want {
				continue
			}
			if column, ok := table.ColumnNamed(c.name); ok {
				more = append(more, column)
			}
		}
		if want > 0 && comfort(more) > m.width {
			break
		}
		columns = more
	}
	return fit(columns, m.width, m.need)
}

// comfort is the width at which the addresses of IPv4, and most names, are not cut.
func comfort(columns []table.Column) int {
	n := len(columns) - 1
	for _, c := range columns {
		switch least, most := widthOf(c); c.Name {
		case "local", "remote":
			n += 21 - 6
			if len(columns) > 7 {
				n += 6
			}
		case "process", "unit":
			n += min(most, least+2)
		default:
			n += least
		}
	}
	return n
}

func widthOf(c table.Column) (least, most int) {
	w, ok := widths[c.Name]
	if !ok {
		w.least = max(9, len(c.Head))
		w.most = w.least
	}
	return max(w.least, min(len(c.Head), w.least)), w.most
}

// fit leaves out the last columns if there is no room for them, and shares out
// what is over: first as much as each needs, then for names to come.
func fit(columns []table.Column, width int, need map[string]int) []layoutColumn {
	var all []layoutColumn
	used := -1
	for i, c := range columns {
		least, _ := widthOf(c)
		if i == 0 {
			least = min(least, width)
		} else if used+1+least > width {
			break
		}
		used += 1 + least
		all = append(all, layoutColumn{Column: adapted(c), width: least, left: c.Name == "local" || c.Name == "remote"})
	}
	used = grow(all, used, width, func(c table.Column) int { _, most := widthOf(c); return min(most, need[c.Name]) })
	for _, names := range [][]string{{"process", "peer"}, {"local", "remote", "unit"}} {
		used = grow(all, used, width, func(c table.Column) int {
			least, most := widthOf(c)
			if !slices.Contains(names, c.Name) {
				return least
			}
			return most
		})
	}
	return all
}

// grow shares out the room among those that can use it, one after the other.
func grow(all []layoutColumn, used, width int, most func(table.Column) int) int {
	for grown := true; grown; {
		grown = false
		for i := range all {
			if used < width && all[i].width < most(all[i].Column) {
				all[i].width++
				used++
				grown = true
			}
		}
	}
	return used
}

// needed finds how wide the cells of the page are, where that differs. It never
// falls, so that columns do not jump to and fro.
func (m *model) needed() {
	var buf [256]byte
	for _, name := range []string{"proto", "state", "local", "remote", "process", "unit", "user"} {
		c, _ := table.ColumnNamed(name)
		for i := range m.page.rows {
			r := &m.page.rows[i]
			m.need[name] = max(m.need[name], utf8.RuneCount(c.Text(buf[:0], &r.Row)))
		}
	}
}

// adapted writes rates short.
func adapted(c table.Column) table.Column {
	switch c.Name {
	case "in":
		c.Head = "IN/s"
		c.Text = func(b []byte, r *table.Row) []byte {
			if !r.Rate.Known {
				return b
			}
			return appendRate(b, r.Rate.In)
		}
	case "out":
		c.Head = "OUT/s"
		c.Text = func(b []byte, r *table.Row) []byte {
			if !r.Rate.Known {
				return b
			}
			return appendRate(b, r.Rate.Out)
		}
	}
	return c
}

// appendRate writes bytes in five characters at most: "1023", "1.5K", "120K".
// K is 1024.
func appendRate(b []byte, n uint64) []byte {
	number, unit, _ := strings.Cut(stats.FormatBytes(n), " ")
	if len(number) > 4 {
		number, _, _ = strings.Cut(number, ".")
	}
	return append(append(b, number...), strings.TrimSuffix(strings.TrimSuffix(unit, "B"), "i")...)
}

func short(n uint64) string { return string(appendRate(nil, n)) }

// pad cuts a text that may hold anything, or fills it up, to the width.
func pad(s string, width int, right, keepEnd, ascii bool) string {
	s = clip(printable.Escape(s), width, keepEnd, ascii)
	gap := strings.Repeat(" ", max(0, width-lipgloss.Width(s)))
	if right {
		return gap + s
	}
	return s + gap
}

// clip cuts text that prints to a width; "…" stands for what is missing.
func clip(s string, width int, keepEnd, ascii bool) string {
	if utf8.RuneCountInString(s) <= width && lipgloss.Width(s) <= width {
		return s
	}
	mark := "…"
	if ascii {
		mark = "~"
	}
	if width <= 1 {
		return mark[:min(len(mark), width*len(mark))]
	}
	runes := []rune(s)
	if keepEnd {
		at := len(runes)
		for w := 0; at > 0; at-- {
			if w += lipgloss.Width(string(runes[at-1])); w > width-1 {
				break
			}
		}
		return mark + string(runes[at:])
	}
	at := 0
	for w := 0; at < len(runes); at++ {
		if w += lipgloss.Width(string(runes[at])); w > width-1 {
			break
		}
	}
	return string(runes[:at]) + mark
}
