package tui

import (
	"fmt"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/printable"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/table"
)

// The colours are the terminal's own sixteen, so that they fit its background.
// Where there are none (NO_COLOR) every state still has its name, and the
// selected row is in reverse.
var (
	bold    = lipgloss.NewStyle().Bold(true)
	faint   = lipgloss.NewStyle().Faint(true)
	reverse = lipgloss.NewStyle().Reverse(true)
	alert   = lipgloss.NewStyle().Bold(true).Foreground(lipgloss.Red)
	caution = lipgloss.NewStyle().Foreground(lipgloss.Yellow)
	good    = lipgloss.NewStyle().Foreground(lipgloss.Green)
	waiting = lipgloss.NewStyle().Foreground(lipgloss.Cyan)
	plain   = lipgloss.NewStyle()
)

func stateStyle(s fivetuple.State) lipgloss.Style {
	switch {
	case s == fivetuple.StateCloseWait:
		return caution
	case s.Phase() == fivetuple.PhaseConnected:
		return good
	case s.Phase() == fivetuple.PhaseListening:
		return waiting
	case s.Phase() == fivetuple.PhaseConnecting:
		return lipgloss.NewStyle().Foreground(lipgloss.Magenta)
	case s == fivetuple.StateClose:
		return plain
	}
	return faint
}

// text is what a column shows of a row.
func text(column string, r *pageRow) string {
	c, _ := table.ColumnNamed(column)
	return printable.Escape(string(c.Text(nil, &r.Row)))
}

// View implements [tea.Model].
func (m *model) View() tea.View {
	v := tea.NewView(strings.Join(m.screen(), "\n"))
	v.AltScreen = true
	v.WindowTitle = "ft top"
	if m.prompt.open && m.dialog == nil {
		v.Cursor = m.promptCursor()
	}
	return v
}

// screen is every line of it.
func (m *model) screen() []string {
	if m.width < 1 || m.height < 1 {
		return nil
	}
	if m.help {
		return m.fill(m.helpLines())
	}
	top, bottom := m.header(), m.footer()
	rows := m.rows()
	var lines []string
	lines = append(lines, top...)
	switch {
	case m.dialog != nil:
		lines = append(lines, m.box(m.dialog.question(), rows)...)
	case m.grouping != bySocket:
		lines = append(lines, m.groupLines(rows)...)
	default:
		lines = append(lines, m.socketLines(rows)...)
	}
	return m.fill(append(lines, bottom...))
}

// fill makes it as many lines as the screen has.
func (m *model) fill(lines []string) []string {
	for len(lines) < m.height {
		lines = append(lines, "")
	}
	return lines[:m.height]
}

// rows is how many rows there is room for.
func (m *model) rows() int { return max(1, m.height-len(m.header())-len(m.footer())) }

func (m *model) line(style lipgloss.Style, s string) string {
	return style.Render(clip(s, m.width, false, m.ascii))
}

// header is what is above the rows. The lower the screen, the less of it.
func (m *model) header() []string {
	lines := []string{m.titleLine()}
	if m.height >= 8 {
		lines = append(lines, m.stateLine())
	}
	if m.height >= 12 {
		lines = append(lines, m.ownerLine())
	}
	if m.err != nil {
		lines = append(lines, m.line(alert, "reading failed, these are the last known: "+firstLine(m.err)))
	}
	if m.height >= 16 {
		for _, l := range m.leaks.lines[:min(2, len(m.leaks.lines))] {
			lines = append(lines, m.line(caution, "! "+printable.Escape(l)))
		}
	}
	lines = append(lines, m.promptLines()...)
	if m.height >= 4 && m.dialog == nil {
		lines = append(lines, m.headLine())
	}
	return lines
}

func (m *model) titleLine() string {
	t := &m.shown
	s := fmt.Sprintf("ft top  %s  in %s/s  out %s/s", counted(t.sockets, "socket"), short(t.in), short(t.out))
	if m.paused {
		s += "  PAUSED"
	} else {
		s += "  every " + seconds(m.every)
		if m.every > m.options.Interval {
			s += fmt.Sprintf(" (a reading costs %s)", stats.FormatDuration(m.cost))
		}
	}
	if room := m.width - lipgloss.Width(s) - 2; room >= 20 && len(m.trend) > 1 {
		trend := m.trend[max(0, len(m.trend)-min(room, historyLength)):]
		s += "  " + spark(trend, m.ascii)
	}
	return m.line(bold, s)
}

// seconds writes an interval without a fraction if it has none.
func seconds(d time.Duration) string {
	if d < time.Minute {
		return strings.TrimSuffix(fmt.Sprintf("%.1f", d.Seconds()), ".0") + " s"
	}
	return stats.FormatDuration(d)
}

func counted(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return grouped(n) + " " + noun + "s"
}

// grouped writes a number with its thousands apart.
func grouped(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", grouped(n/1000), n%1000)
}

// stateLine counts the states, in the order of how often one asks for them.
func (m *model) stateLine() string {
	var b strings.Builder
	room := m.width
	for _, s := range []fivetuple.State{
		fivetuple.StateEstablished, fivetuple.StateListen, fivetuple.StateCloseWait, fivetuple.StateTimeWait,
		fivetuple.StateSynSent, fivetuple.StateSynRecv, fivetuple.StateFinWait1, fivetuple.StateFinWait2,
		fivetuple.StateLastAck, fivetuple.StateClosing, fivetuple.StateClose,
	} {
		n := m.shown.states[s]
		if n == 0 {
			continue
		}
		t := fmt.Sprintf("%s %s", s, grouped(n))
		if room -= len(t) + 2; room < -2 {
			break
		}
		b.WriteString(stateStyle(s).Render(t) + "  ")
	}
	return strings.TrimRight(b.String(), " ")
}

// ownerLine counts the sockets that no process is known of, by why.
func (m *model) ownerLine() string {
	t := &m.shown
	total := 0
	var why []string
	for u := table.Owned + 1; int(u) < len(t.unowned); u++ {
		if n := t.unowned[u]; n > 0 {
			total += n
			why = append(why, fmt.Sprintf("%s %s", grouped(n), u))
		}
	}
	s := "the processes of all are known"
	if t.sockets == 0 {
		s = "nothing matches"
	}
	if total > 0 {
		s = fmt.Sprintf("no process known: %s", strings.Join(why, ", "))
	}
	if t.unasked > 0 {
		s = fmt.Sprintf("looking for the processes of %s", counted(t.unasked, "socket"))
		if total > 0 {
			s += "; " + fmt.Sprintf("none known: %s", strings.Join(why, ", "))
		}
	}
	if m.searchErr != nil {
		s = "processes are not known: " + firstLine(m.searchErr)
	}
	return m.line(faint, s)
}

func (m *model) promptLines() []string {
	if !m.prompt.open {
		if strings.TrimSpace(m.text) == "" {
			return nil
		}
		return []string{m.line(plain, "filter: "+printable.Escape(m.text))}
	}
	line, _ := m.promptWindow()
	lines := []string{m.line(plain, "filter: "+line)}
	if complaint, column := m.prompt.complaint(); complaint != "" {
		_, start := m.promptWindow()
		mark := ""
		if column >= start {
			mark = strings.Repeat(" ", len("filter: ")+lipgloss.Width(string(m.prompt.line[start:min(column, len(m.prompt.line))]))) + "^ "
		}
		text := fmt.Sprintf("%s (column %d)", complaint, column+1)
		if column < 0 {
			text = complaint
		}
		if m.height >= 8 {
			if lipgloss.Width(mark)+lipgloss.Width(text) > m.width {
				lines = append(lines, m.line(alert, mark))
				for _, part := range wrap(text, m.width-2) {
					lines = append(lines, m.line(alert, "  "+part))
				}
			} else {
				lines = append(lines, m.line(alert, mark+text))
			}
		}
	}
	return lines
}

// promptWindow is the part of the line around the cursor that fits, and where it
// begins.
func (m *model) promptWindow() (string, int) {
	room := max(1, m.width-len("filter: ")-1)
	p := &m.prompt
	start := 0
	for start < p.cursor && lipgloss.Width(string(p.line[start:p.cursor])) > room {
		start++
	}
	return clip(string(p.line[start:]), room+1, false, m.ascii), start
}

func (m *model) promptCursor() *tea.Cursor {
	_, start := m.promptWindow()
	y := len(m.header()) - len(m.promptLines())
	if m.height >= 4 && m.dialog == nil {
		y--
	}
	return tea.NewCursor(len("filter: ")+lipgloss.Width(string(m.prompt.line[start:m.prompt.cursor])), y)
}

// headLine names the columns, and marks the one that is sorted by.
func (m *model) headLine() string {
	var b strings.Builder
	head := func(i int, name string, width int, right, sorted, reversed bool) {
		if i > 0 {
			b.WriteByte(' ')
		}
		if sorted {
			name = m.arrow(reversed) + name
		}
		b.WriteString(pad(name, width, right, false, m.ascii))
	}
	if m.grouping != bySocket {
		for i, c := range m.groupLayout() {
			name := c.head
			if i == 0 {
				name = strings.ToUpper(m.grouping.String())
			}
			head(i, name, c.width, c.number != nil, c.name == groupColumns[m.groupSort].name, m.groupOrder)
		}
	} else {
		for i, c := range m.columns() {
			sorted := c.Name == m.order.column.Name || m.order.column.Name == "rate" && (c.Name == "in" || c.Name == "out")
			head(i, c.Head, c.width, c.Right, sorted, m.order.reverse)
		}
	}
	return reverse.Render(pad(b.String(), m.width, false, false, m.ascii))
}

func (m *model) arrow(reversed bool) string {
	switch {
	case m.ascii && reversed:
		return "v"
	case m.ascii:
		return "^"
	case reversed:
		return "▼"
	}
	return "▲"
}

// socketLines are the rows. A selected one that is not among them keeps a line,
// on the edge that it lies beyond.
func (m *model) socketLines(n int) []string {
	var lines []string
	columns := m.columns()
	from := m.offset - m.page.first
	for i := from; i < from+n && i < len(m.page.rows); i++ {
		if i >= 0 {
			lines = append(lines, m.socketLine(&m.page.rows[i], columns))
		}
	}
	if m.last == nil || n < 3 {
		return upTo(lines, n)
	}
	pinned := m.socketLine(m.last, columns)
	switch {
	case m.page.picked == nil, m.page.rank >= m.offset+n:
		lines = append(lines[:min(len(lines), n-1)], pinned)
	case m.page.rank < m.offset && len(lines) > 0:
		lines[0] = pinned
	}
	return upTo(lines, n)
}

// upTo fills up with empty lines.
func upTo(lines []string, n int) []string {
	for len(lines) < n {
		lines = append(lines, "")
	}
	return lines
}

func (m *model) socketLine(r *pageRow, columns []layoutColumn) string {
	var b strings.Builder
	picked := r.serial == m.selected
	var buf [128]byte
	for i, c := range columns {
		if i > 0 {
			b.WriteByte(' ')
		}
		cell := string(c.Text(buf[:0], &r.Row))
		style := plain
		switch {
		case c.Name == "state" && picked && m.gone:
			cell = "closed"
		case c.Name == "state":
			style = stateStyle(r.State)
		case picked && m.gone && (c.Name == "in" || c.Name == "out"):
			cell = "-"
		case c.Name == "process" && cell == "":
			cell, style = r.unowned, faint
		case cell == "":
			cell, style = "-", faint
		case c.Name == "in" && r.Rate.In == 0, c.Name == "out" && r.Rate.Out == 0:
			style = faint
		}
		cell = pad(cell, c.width, c.Right, c.left, m.ascii)
		if picked {
			b.WriteString(cell)
		} else {
			b.WriteString(style.Render(cell))
		}
	}
	if picked {
		return reverse.Render(pad(b.String(), m.width, false, false, m.ascii))
	}
	return b.String()
}

// groupLayout gives the name what room is left, and leaves out what does not fit.
func (m *model) groupLayout() []groupColumn {
	columns := append([]groupColumn(nil), groupColumns...)
	width := func() (n int) {
		for _, c := range columns {
			n += c.width + 1
		}
		return n - 1
	}
	for len(columns) > 1 && width() > m.width {
		drop := len(columns) - 1
		if len(columns) > 4 {
			drop = len(columns) - 4 // the rates stay
		}
		columns = append(columns[:drop], columns[drop+1:]...)
	}
	columns[0].width = max(1, min(40, columns[0].width+m.width-width()))
	return columns
}

func (m *model) groupLines(n int) []string {
	var lines []string
	columns := m.groupLayout()
	rank := m.rank()
	for i := m.offset; i < len(m.groups) && i < m.offset+n; i++ {
		var b strings.Builder
		for j, c := range columns {
			if j > 0 {
				b.WriteByte(' ')
			}
			b.WriteString(pad(string(c.text(nil, &m.groups[i])), c.width, c.number != nil, false, m.ascii))
		}
		line := b.String()
		if i == rank {
			line = reverse.Render(pad(line, m.width, false, false, m.ascii))
		}
		lines = append(lines, line)
	}
	return upTo(lines, n)
}

// footer is what is below the rows: the details, and what the last key did or
// which keys there are.
func (m *model) footer() []string {
	var lines []string
	if m.detail.shown && m.grouping == bySocket && m.dialog == nil && m.height >= 12 {
		details := m.details()
		room := max(3, m.height/2-3)
		lines = append(lines, m.line(faint, strings.Repeat(m.rule(), m.width)))
		var folded []string
		for _, d := range details {
			folded = append(folded, fold(printable.Escape(d), m.width, m.ascii)...)
		}
		for i, l := range folded[:min(room, len(folded))] {
			style := plain
			if i == 0 {
				style = bold
			}
			lines = append(lines, m.line(style, l))
		}
		lines = upTo(lines, min(room, 11)+1) // so that the rows do not jump
	}
	if m.height >= 3 {
		lines = append(lines, m.keyLine())
	}
	return lines
}

func (m *model) rule() string {
	if m.ascii {
		return "-"
	}
	return "─"
}

func (m *model) keyLine() string {
	switch {
	case m.message != "":
		return m.line(bold, printable.Escape(m.message))
	case m.prompt.open:
		return m.line(faint, "Enter keep  Esc undo  e.g. tcp and port 443, proc:nginx, rtt > 50ms, rate > 1MiB")
	case m.dialog != nil:
		return ""
	case m.grouping != bySocket:
		return m.line(faint, "arrows  Enter its sockets  s sort  r reverse  g group  p pause  ? help  q quit")
	}
	return m.line(faint, "arrows  Enter details  / filter  s sort  g group  k close  p pause  ? help")
}

// fold breaks words that are two spaces apart into lines.
func fold(s string, width int, ascii bool) []string {
	var lines []string
	line := ""
	for _, part := range strings.Split(s, "  ") {
		switch {
		case line == "":
			line = part
		case lipgloss.Width(line)+2+lipgloss.Width(part) <= width:
			line += "  " + part
		default:
			lines, line = append(lines, line), part
		}
	}
	return append(lines, line)
}

// box puts a question in the middle.
func (m *model) box(lines []string, n int) []string {
	var all []string
	for range max(0, (n-len(lines))/3) {
		all = append(all, "")
	}
	for i, l := range lines {
		style := plain
		if i == 0 || i == len(lines)-1 {
			style = bold
		}
		for _, part := range wrap(printable.Escape(l), m.width) {
			all = append(all, m.line(style, part))
		}
	}
	if len(all) > n { // the answers must be seen
		all = append(all[:max(0, n-1)], all[len(all)-1])
	}
	return upTo(all, n)
}

// wrap breaks a line that is wider than the screen, so that all of it is seen.
func wrap(s string, width int) []string {
	var lines []string
	for lipgloss.Width(s) > width && width > 4 {
		runes := []rune(s)
		at, w := 0, 0
		for ; at < len(runes); at++ {
			if w += lipgloss.Width(string(runes[at])); w > width {
				break
			}
		}
		lines, s = append(lines, string(runes[:at])), "  "+string(runes[at:])
	}
	return append(lines, s)
}
