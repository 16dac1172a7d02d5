package cli

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fivetuple/fivetuple/sockopt"
)

func (a *app) opts() *cobra.Command {
	return &cobra.Command{
		Use:   "opts [NAME...]",
		Short: "List the socket options, or show some in full",
		Long: `Lists the socket options that --opt takes, with the values that a new TCP
socket (or the kind that has the option) of this machine has. With names it shows those options in full, each with an
example. A name can be the kernel's constant, too: SO_KEEPALIVE.`,
		Example: `  ft opts                 every socket option there is
  ft opts keepalive       what it does, how it is written, an example
  ft opts -o wide         with constants, levels, values, since which kernel`,
		Args: cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, names []string) error { return a.listOptions(names) },
	}
}

func (a *app) listOptions(names []string) error {
	options, unknown := chosenOptions(names)
	var err error
	if len(names) > 0 && a.format == formatTable {
		err = showOptions(a.out, options)
	} else {
		_, err = printRows(a, "options", each(options), optionColumns)
	}
	if err != nil {
		return err
	}
	for _, err := range unknown {
		a.warn("%v", err)
	}
	if len(unknown) > 0 {
		return answerIsNo
	}
	return nil
}

// chosenOptions returns the options of these names, or all, and an error for
// each name that no option has.
func chosenOptions(names []string) (options []optionRow, unknown []error) {
	if len(names) == 0 {
		for _, o := range sockopt.All() {
			options = append(options, newOptionRow(o))
		}
	}
	for _, name := range names {
		name, _, _ = strings.Cut(name, "=")
		if o, ok := sockopt.Lookup(name); ok {
			options = append(options, newOptionRow(o))
		} else {
			_, err := sockopt.Parse(name) // knows the nearest names
			unknown = append(unknown, err)
		}
	}
	return options, unknown
}

// optionRow is an option, and the value that it has on a new socket.
type optionRow struct {
	sockopt.Option
	Default string // "" if it has none, or none that may be read
}

func newOptionRow(o sockopt.Option) optionRow {
	row := optionRow{Option: o}
	if s, err := sockopt.Default(o.Name); err == nil {
		row.Default = s.Value()
	}
	return row
}

var optionColumns = []column[optionRow]{
	{head: "name", text: func(o optionRow) string { return o.Name }},
	{head: "kind", text: func(o optionRow) string { return o.Kind.String() }},
	{head: "unit", wide: true, text: func(o optionRow) string { return o.Unit }},
	{head: "sockets", wide: true, text: func(o optionRow) string { return o.Sockets.String() }},
	{head: "default", slim: true, text: shortDefault},
	{head: "default", wide: true, text: func(o optionRow) string { return o.Default }},
	{head: "constant", wide: true, text: func(o optionRow) string { return o.Constant }},
	{head: "level", wide: true, text: func(o optionRow) string { return o.LevelName() }},
	{head: "access", wide: true, text: func(o optionRow) string { return o.Access.String() }},
	{head: "privilege", wide: true, text: func(o optionRow) string { return o.Privilege }},
	{head: "man", wide: true, text: func(o optionRow) string { return o.Man }},
	{head: "since", wide: true, text: func(o optionRow) string { return o.Since }},
	{head: "values", wide: true, text: func(o optionRow) string { return strings.Join(valueNames(o.Option), " ") }},
	{head: "doc", text: func(o optionRow) string { return o.Doc }},
}

func valueNames(o sockopt.Option) []string {
	names := []string{}
	for _, v := range o.Values {
		names = append(names, v.Name)
	}
	return names
}

func (o optionRow) MarshalJSON() ([]byte, error) {
	j := optionJSON{
		Name: o.Name, Constant: o.Constant, Aliases: append([]string{}, o.Aliases...),
		Level: o.LevelName(), Number: o.Number, Kind: o.Kind.String(), Unit: o.Unit,
		Access: o.Access.String(), Sockets: o.Sockets.String(),
		Values: valueNames(o.Option), Privilege: o.Privilege, Doc: o.Doc, Man: o.Man, Since: o.Since,
	}
	if o.Default != "" {
		j.Default = &o.Default
	}
	return json.Marshal(j)
}

type optionJSON struct {
	Name      string   `json:"name"`
	Constant  string   `json:"constant"`
	Aliases   []string `json:"aliases"`
	Level     string   `json:"level"`
	Number    int      `json:"number"`
	Kind      string   `json:"kind"`
	Unit      string   `json:"unit"`
	Access    string   `json:"access"`
	Sockets   string   `json:"sockets"`
	Default   *string  `json:"default"`
	Values    []string `json:"values"`
	Privilege string   `json:"privilege"`
	Doc       string   `json:"doc"`
	Man       string   `json:"man"`
	Since     string   `json:"since"`
}

// optFlag gives a command that opens sockets the flag --opt.
func optFlag(c *cobra.Command, settings *sockopt.Settings) {
	c.Flags().Var(settings, "opt", "socket option, such as keepalive=30s/10s/3; give it several times for several; ft opts lists them all")
	c.RegisterFlagCompletionFunc("opt", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		all := slices.DeleteFunc(sockopt.All(), func(o sockopt.Option) bool { return o.Access == sockopt.ReadOnly })
		names := make([]string, len(all))
		for i, o := range all {
			names[i] = cobra.CompletionWithDesc(o.Name, o.Doc)
		}
		return names, cobra.ShellCompDirectiveNoSpace
	})
}

// shortDefault leaves out reports, which are no setting that a socket begins
// with, and cuts what would take the room of the text beside it.
func shortDefault(o optionRow) string {
	const most = 12
	if o.Kind == sockopt.Report || o.Kind == sockopt.Hex {
		return ""
	}
	if text := []rune(o.Default); len(text) > most {
		return string(text[:most-1]) + "…"
	}
	return o.Default
}
