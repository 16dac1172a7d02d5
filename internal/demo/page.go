package demo

import (
	"fmt"
	"io"

	"github.com/fivetuple/fivetuple/table"
)

// page writes the demo for a terminal of 80 columns.
type page struct {
	w     *sink
	color bool
}

// sink writes until a write fails, and keeps the error.
type sink struct {
	w   io.Writer
	err error
}

func (s *sink) Write(b []byte) (int, error) {
	if s.err == nil {
		_, s.err = s.w.Write(b)
	}
	return len(b), nil
}

const (
	bold  = "\x1b[1m"
	dim   = "\x1b[2m"
	green = "\x1b[32m"
	reset = "\x1b[0m"
)

func (p page) paint(style, s string) string {
	if !p.color {
		return s
	}
	return style + s + reset
}

func (p page) title(s string) { fmt.Fprintln(p.w, p.paint(bold, s)) }

func (p page) step(n int, s string) {
	fmt.Fprintf(p.w, "\n%s\n", p.paint(bold, fmt.Sprintf("%d. %s", n, s)))
}

func (p page) say(format string, args ...any) {
	fmt.Fprintf(p.w, "   %s\n", fmt.Sprintf(format, args...))
}

// claim marks what the kernel has just confirmed.
func (p page) claim(s string) { fmt.Fprintf(p.w, "   %s %s\n", p.paint(green, "ok"), s) }

func (p page) kernelRow(r table.Row) {
	t := r.Tuple()
	s := fmt.Sprintf("%-4s %-11s %s", r.Protocol, r.State, t.Local)
	if !t.Remote.IsZero() {
		s = fmt.Sprintf("%-4s %-11s %-15s  %s", r.Protocol, r.State, t.Local, t.Remote)
	}
	if len(r.Owners) > 0 {
		s += fmt.Sprintf("  %s[%d]", r.Owners[0].Command, r.Owners[0].PID)
	}
	p.kernelSays("%s", s)
}

func (p page) kernelSays(format string, args ...any) {
	fmt.Fprintf(p.w, "   %s\n", p.paint(dim, "kernel | "+fmt.Sprintf(format, args...)))
}
