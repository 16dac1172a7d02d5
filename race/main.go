// Command race measures ft against the known tools: in turn, in the same run,
// several rounds, with the median of each and the ratio. Before it compares
// times it checks that both did the same work.
//
//	make race            every race
//	make race ONLY=scan  one
//
// The races run in a network namespace of their own (Linux), where nothing but
// what they opened listens.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// race is one comparison.
type race struct {
	name, what string
	ours       contender
	theirs     []contender
	target     float64 // what our median may be of theirs, at most
}

// contender does the work once and returns what it found, to be compared.
type contender struct {
	name string
	run  func() (result string, err error)
}

func main() {
	ft := flag.String("ft", "../ft", "the ft to measure")
	rounds := flag.Int("rounds", 5, "how many rounds")
	flag.Parse()
	path, err := filepath.Abs(*ft)
	if err == nil {
		err = enterNamespace()
	}
	if err == nil {
		err = runAll(path, flag.Arg(0), *rounds)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "race:", err)
		os.Exit(1)
	}
}

func runAll(ft, only string, rounds int) error {
	races, err := scanRaces(ft)
	if err != nil {
		return err
	}
	ran := false
	for _, r := range races {
		if only == "" || only == r.name {
			ran = true
			if err := r.run(rounds); err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
		}
	}
	if !ran {
		return fmt.Errorf("there is no race %q", only)
	}
	return nil
}

func (r race) run(rounds int) error {
	fmt.Printf("%s: %s\n", r.name, r.what)
	all := append([]contender{r.ours}, r.theirs...)
	times := make([][]time.Duration, len(all))
	want := ""
	for round := range rounds + 1 { // the first warms up and is not counted
		for i, c := range all {
			began := time.Now()
			got, err := c.run()
			took := time.Since(began)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			if round == 0 && i == 0 {
				want = got
			}
			if got == "" || got != want {
				return fmt.Errorf("%s found %q where %s found %q", c.name, got, all[0].name, want)
			}
			if round > 0 {
				times[i] = append(times[i], took)
			}
		}
	}
	ours := median(times[0])
	fmt.Printf("  %-12s %10v\n", r.ours.name, ours.Round(time.Microsecond))
	for i, c := range r.theirs {
		theirs := median(times[i+1])
		ratio := float64(ours) / float64(theirs)
		verdict := "met"
		if ratio > r.target {
			verdict = "MISSED"
		}
		fmt.Printf("  %-12s %10v  ratio %.2f, target %.2f: %s\n", c.name, theirs.Round(time.Microsecond), ratio, r.target, verdict)
	}
	return nil
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}
