package tui

import (
	"context"
	"strings"
	"sync"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/fivetuple/fivetuple/filter"
	"github.com/fivetuple/fivetuple/sockdiag"
	"github.com/fivetuple/fivetuple/table"
)

// model is the state of the screen. The book is in the hands of a reading while
// busy is set; until that ends the screen goes by the page it has.
type model struct {
	ctx     context.Context
	working sync.RWMutex // held by what runs beside the screen
	options Options
	book    *book
	kill    func(context.Context, *table.Row) (table.Closed, error)
	get     func(context.Context, sockdiag.Socket, sockdiag.Details) (sockdiag.Socket, error)
	parse   func(context.Context, string) (*filter.Filter, error)
	ascii   bool // no other characters than these

	width, height int

	filter *filter.Filter // the last good one
	text   string         // of it
	prompt prompt

	order      order
	grouping   grouping
	groupSort  int
	groupOrder bool // reversed
	offset     int  // the place of the first row on the screen

	page     page
	selected uint64   // 0 for none
	last     *pageRow // the selected one as it was last seen
	gone     bool     // it is closed
	groups   []group
	picked   *groupKey

	detail  detail
	dialog  *kill
	help    bool
	paused  bool
	message string // what the last key did, until the next one

	busy      bool
	again     bool // read once more as soon as this reading ends
	searching bool
	learnt    *answer // what a search found while the book was busy
	ticks     int     // the tick that is waited for
	every     time.Duration
	cost      time.Duration // processor time of the latest reading, with the sorting
	err       error         // of the latest reading
	searchErr error
	leaks     leaks

	// What the screen shows of the book, which may be busy.
	shown   summary
	begun   time.Time
	history []uint64       // rates of the selected socket, the oldest first
	trend   []uint64       // of all together
	need    map[string]int // how wide columns would be
}

type (
	tickMsg int
	readMsg struct {
		err  error
		cost time.Duration // of the processor
		took time.Duration
	}
	searchMsg struct{ answer }
)

func newModel(ctx context.Context, o Options) (*model, error) {
	m := &model{
		ctx: ctx, options: o, book: newBook(), text: o.Filter,
		kill: o.Close, get: sockdiag.Get, parse: filter.Parse,
		every:     o.Interval,
		groupSort: len(groupColumns) - 1, groupOrder: true,
		width: 80, height: 24, need: map[string]int{},
	}
	if m.kill == nil {
		m.kill = table.Close
	}
	if m.every <= 0 {
		m.every = time.Second
	}
	m.options.Interval = m.every
	var err error
	if m.order.column, m.order.reverse, err = checkSort(o.Sort); err != nil {
		return nil, err
	}
	return m, nil
}

// Init implements [tea.Model]: the book has been read once.
func (m *model) Init() tea.Cmd { return tea.Batch(m.tick(m.every), m.search()) }

// Update implements [tea.Model].
func (m *model) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	var cmd tea.Cmd
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
		m.turn()
	case tickMsg:
		if int(msg) == m.ticks && !m.paused {
			cmd = m.read()
		}
	case readMsg:
		cmd = m.hasRead(msg)
	case searchMsg:
		m.searching = false
		m.learnt = &msg.answer
		m.learn()
		if m.ownersMatter() {
			cmd = m.read()
		}
		m.turn()
	case detailMsg:
		m.hasDetail(msg)
	case debounceMsg, parsedMsg, enteredMsg:
		cmd = m.typed(msg)
	case killedMsg:
		cmd = m.killed(msg)
	case tea.KeyPressMsg:
		cmd = m.key(msg)
	case tea.PasteMsg:
		if m.prompt.open {
			cmd = m.edit(msg)
		}
	}
	return m, cmd
}

// work is a command that uses what Run gives back when it ends: Run waits for it.
func (m *model) work(do func() tea.Msg) tea.Cmd {
	return func() tea.Msg {
		m.working.RLock()
		defer m.working.RUnlock()
		if m.ctx.Err() != nil {
			return nil
		}
		return do()
	}
}

// reading is what the screen needs to be read.
func (m *model) reading() reading {
	r := reading{filter: m.filter, kinds: m.options.Protocols, inet: len(m.options.Protocols) == 0 && !m.options.All, narrow: !m.prompt.open, owners: m.ownersMatter()}
	for _, c := range append(m.columns(), layoutColumn{Column: m.order.column}) {
		r.details |= c.Needs
		if c.Name == "unit" || c.Name == "container" {
			r.details |= sockdiag.WithCgroup
		}
	}
	return r
}

// ownersMatter says whether other owners mean other rows.
func (m *model) ownersMatter() bool {
	for _, f := range []filter.Field{filter.FieldPID, filter.FieldCommand, filter.FieldUnit, filter.FieldContainer} {
		if m.filter.Uses(f) {
			return true
		}
	}
	return false
}

func (m *model) tick(d time.Duration) tea.Cmd {
	m.ticks++
	n := m.ticks
	return tea.Tick(d, func(time.Time) tea.Msg { return tickMsg(n) })
}

// read begins a reading, or has one follow the one that is under way.
func (m *model) read() tea.Cmd {
	if m.busy {
		m.again = true
		return nil
	}
	m.busy, m.again = true, false
	m.ticks++ // one that is on its way would have it read twice
	r := m.reading()
	return m.work(func() tea.Msg {
		start, used := time.Now(), processorTime()
		err := m.book.read(m.ctx, r)
		return readMsg{err, processorTime() - used, time.Since(start)}
	})
}

// hasRead takes the book back and plans the next reading.
func (m *model) hasRead(msg readMsg) tea.Cmd {
	m.busy, m.err = false, msg.err
	start, used := time.Now(), processorTime()
	m.learn()
	if msg.err == nil {
		m.trend = append(m.trend, m.book.total.in+m.book.total.out)
		m.trend = m.trend[max(0, len(m.trend)-historyLength):]
	}
	m.turn()
	m.warn()
	m.cost = msg.cost + processorTime() - used
	m.every = stretched(m.options.Interval, m.cost)
	took := msg.took + time.Since(start)
	if m.again {
		return tea.Batch(m.read(), m.search(), m.fetch())
	}
	if m.paused {
		return m.fetch()
	}
	return tea.Batch(m.tick(max(m.every-took, m.every/10)), m.search(), m.fetch())
}

// busyShare is the part of the time that readings may take.
const busyShare = 0.3

// stretched is the interval between readings that cost so much.
func stretched(interval, cost time.Duration) time.Duration {
	return max(interval, time.Duration(float64(cost)/busyShare))
}

// search looks for the owners if it is time to. It does not use the book.
func (m *model) search() tea.Cmd {
	if m.busy || m.searching || m.paused && !m.book.owners.at.IsZero() {
		return nil
	}
	s, due := m.book.due(time.Now())
	if !due {
		return nil
	}
	m.searching = true
	o := &m.book.owners
	return m.work(func() tea.Msg { return searchMsg{o.search(m.ctx, s)} })
}

// learn gives the book what a search found, once the book is free.
func (m *model) learn() {
	if m.learnt == nil || m.busy {
		return
	}
	m.book.learn(*m.learnt, time.Now())
	m.learnt = nil
}

// turn brings the page up to date with what is asked of it.
func (m *model) turn() {
	if m.busy { // it will be done when the reading has ended
		return
	}
	m.shown, m.begun, m.searchErr = m.book.total, m.book.begun, m.book.owners.err
	rows := m.rows()
	if m.grouping != bySocket {
		m.groups = m.book.groups(m.grouping, m.groupSort, m.groupOrder)
		m.offset = max(0, min(m.offset, len(m.groups)-rows))
		return
	}
	m.offset = max(0, min(m.offset, m.book.total.sockets-rows))
	// A screen more on either side, so that keys find rows during a reading.
	first := max(0, m.offset-rows)
	m.page = m.book.page(m.order, first, m.offset-first+2*rows, m.selected)
	switch {
	case m.page.picked != nil:
		m.last, m.gone = m.page.picked, false
	case m.selected != 0:
		m.checkGone()
	}
	m.trace()
	m.needed()
}

// trace takes the history of the selected socket.
func (m *model) trace() {
	m.history = m.history[:0]
	if m.page.picked != nil {
		m.history = m.book.history.of(m.history, m.page.picked.slot, m.book.readings)
	}
}

// key does what a key says.
func (m *model) key(k tea.KeyPressMsg) tea.Cmd {
	name := k.String()
	if name == "ctrl+c" {
		return tea.Quit
	}
	if m.prompt.open {
		return m.edit(k)
	}
	if m.dialog != nil {
		return m.answer(name)
	}
	m.message = ""
	if m.help {
		m.help = false
		return nil
	}
	switch name {
	case "q":
		return tea.Quit
	case "ctrl+z":
		return tea.Suspend
	case "?", "h", "f1":
		m.help = true
	case "/", "f":
		return m.openPrompt()
	case "up", "ctrl+p":
		return m.move(-1)
	case "down", "ctrl+n":
		return m.move(1)
	case "pgup", "ctrl+b":
		return m.move(-m.rows())
	case "pgdown", "ctrl+f", "space":
		return m.move(m.rows())
	case "home":
		return m.move(-1 << 30)
	case "end":
		return m.move(1 << 30)
	case "esc":
		m.unselect()
	case "enter", "d":
		return m.open()
	case "s", ">":
		return m.sortBy(1)
	case "<":
		return m.sortBy(-1)
	case "r":
		m.reverse()
	case "g", "tab":
		m.regroup()
	case "p":
		return m.pause()
	case "k", "delete":
		return m.askKill()
	case "+", "=":
		return m.pace(1)
	case "-":
		return m.pace(-1)
	}
	return nil
}

func (m *model) pause() tea.Cmd {
	m.paused = !m.paused
	if m.paused {
		m.ticks++ // the tick that is on its way means nothing
		return nil
	}
	return m.read()
}

// paces are the intervals that + and - go through.
var paces = []time.Duration{200 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second, 5 * time.Second,
	10 * time.Second, 30 * time.Second, time.Minute, 5 * time.Minute, 15 * time.Minute, time.Hour}

func (m *model) pace(step int) tea.Cmd {
	at := len(paces) - 1
	for i, p := range paces {
		if p >= m.options.Interval {
			at = i
			break
		}
	}
	m.options.Interval = paces[max(0, min(at+step, len(paces)-1))]
	m.every = stretched(m.options.Interval, m.cost)
	if m.paused || m.busy {
		return nil
	}
	return m.tick(m.every)
}

// count is how many rows there are to go through.
func (m *model) count() int {
	if m.grouping != bySocket {
		return len(m.groups)
	}
	return m.page.total
}

// rank is the place of the selected row, -1 if none is.
func (m *model) rank() int {
	if m.grouping == bySocket {
		if m.page.picked == nil {
			return -1
		}
		return m.page.rank
	}
	for i := range m.groups {
		if m.picked != nil && m.groups[i].key == *m.picked {
			return i
		}
	}
	return -1
}

// move selects another row, and brings it on the screen. From a selected row
// that is not on the screen it goes to the nearest edge of it.
func (m *model) move(by int) tea.Cmd {
	n, rows, rank := m.count(), m.rows(), m.rank()
	if n == 0 {
		return nil
	}
	bottom := min(m.offset+rows, n) - 1
	to := rank + by
	switch {
	case by == -1<<30:
		to = 0
	case by == 1<<30:
		to = n - 1
	case rank < 0 && by < 0:
		to = bottom
	case rank < 0:
		to = m.offset
	case rank < m.offset:
		to = m.offset
	case rank > bottom:
		to = bottom
	}
	return m.choose(max(0, min(to, n-1)))
}

// choose selects the row at a place.
func (m *model) choose(rank int) tea.Cmd {
	rows := m.rows()
	if m.grouping != bySocket {
		key := m.groups[rank].key
		m.picked = &key
		m.offset = max(min(m.offset, rank), rank-rows+1)
		return nil
	}
	if m.busy { // only what is on the page can be had
		rank = max(m.page.first, min(rank, m.page.first+len(m.page.rows)-1))
	}
	m.offset = max(min(m.offset, rank), rank-rows+1)
	if !m.busy {
		m.turn()
	}
	i := rank - m.page.first
	if i < 0 || i >= len(m.page.rows) {
		return nil
	}
	row := &m.page.rows[i]
	m.selected, m.last, m.gone = row.serial, row, false
	m.page.picked, m.page.rank = row, rank
	if !m.busy {
		m.trace()
	}
	return m.fetch()
}

func (m *model) unselect() {
	m.selected, m.last, m.gone, m.picked = 0, nil, false, nil
	m.page.picked, m.page.rank = nil, -1
	m.detail.shown = false
}

// open shows the details of a socket, or the sockets of a group.
func (m *model) open() tea.Cmd {
	if m.grouping == bySocket {
		m.detail.shown = !m.detail.shown
		m.turn()
		if m.detail.shown && m.selected == 0 {
			return m.move(1)
		}
		return m.fetch()
	}
	rank := m.rank()
	if rank < 0 {
		return m.move(1)
	}
	g := m.groups[rank]
	if g.filter == "" {
		m.message = "no filter names these sockets: " + g.name
		return nil
	}
	text := g.filter
	if strings.TrimSpace(m.text) != "" {
		text = "(" + m.text + ") and " + text
	}
	f, err := m.parse(m.ctx, text)
	if err != nil {
		m.message = firstLine(err)
		return nil
	}
	m.filter, m.text, m.grouping, m.offset = f, text, bySocket, 0
	return m.read()
}

// sortBy goes to the next or previous column on the screen.
func (m *model) sortBy(step int) tea.Cmd {
	m.offset = 0
	if m.grouping != bySocket {
		n := len(groupColumns)
		m.groupSort = (m.groupSort + step + n) % n
		m.groupOrder = groupColumns[m.groupSort].number != nil
		m.turn()
		return nil
	}
	columns := []table.Column{rateColumn}
	for _, c := range m.columns() {
		columns = append(columns, c.Column)
	}
	at := 0
	for i, c := range columns {
		if c.Name == m.order.column.Name {
			at = i
		}
	}
	c := columns[(at+step+len(columns))%len(columns)]
	m.order = order{c, c.Right} // of numbers the largest is wanted first
	m.turn()
	return nil
}

func (m *model) reverse() {
	if m.grouping != bySocket {
		m.groupOrder = !m.groupOrder
	} else {
		m.order.reverse = !m.order.reverse
	}
	m.turn()
}

func (m *model) regroup() {
	m.grouping = (m.grouping + 1) % groupings
	m.offset = 0
	m.turn()
}

// firstLine is what of an error fits the screen.
func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}
