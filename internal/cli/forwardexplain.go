package cli

import "github.com/spf13/cobra"

func (a *app) forwardExplain() *cobra.Command {
	return &cobra.Command{Use: "explain [CONN]", Short: "What every running relay does, and which side is slow", Example: "  ft forward explain\n  ft forward explain 7",
		RunE: func(c *cobra.Command, args []string) error { return nil }}
}
