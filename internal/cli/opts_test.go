package cli

import (
	"io"
	"testing"

	"github.com/spf13/cobra"

	"github.com/fivetuple/fivetuple/sockopt"
)

func TestEveryOptionThatCanBeSetHasAnExampleThatParses(t *testing.T) {
	for _, o := range sockopt.All() {
		example := exampleOf(o)
		if o.Access == sockopt.ReadOnly {
			if example != "" {
				t.Errorf("%s can only be read, and has the example %q", o.Name, example)
			}
			continue
		}
		if s, err := sockopt.Parse(example); err != nil || s.Option().Name != o.Name {
			t.Errorf("example %q of %s: parsed as %q with error %v", example, o.Name, s, err)
		}
		if kindWords[o.Kind] == "" {
			t.Errorf("%s: nothing says how a %s is written", o.Name, o.Kind)
		}
	}
}

func TestOptFlagAddsUpSettings(t *testing.T) {
	var settings sockopt.Settings
	c := &cobra.Command{Use: "x", RunE: func(*cobra.Command, []string) error { return nil }, SilenceErrors: true, SilenceUsage: true}
	c.SetOut(io.Discard)
	optFlag(c, &settings)
	c.SetArgs([]string{"--opt", "nodelay", "--opt=rcvbuf=64KiB,linger=5s"})
	if err := c.Execute(); err != nil {
		t.Fatal(err)
	}
	if got, want := settings.String(), "nodelay=on,rcvbuf=64KiB,linger=5s"; got != want {
		t.Errorf("settings %q, want %q", got, want)
	}
	c.SetArgs([]string{"--opt", "nodelay=maybe"})
	if err := c.Execute(); err == nil {
		t.Error("a bad value was taken")
	}
}
