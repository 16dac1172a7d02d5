package cli

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/owner"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/table"
)

// groupRow is a group of sockets as JSON has it.
type groupRow struct {
	Group       string          `json:"group"`
	Protocol    string          `json:"protocol,omitempty"`
	Port        uint16          `json:"port,omitempty"`
	Outgoing    bool            `json:"outgoing,omitempty"`
	Sockets     int             `json:"sockets"`
	Listening   int             `json:"listening"`
	Connections int             `json:"connections"`
	Peers       int             `json:"peers"`
	States      map[string]int  `json:"states"`
	RecvQueue   uint64          `json:"recv_queue"`
	SendQueue   uint64          `json:"send_queue"`
	Owners      []owner.Process `json:"owners"`
}

// printGroups prints the rows put together, a table in no more than so many
// lines unless they are 0.
func (a *app) printGroups(t *table.Table, l listing, lines int) error {
	groups, err := t.Group(l.by)
	if err != nil {
		return err
	}
	rows := make([]groupRow, len(groups))
	for i, g := range groups {
		rows[i] = groupRow{
			Group: g.Key, Port: g.Port, Outgoing: g.Outgoing, Sockets: len(g.Rows), Listening: g.Listening, Connections: g.Connected,
			Peers: g.Peers, States: map[string]int{}, RecvQueue: g.RecvQueue, SendQueue: g.SendQueue, Owners: append([]owner.Process{}, g.Owners...),
		}
		if g.Protocol != fivetuple.NetworkNone {
			rows[i].Protocol = g.Protocol.String()
		}
		for state, n := range g.States {
			rows[i].States[state.String()] = n
		}
	}
	columns := groupColumns(l.by)
	if !a.isTable() {
		_, err = printRows(a, "groups", each(rows), columns)
		return err
	}
	var text strings.Builder
	if _, err := printTable(&text, each(rows), visible(columns, a.format == formatWide), useColor(a.out), terminalWidth(a.out)); err != nil {
		return err
	}
	below := newFooter(t, len(t.Rows), l)
	if _, err := io.WriteString(a.out, cutLines(text.String(), below.room(lines, terminalWidth(a.out)))); err != nil {
		return err
	}
	below.print(a.err)
	return nil
}

// cutLines cuts text to so many lines, of which the last says so; 0 is no bound.
func cutLines(text string, lines int) string {
	all := strings.SplitAfter(strings.TrimSuffix(text, "\n"), "\n")
	if lines == 0 || len(all) <= lines {
		return text
	}
	kept := lines - 1
	return strings.Join(all[:kept], "") + "and " + plural(len(all)-kept, "more line") + "\n"
}

func groupColumns(by string) []column[groupRow] {
	count := func(head string, n func(groupRow) int) column[groupRow] {
		return column[groupRow]{head: head, right: true, text: func(g groupRow) string { return strconv.Itoa(n(g)) }}
	}
	bytes := func(head, key string, n func(groupRow) uint64) column[groupRow] {
		return column[groupRow]{head: head, right: true, key: key, wide: true,
			text:  func(g groupRow) string { return stats.FormatBytes(n(g)) },
			value: func(g groupRow) string { return strconv.FormatUint(n(g), 10) }}
	}
	return []column[groupRow]{
		{head: by, key: "group", text: func(g groupRow) string { return g.Group }},
		count("sockets", func(g groupRow) int { return g.Sockets }),
		count("listening", func(g groupRow) int { return g.Listening }),
		count("connections", func(g groupRow) int { return g.Connections }),
		count("peers", func(g groupRow) int { return g.Peers }),
		{head: "states", text: func(g groupRow) string { return stateCounts(g.States) }},
		bytes("recv-q", "recv_queue", func(g groupRow) uint64 { return g.RecvQueue }),
		bytes("send-q", "send_queue", func(g groupRow) uint64 { return g.SendQueue }),
		{head: "processes", text: func(g groupRow) string { return processNames(g.Owners) }},
	}
}

// stateCounts writes "3 ESTABLISHED, 1 LISTEN", the most first.
func stateCounts(states map[string]int) string {
	var parts []string
	for s := range states {
		parts = append(parts, s)
	}
	slices.SortFunc(parts, func(a, b string) int { return cmp.Or(cmp.Compare(states[b], states[a]), cmp.Compare(a, b)) })
	for i, s := range parts {
		parts[i] = fmt.Sprintf("%d %s", states[s], s)
	}
	return strings.Join(parts, ", ")
}

// processNames writes "nginx/123,124 sh/7".
func processNames(processes []owner.Process) string {
	const most = 4
	var b strings.Builder
	for i, p := range processes {
		switch {
		case i == most:
			fmt.Fprintf(&b, " and %d more", len(processes)-most)
			return b.String()
		case i > 0 && processes[i-1].Command == p.Command:
			fmt.Fprintf(&b, ",%d", p.PID)
			continue
		case i > 0:
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%s/%d", p.Command, p.PID)
	}
	return b.String()
}
