package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
)

// versionInfo says which program this is.
type versionInfo struct {
	Version  string `json:"version"`
	Go       string `json:"go"`
	OS       string `json:"os"`
	Arch     string `json:"arch"`
	Commit   string `json:"commit"`   // "" if it was not built from a repository
	Modified bool   `json:"modified"` // with changes that are not in the commit
}

type versionDocument struct {
	Schema int `json:"schema"`
	versionInfo
}

func (a *app) version() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of ft, and what it was built from",
		Example: `  ft version            ft v1.2.0 (go1.26.8 linux/amd64, commit 0123456789ab)
  ft version -o json    the same for programs`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error { return a.printVersion() },
	}
}

func (a *app) printVersion() error {
	v := buildVersion(debug.ReadBuildInfo())
	var err error
	switch a.format {
	case formatTable, formatWide:
		_, err = fmt.Fprintln(a.out, v)
	case formatJSON:
		err = writeJSON(a.out, versionDocument{schema, v}, "\n")
	default:
		_, err = printRows(a, "", each([]versionInfo{v}), versionColumns)
	}
	return err
}

// buildVersion reads what the go command has put into the program (go help buildvcs).
func buildVersion(info *debug.BuildInfo, ok bool) versionInfo {
	v := versionInfo{Version: "(devel)", Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
	if !ok {
		return v
	}
	if info.Main.Version != "" {
		v.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Commit = s.Value
		case "vcs.modified":
			v.Modified = s.Value == "true"
		}
	}
	return v
}

// String returns "ft v1.2.0 (go1.26.8 linux/amd64, commit 0123456789ab)".
func (v versionInfo) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "ft %s (%s %s/%s", v.Version, v.Go, v.OS, v.Arch)
	if v.Commit != "" {
		fmt.Fprintf(&b, ", commit %.12s", v.Commit)
		if v.Modified {
			b.WriteString(" with changes")
		}
	}
	b.WriteByte(')')
	return b.String()
}

var versionColumns = []column[versionInfo]{
	{head: "version", text: func(v versionInfo) string { return v.Version }},
	{head: "go", text: func(v versionInfo) string { return v.Go }},
	{head: "os", text: func(v versionInfo) string { return v.OS }},
	{head: "arch", text: func(v versionInfo) string { return v.Arch }},
	{head: "commit", text: func(v versionInfo) string { return v.Commit }},
	{head: "modified", text: func(v versionInfo) string { return fmt.Sprint(v.Modified) }},
}
