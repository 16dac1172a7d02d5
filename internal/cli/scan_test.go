package cli

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple/scan"
)

func TestScanOutcome(t *testing.T) {
	states := func(open, closed, failed int) map[scan.State]int {
		return map[scan.State]int{scan.Open: open, scan.Closed: closed, scan.Failed: failed}
	}
	printed := errors.New("no space left")
	for _, tt := range []struct {
		name    string
		states  map[scan.State]int
		err     error // of the scan
		printed error
		want    int
	}{
		{"open", states(1, 5, 0), nil, nil, exitDone},
		{"open, and some not asked", states(1, 5, 1), nil, nil, exitDone},
		{"none open", states(0, 5, 0), nil, nil, exitNo},
		{"none open, but some not asked", states(0, 5, 1), nil, nil, exitFailed},
		{"interrupted", states(1, 5, 0), context.Canceled, nil, exitFailed},
		{"interrupted at once", states(0, 0, 0), context.Canceled, nil, exitFailed},
		{"public", states(0, 0, 0), scan.ErrPublic, nil, exitUsage},
		{"not printed", states(1, 0, 0), nil, printed, exitFailed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := &app{err: t.Output()}
			j := &scanJob{app: a, states: tt.states, err: tt.err}
			if got := a.exit(j.outcome(tt.printed)); got != tt.want {
				t.Errorf("exit code %d, want %d", got, tt.want)
			}
		})
	}
}

func TestScanSummary(t *testing.T) {
	targets, err := scan.ParseTargets(t.Context(), "10.0.0.0/24", "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	j := &scanJob{
		scanner: new(scan.Scanner),
		targets: targets,
		states:  map[scan.State]int{scan.Open: 2, scan.Closed: 500, scan.Filtered: 11, scan.Failed: 1},
	}
	want := "514 ports scanned on 257 hosts in 1m02s: 2 open, 500 closed, 11 filtered, 1 could not be asked"
	if got := j.summary(62 * time.Second); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
