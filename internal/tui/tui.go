// Package tui shows sockets live on a terminal.
//
// It stands on the kernel's socket table (package sockdiag), which it reads
// again and again into a book of what is known of each socket, and on Bubble
// Tea for keys and screen. On systems without that table [Run] fails with an
// error wrapping [errors.ErrUnsupported] and leaves the terminal alone.
package tui

import (
	"context"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/filter"
	"github.com/fivetuple/fivetuple/table"
)

// Options say what is shown and how. The zero value shows all IP sockets.
type Options struct {
	// Filter is the text of the filter to begin with; the user can change it.
	Filter string
	// Protocols narrow what is read; none means all IP protocols, or with All
	// every kind of socket.
	Protocols []fivetuple.Network
	All       bool
	// Interval between two readings, 1 s if it is 0. It is stretched while a
	// reading takes more than 30% of it.
	Interval time.Duration
	// Columns to show, as many as fit the width; none means a choice that fits.
	Columns []table.Column
	// Sort is the name of a column, with "-" before it for the largest first.
	// Empty means "-rate".
	Sort string
	// Ephemeral are the ports that the kernel gives to outgoing connections,
	// to warn before they run out; the zero value: it does not warn.
	Ephemeral fivetuple.PortRange
	// Close closes a socket; nil means [table.Close].
	Close func(context.Context, *table.Row) (table.Closed, error)
}

// Run shows sockets on the terminal until the user quits or ctx is done, neither of
// which is an error. It takes no signals: the caller lets those that are to end
// it end ctx. The terminal is left as it was found, also
// after a panic, which is an error.
func Run(ctx context.Context, in, out *os.File, o Options) error {
	defer debug.SetGCPercent(debug.SetGCPercent(50)) // most of the memory is the book, which stays
	within, stop := context.WithCancel(ctx)
	m, err := newModel(within, o)
	if err != nil {
		stop()
		return err
	}
	defer m.close(stop)
	if m.filter, err = filter.Parse(ctx, o.Filter); err != nil {
		return err
	}
	m.ascii = !speaksUTF8(os.Environ())
	if err := m.book.read(ctx, m.reading()); err != nil { // what cannot be read at all is said before the screen is taken
		return err
	}
	// Signals end ctx. If the program took them too it could wait for itself.
	p := tea.NewProgram(m, tea.WithoutSignalHandler(), tea.WithInput(in), tea.WithOutput(out), tea.WithFPS(30))
	defer context.AfterFunc(ctx, p.Quit)()
	if _, err = p.Run(); err != nil {
		return fmt.Errorf("show sockets on the terminal: %w", err)
	}
	return nil
}

// close waits for what runs beside the screen.
func (m *model) close(stop func()) {
	stop()
	m.working.Lock()
	defer m.working.Unlock()
	m.book.close()
}

// speaksUTF8 looks at the locale (locale(7)).
func speaksUTF8(environ []string) bool {
	for _, name := range []string{"LC_ALL=", "LC_CTYPE=", "LANG="} {
		for _, e := range environ {
			if v, ok := strings.CutPrefix(e, name); ok && v != "" {
				v = strings.ToLower(v)
				return strings.Contains(v, "utf-8") || strings.Contains(v, "utf8")
			}
		}
	}
	return false
}

// checkSort finds the column that [Options].Sort names.
func checkSort(name string) (c table.Column, reverse bool, err error) {
	if name == "" {
		name = "-rate"
	}
	name, reverse = strings.CutPrefix(name, "-")
	if name == "rate" {
		return rateColumn, reverse, nil
	}
	c, ok := table.ColumnNamed(name)
	if !ok {
		return c, false, fmt.Errorf("no column %q to sort by", name)
	}
	return c, reverse, nil
}
