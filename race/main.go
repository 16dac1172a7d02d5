// Command race measures ft against the known tools: in turn, in the same run,
// several rounds, with the median of each and the ratio. Before it compares
// times it checks that both did the same work.
//
//	make race               every race but the long ones
//	make race ONLY=scan     one
//	make race ONLY=clients  100,000 clients at once, over a minute
//
// The races run in a network namespace of their own (Linux), where nothing but
// what they opened listens.
package main

import (
	"cmp"
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

// settings say how to race.
type settings struct {
	ft      string // the program to measure
	rounds  int
	sockets int    // how many the races of the socket table hold
	short   bool   // for correctness only
	cpu     string // the only processor that servers and load of the echo race run on; "" for all
}

// group is races that are run together. One that is long is run only if it is named.
type group struct {
	name string
	long bool
	run  func(settings) error
}

var groups = []group{
	{name: "scan", run: timed(func(s settings) ([]race, func(), error) { return scanRaces(s.ft) })},
	{name: "ls", run: timed(func(s settings) ([]race, func(), error) { return lsRaces(s.ft, s.sockets) })},
	{name: "echo", run: echoRace},
	{name: "idle", run: idleRace},
	{name: "forward", run: forwardRace, long: true},
	{name: "clients", run: clientsRace, long: true},
}

func main() {
	var s settings
	ft := flag.String("ft", "../ft", "the ft to measure")
	flag.IntVar(&s.sockets, "sockets", 100_000, "how many sockets the races of the socket table hold")
	flag.IntVar(&s.rounds, "rounds", 5, "how many rounds")
	flag.BoolVar(&s.short, "short", false, "one round, for correctness only")
	flag.StringVar(&s.cpu, "cpu", "", "run servers and load of the echo race on this `processor` only")
	hold := flag.Int("hold", 0, "hold so many sockets, and do nothing else")
	serve := flag.String("serve", "", "be the echo `server` gnet or net, and do nothing else")
	flag.Parse()
	switch {
	case *hold > 0:
		exit("hold sockets:", holdSockets(*hold))
	case *serve != "":
		exit("serve:", servePeer(*serve))
	}
	path, err := filepath.Abs(*ft)
	if err == nil {
		err = enterNamespace()
	}
	if err == nil {
		s.ft = path
		if s.short {
			s.rounds = 1
		}
		err = runAll(s, flag.Arg(0))
	}
	if err != nil {
		exit("race:", err)
	}
}

func exit(what string, err error) {
	fmt.Fprintln(os.Stderr, what, err)
	os.Exit(1)
}

func runAll(s settings, only string) error {
	ran := false
	for _, g := range groups {
		if only != g.name && (only != "" || g.long) {
			continue
		}
		ran = true
		if err := g.run(s); err != nil {
			return fmt.Errorf("%s: %w", g.name, err)
		}
	}
	if !ran {
		return fmt.Errorf("there is no race %q", only)
	}
	return nil
}

// timed runs races whose contenders are timed.
func timed(prepare func(settings) ([]race, func(), error)) func(settings) error {
	return func(s settings) error {
		races, done, err := prepare(s)
		if err != nil {
			return err
		}
		defer done()
		for _, r := range races {
			if err := r.run(s.rounds); err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
		}
		return nil
	}
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

var met = map[bool]string{true: "met", false: "MISSED"}

func median[T cmp.Ordered](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}
