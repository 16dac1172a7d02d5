package tui

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/sockdiag"
	"github.com/fivetuple/fivetuple/table"
)

// kill is the question whether a socket shall be closed. It is about the socket
// that was selected when it was asked, whatever the table does meanwhile.
type kill struct {
	row pageRow
}

type killedMsg struct {
	row    pageRow
	result table.Closed
	err    error
}

func (m *model) askKill() tea.Cmd {
	switch {
	case m.grouping != bySocket:
		m.message = "Choose a single socket to close: Enter shows those of a " + [...]string{"", "process", "port", "peer"}[m.grouping] + "."
	case m.last == nil:
		m.message = "Choose the socket to close first, with the arrow keys."
	case m.gone:
		m.message = "That socket is closed already."
	default:
		row := *m.last
		row.Info = infoOf(&row)
		m.dialog = &kill{row}
	}
	return nil
}

// question says exactly what would be closed, and what that does.
func (k *kill) question() []string {
	r := &k.row
	lines := []string{"Close this socket?", "", "  " + describe(r), "  " + holders(r), ""}
	switch {
	case r.State == fivetuple.StateListen:
		lines = append(lines, "Nobody can connect there any more; its connections go on.")
	case r.Protocol == fivetuple.TCP && r.State == fivetuple.StateTimeWait:
		lines = append(lines, "It is over already; the kernel forgets its ports at once.")
	case r.Protocol == fivetuple.TCP:
		lines = append(lines, "Its process gets ECONNABORTED, the peer a reset.", "Data on the way is lost.",
			"Without CAP_NET_ADMIN it is shut down: both read the end.")
	case r.Protocol == fivetuple.UDP || r.Protocol == fivetuple.UDPLite:
		lines = append(lines, "Its process gets ECONNABORTED once; a port that it chose stays bound.")
	case r.Protocol.IsUnix():
		lines = append(lines, "It is shut down: its process and the peer read the end.")
	default:
		lines = append(lines, "Its process gets ECONNABORTED.")
	}
	return append(lines, "", "y  close it     any other key  leave it")
}

// describe is the socket in one line.
func describe(r *pageRow) string {
	s := fmt.Sprintf("%s %s %s", r.Protocol, r.State, text("local", r))
	if r.Remote.IsValid() {
		s += " to " + text("remote", r)
	}
	return s
}

func holders(r *pageRow) string {
	if t := text("process", r); t != "" {
		return "held by " + t
	}
	if r.unowned == "" || r.unowned == "..." {
		return "its process is being looked for"
	}
	return "no process is known: " + strings.Trim(r.unowned, "()")
}

// answer takes the answer to the question. Only a plain "y" is yes.
func (m *model) answer(key string) tea.Cmd {
	row := m.dialog.row
	m.dialog = nil
	if key != "y" && key != "Y" {
		m.message = "Nothing was closed."
		return nil
	}
	m.message = "Closing " + describe(&row)
	return func() tea.Msg {
		ctx, cancel := context.WithTimeout(m.ctx, 5*time.Second)
		defer cancel()
		result, err := m.kill(ctx, &row.Row)
		return killedMsg{row, result, err}
	}
}

func (m *model) killed(msg killedMsg) tea.Cmd {
	m.message = killMessage(&msg)
	return m.read()
}

func killMessage(msg *killedMsg) string {
	what := describe(&msg.row)
	switch {
	case msg.result == table.Destroyed:
		return "Closed " + what
	case msg.result == table.ShutDown:
		return "Shut down " + what
	case msg.result == table.Aborted:
		return "Its process was told, and it is still bound: " + what
	case msg.result == table.Gone:
		return "It was closed before: " + what
	case errors.Is(msg.err, fs.ErrPermission):
		return "Not closed: that takes CAP_NET_ADMIN; run ft top as root."
	case errors.Is(msg.err, errors.ErrUnsupported):
		return "Not closed: only the process that holds it can close it."
	}
	return "Not closed: " + firstLine(msg.err)
}

// detail is what the kernel says of the selected socket alone, in full.
type detail struct {
	shown  bool
	serial uint64 // whose it is
	socket sockdiag.Socket
	err    error
}

type detailMsg struct {
	serial uint64
	socket sockdiag.Socket
	err    error
}

// everything is all that can be told of one socket.
const everything = sockdiag.WithInfo | sockdiag.WithMemory | sockdiag.WithCongestion | sockdiag.WithCgroup | sockdiag.WithMark | sockdiag.WithTOS

// fetch reads the selected socket in full.
func (m *model) fetch() tea.Cmd {
	if m.last == nil || m.gone || m.selected == 0 {
		return nil
	}
	serial, s := m.selected, m.last.Socket
	return func() tea.Msg {
		got, err := m.get(m.ctx, s, everything)
		return detailMsg{serial, got, err}
	}
}

func (m *model) hasDetail(msg detailMsg) {
	if msg.serial != m.selected {
		return
	}
	m.detail.serial, m.detail.err = msg.serial, msg.err
	if msg.err == nil {
		m.detail.socket = msg.socket
	}
	m.checkGone()
}

// checkGone decides whether a selected socket that is not among the rows is
// closed, or does not match the filter any more.
func (m *model) checkGone() {
	if m.page.picked != nil || m.selected == 0 {
		return
	}
	m.gone = m.filter == nil || m.detail.serial == m.selected && errors.Is(m.detail.err, fs.ErrNotExist)
}
