package cli

import (
	"context"
	"log/slog"
	"strings"
)

// noteHandler writes a log as a person at a terminal reads it: the time, what happened,
// and what there is to say of it.
type noteHandler struct {
	app   *app
	level slog.Level
}

// Enabled implements [slog.Handler].
func (h *noteHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level }

// WithAttrs implements [slog.Handler]. The daemon's log has no attributes of its own.
func (h *noteHandler) WithAttrs([]slog.Attr) slog.Handler { return h }

// WithGroup implements [slog.Handler].
func (h *noteHandler) WithGroup(string) slog.Handler { return h }

// Handle implements [slog.Handler].
func (h *noteHandler) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "listening" {
		return nil // the command says it itself
	}
	var about, rest []string
	failure := ""
	r.Attrs(func(a slog.Attr) bool {
		switch text := a.Value.String(); a.Key {
		case "service":
			about = append(about, text)
		case "conn":
			about = append(about, "#"+text)
		case "socket":
			about = append(about, text)
		case "error":
			failure = ": " + text
		default:
			rest = append(rest, a.Key+" "+text)
		}
		return true
	})
	text := r.Time.Format("15:04:05.000") + " " + r.Message
	if len(about) > 0 {
		text += " " + strings.Join(about, " ")
	}
	if len(rest) > 0 {
		text += ": " + strings.Join(rest, ", ")
	}
	h.app.note("%s", text+failure)
	return nil
}
