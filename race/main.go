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
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// race is one comparison.
type race struct {
	name, what string
	ours       contender
	theirs     []contender
}

// contender does the work once. What it printed, to a file in memory, is read
// after the time was taken, for what it found, to be compared.
type contender struct {
	name   string
	run    func(out *os.File) error
	found  func(printed []byte) (string, error) // nil: nothing to compare
	target float64                              // what our median may be of this one's, at most; 0 for none
	over   time.Duration                        // or how much longer it may be
}

func main() {
	ft := flag.String("ft", "../ft", "the ft to measure")
	sockets := flag.Int("sockets", 100_000, "how many sockets the races of the socket table hold")
	hold := flag.Int("hold", 0, "hold so many sockets, and do nothing else")
	rounds := flag.Int("rounds", 5, "how many rounds")
	flag.Parse()
	if *hold > 0 {
		err := holdSockets(*hold)
		fmt.Fprintln(os.Stderr, "hold sockets:", err)
		os.Exit(1)
	}
	path, err := filepath.Abs(*ft)
	if err == nil {
		err = enterNamespace()
	}
	if err == nil {
		err = runAll(path, flag.Arg(0), *rounds, *sockets)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "race:", err)
		os.Exit(1)
	}
}

func runAll(ft, only string, rounds, sockets int) error {
	ran := false
	for _, group := range []struct {
		name  string
		races func() ([]race, func(), error)
	}{
		{"scan", func() ([]race, func(), error) { return scanRaces(ft) }},
		{"ls", func() ([]race, func(), error) { return lsRaces(ft, sockets) }},
	} {
		if only != "" && only != group.name {
			continue
		}
		ran = true
		if err := runGroup(group.races, rounds); err != nil {
			return fmt.Errorf("%s: %w", group.name, err)
		}
	}
	if !ran {
		return fmt.Errorf("there is no race %q", only)
	}
	return nil
}

func runGroup(prepare func() ([]race, func(), error), rounds int) error {
	races, done, err := prepare()
	if err != nil {
		return err
	}
	defer done()
	for _, r := range races {
		if err := r.run(rounds); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
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
			took, printed, err := c.time()
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			if c.found != nil && round < 2 { // what is counted may be the second
				got, err := c.found(printed)
				if err != nil {
					return fmt.Errorf("%s: %w", c.name, err)
				}
				if want == "" {
					want = got
				}
				if got == "" || got != want {
					return fmt.Errorf("%s found %.200q where %s found %.200q", c.name, got, all[0].name, want)
				}
			}
			if round > 0 {
				times[i] = append(times[i], took)
			}
		}
	}
	ours := median(times[0])
	fmt.Printf("  %-24s %10v\n", r.ours.name, ours.Round(time.Microsecond))
	for i, c := range r.theirs {
		theirs := median(times[i+1])
		fmt.Printf("  %-24s %10v  %s\n", c.name, theirs.Round(time.Microsecond), c.verdict(ours, theirs))
	}
	return nil
}

// time runs the contender once.
func (c contender) time() (took time.Duration, printed []byte, err error) {
	fd, err := unix.MemfdCreate("printed", unix.MFD_CLOEXEC)
	if err != nil {
		return 0, nil, err
	}
	out := os.NewFile(uintptr(fd), "printed")
	defer out.Close()
	began := time.Now()
	if err := c.run(out); err != nil {
		return 0, nil, err
	}
	took = time.Since(began)
	if _, err := out.Seek(0, io.SeekStart); err != nil {
		return 0, nil, err
	}
	printed, err = io.ReadAll(out)
	return took, printed, err
}

// verdict compares our median with this one's.
func (c contender) verdict(ours, theirs time.Duration) string {
	met := map[bool]string{true: "met", false: "MISSED"}
	if c.over > 0 {
		more := ours - theirs
		return fmt.Sprintf("%v more, target %v: %s", more.Round(time.Microsecond), c.over, met[more <= c.over])
	}
	ratio := float64(ours) / float64(theirs)
	if c.target == 0 {
		return fmt.Sprintf("ratio %.2f", ratio)
	}
	return fmt.Sprintf("ratio %.2f, target %.2f: %s", ratio, c.target, met[ratio <= c.target])
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}
