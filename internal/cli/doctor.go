package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fivetuple/fivetuple/doctor"
	"github.com/fivetuple/fivetuple/internal/printable"
)

func (a *app) doctor() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Limits and rights that matter for sockets, and how to change them",
		Long: `Examines this machine: descriptors, buffers, backlogs, ports and how far they are
used up, connections that are not closed, capabilities, and what the kernel can do. It shows what is not
in order, with the effect and the line that changes it; with --all everything.
Nothing is changed.

The levels are ok, unknown (it could not be read), note (some uses run into it),
warning (it will cause trouble) and problem (it does harm now). The exit code is
1 if there is a problem. Network settings are those of this network namespace.`,
		Example: `  ft doctor             what is not in order on this machine
  ft doctor --all       every check
  ft doctor -o ndjson   for programs, one object a line`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.examine(c.Context(), all) },
	}
	c.Flags().BoolVar(&all, "all", false, "show what is in order, too")
	return c
}

func (a *app) examine(ctx context.Context, all bool) error {
	stop := a.progress(func(took time.Duration) string {
		return fmt.Sprintf("examining this machine for %v", took.Round(time.Second))
	})
	findings, err := doctor.Examine(ctx, doctor.Options{})
	stop()
	if err != nil {
		return err
	}
	return a.printFindings(findings, all)
}

// printFindings prints what is not in order, or all. A problem makes the answer no.
func (a *app) printFindings(findings []doctor.Finding, all bool) error {
	shown := findings
	if !all {
		shown = slices.DeleteFunc(slices.Clone(findings), func(f doctor.Finding) bool { return f.Level == doctor.OK })
	}
	var err error
	if a.format == formatTable {
		w := bufio.NewWriter(a.out)
		writeFindings(w, shown, all, useColor(a.out))
		fmt.Fprintln(w, countFindings(findings))
		writeHints(w, shown)
		err = w.Flush()
	} else {
		_, err = printRows(a, "findings", each(shown), findingColumns)
	}
	if err == nil && slices.ContainsFunc(findings, func(f doctor.Finding) bool { return f.Level == doctor.Problem }) {
		err = answerIsNo
	}
	return err
}

var findingColumns = []column[doctor.Finding]{
	{head: "level", text: func(f doctor.Finding) string { return f.Level.String() }},
	{head: "group", text: func(f doctor.Finding) string { return f.Group }},
	{head: "check", text: func(f doctor.Finding) string { return f.Check }},
	{head: "subject", text: func(f doctor.Finding) string { return f.Subject }},
	{head: "value", text: func(f doctor.Finding) string { return f.Value }},
	{head: "effect", text: func(f doctor.Finding) string { return f.Effect }},
	{head: "fix", text: func(f doctor.Finding) string { return f.Fix }},
}

// subjectsShown is how many findings of one check are shown without --all.
const subjectsShown = 5

// writeFindings prints the findings under their groups.
func writeFindings(w io.Writer, findings []doctor.Finding, all, color bool) {
	group, check, subjects := "", "", 0
	more := func() {
		if n := subjects - subjectsShown; n > 0 && !all {
			fmt.Fprintf(w, "           and %d more: ft doctor --all\n", n)
		}
	}
	for _, f := range findings {
		if f.Check != check {
			more()
			check, subjects = f.Check, 0
		}
		if subjects++; subjects > subjectsShown && !all {
			continue
		}
		if f.Group != group {
			if group != "" {
				fmt.Fprintln(w)
			}
			group = f.Group
			fmt.Fprintln(w, bold(group, color))
		}
		writeFinding(w, f, color)
	}
	more()
	if len(findings) > 0 {
		fmt.Fprintln(w)
	}
}

// writeFinding prints the level and state of a check, and below them what it
// leads to and what changes it.
func writeFinding(w io.Writer, f doctor.Finding, color bool) {
	const indent = "           "
	state := f.Check + ": " + f.Value
	if f.Subject != "" {
		state = f.Check + " of " + f.Subject + ": " + f.Value
	}
	level := fmt.Sprintf("  %-7s  ", f.Level)
	text := strings.TrimPrefix(wrap(printable.Escape(state), indent), indent)
	fmt.Fprintf(w, "%s%s\n", levelColor(level, f.Level, color), text)
	if f.Effect != "" {
		fmt.Fprintln(w, wrap(printable.Escape(f.Effect), indent))
	}
	if f.Fix != "" {
		fmt.Fprintln(w, wrap("fix: "+printable.Escape(f.Fix), indent))
	}
}

func bold(text string, color bool) string {
	if !color {
		return text
	}
	return "\x1b[1m" + text + "\x1b[0m"
}

// levelColor makes problems red and warnings yellow.
func levelColor(text string, level doctor.Level, color bool) string {
	switch {
	case color && level == doctor.Problem:
		return "\x1b[31m" + text + "\x1b[0m"
	case color && level == doctor.Warning:
		return "\x1b[33m" + text + "\x1b[0m"
	}
	return text
}

// countFindings counts the checks by their worst finding: "31 checks: 27 fine, 4 notes".
func countFindings(findings []doctor.Finding) string {
	worst := map[string]doctor.Level{}
	for _, f := range findings {
		worst[f.Check] = max(worst[f.Check], f.Level)
	}
	counts := map[doctor.Level]int{}
	for _, level := range worst {
		counts[level]++
	}
	line := fmt.Sprintf("%s: %d fine", plural(len(worst), "check"), counts[doctor.OK])
	for _, level := range []doctor.Level{doctor.Note, doctor.Warning, doctor.Problem} {
		if n := counts[level]; n > 0 {
			line += ", " + plural(n, level.String())
		}
	}
	if n := counts[doctor.Unknown]; n > 0 {
		line += fmt.Sprintf(", %d unknown", n)
	}
	return line
}

// writeHints says once what holds for many of the fixes shown.
func writeHints(w io.Writer, shown []doctor.Finding) {
	var sysctl bool
	var caps []string
	for _, f := range shown {
		sysctl = sysctl || strings.Contains(f.Fix, "sysctl -w ")
		if rest, ok := strings.CutPrefix(f.Fix, "setcap "); ok {
			name, _, _ := strings.Cut(rest, "+")
			caps = append(caps, name)
		}
	}
	if sysctl {
		fmt.Fprintln(w, "\nsysctl -w, as root, lasts until the machine restarts. To keep a setting write")
		fmt.Fprintln(w, "NAME = VALUE to a file such as /etc/sysctl.d/90-sockets.conf.")
	}
	if len(caps) > 1 {
		fmt.Fprintln(w, "\nsetcap, as root, replaces what it set before. To give the program all of these:")
		fmt.Fprintf(w, "  setcap %s+ep \"$(command -v ft)\"\n", strings.Join(caps, ","))
	}
}
