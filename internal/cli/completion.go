package cli

import (
	"io"
	"slices"

	"github.com/spf13/cobra"
)

// completion is `ft completion SHELL`. Unlike cobra's own it fails for a shell
// that it does not know.
func completion() *cobra.Command {
	shells := []string{"bash", "zsh", "fish", "powershell"}
	return &cobra.Command{
		Use:    "completion SHELL",
		Short:  "Print a script that completes command lines",
		Long:   "Prints the script by which a shell completes the command lines of ft: for bash, zsh, fish or powershell.",
		Hidden: true,
		Example: `  ft completion bash > /etc/bash_completion.d/ft
  ft completion fish > ~/.config/fish/completions/ft.fish
  ft completion zsh > "${fpath[1]}/_ft"`,
		ValidArgs: shells,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) != 1 || !slices.Contains(shells, args[0]) {
				return usage("%s takes one argument: bash, zsh, fish or powershell", c.CommandPath())
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			write := map[string]func(io.Writer) error{
				"bash":       func(w io.Writer) error { return c.Root().GenBashCompletionV2(w, true) },
				"zsh":        c.Root().GenZshCompletion,
				"fish":       func(w io.Writer) error { return c.Root().GenFishCompletion(w, true) },
				"powershell": c.Root().GenPowerShellCompletionWithDesc,
			}
			return write[args[0]](c.OutOrStdout())
		},
	}
}
