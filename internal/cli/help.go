package cli

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// helpWidth is the width that help is wrapped to, in columns.
const helpWidth = 80

// writeHelp prints the help of a command: worked examples first, then how it is
// called, what it does, and its flags.
func writeHelp(out io.Writer, c *cobra.Command) error {
	w := bufio.NewWriter(out)
	if c.HasExample() {
		fmt.Fprintf(w, "Examples:\n%s\n\n", c.Example)
	}
	fmt.Fprintf(w, "Usage:\n  %s\n", useLine(c))
	if about := c.Long; about != "" || c.Short != "" {
		if about == "" {
			about = c.Short + "."
		}
		for paragraph := range strings.SplitSeq(about, "\n\n") {
			if !strings.HasPrefix(paragraph, " ") { // what is indented is an example or a list
				paragraph = wrap(paragraph, "")
			}
			fmt.Fprintf(w, "\n%s\n", paragraph)
		}
	}
	if c.HasAvailableSubCommands() {
		fmt.Fprint(w, "\nCommands:\n")
		for _, sub := range c.Commands() {
			if sub.IsAvailableCommand() {
				fmt.Fprintf(w, "  %-*s %s\n", sub.NamePadding(), sub.Name(), sub.Short)
			}
		}
	}
	if c.HasAvailableLocalFlags() {
		fmt.Fprintf(w, "\nFlags:\n%s", c.LocalFlags().FlagUsagesWrapped(helpWidth))
	}
	if c.HasAvailableInheritedFlags() {
		fmt.Fprintf(w, "\nFlags of every command:\n%s", c.InheritedFlags().FlagUsagesWrapped(helpWidth))
	}
	if c.HasAvailableSubCommands() {
		fmt.Fprintf(w, "\n\"%s COMMAND --help\" tells more about a command.\n", c.CommandPath())
	}
	return w.Flush()
}

func useLine(c *cobra.Command) string {
	switch commands := c.CommandPath() + " COMMAND [flags]"; {
	case !c.HasAvailableSubCommands():
		return c.UseLine()
	case takesArguments(c):
		return c.UseLine() + "\n  " + commands
	default:
		return commands
	}
}

// takesArguments says whether a command does something without one of its commands, too.
func takesArguments(c *cobra.Command) bool { return strings.Contains(c.Use, " ") }

// helpCommand is `ft help COMMAND`, for those who look for it there. Unlike
// cobra's own it fails for a command that does not exist.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Help about a command",
		RunE: func(c *cobra.Command, args []string) error {
			about, rest, err := c.Root().Find(args)
			if err == nil {
				err = noArgs(about, rest)
			}
			if err != nil {
				return err
			}
			about.InitDefaultHelpFlag()
			return about.Help()
		},
	}
}

// showHelp is what a command does that only has commands below it.
func showHelp(c *cobra.Command, _ []string) error { return c.Help() }

// unknownCommand is the error for a command that does not exist, with the
// nearest ones that do.
func unknownCommand(c *cobra.Command, name string) error {
	c.SuggestionsMinimumDistance = 2 // letters that may be wrong
	near := c.SuggestionsFor(name)
	if len(near) == 0 {
		return usage("unknown command %q for %q: see `%s --help`", name, c.CommandPath(), c.CommandPath())
	}
	return usage("unknown command %q for %q: did you mean %s?", name, c.CommandPath(), strings.Join(near, " or "))
}

// flagError makes a usage error of a flag that is wrong. Behind an unknown
// command every flag is unknown; the command is what is wrong then.
func flagError(c *cobra.Command, err error) error {
	if args := c.Flags().Args(); c.HasSubCommands() && !takesArguments(c) && len(args) > 0 {
		return unknownCommand(c, args[0])
	}
	return usage("%w: see `%s --help`", err, c.CommandPath())
}

// wrap breaks text at spaces so that no line is longer than helpWidth, and
// begins each with indent.
func wrap(text, indent string) string {
	var b strings.Builder
	column := 0
	for word := range strings.FieldsSeq(text) {
		switch {
		case column == 0:
			b.WriteString(indent)
			column = len(indent)
		case column+1+len(word) > helpWidth:
			b.WriteString("\n" + indent)
			column = len(indent)
		default:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += len(word)
	}
	return b.String()
}
