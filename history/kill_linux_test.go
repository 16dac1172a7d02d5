package history

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"
)

func setting(t *testing.T, name string, preset int) int {
	if s := os.Getenv(name); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return n
	}
	return preset
}

// TestKillLosesOnlyTheLast100ms kills a process that records, at a random
// moment, again and again on the same file. FT_HISTORY_KILLS and
// FT_HISTORY_RATE (events per second) make it longer and harder.
func TestKillLosesOnlyTheLast100ms(t *testing.T) {
	kills, rate := setting(t, "FT_HISTORY_KILLS", 10), setting(t, "FT_HISTORY_RATE", testRate)
	path := filepath.Join(t.TempDir(), "history.db")
	var lags []time.Duration
	var after int64
	for round := range kills {
		told, killed := killRecorder(t, path, rate)
		var lag time.Duration
		after, lag = checkAfterKill(t, path, after, told, killed, round)
		lags = append(lags, lag)
	}
	slices.Sort(lags)
	t.Logf("age of the oldest event lost, of %d kills at %d events/s: median %v, worst %v", kills, rate, lags[len(lags)/2], lags[len(lags)-1])
}

// report says that the events up to n were recorded at that moment.
type report struct{ n, at int64 }

// killRecorder lets a process record for a random while, kills it, and returns
// what it told and a moment just before the kill.
func killRecorder(t *testing.T, path string, rate int) (told []report, killed int64) {
	t.Helper()
	cmd := helper(t, "recorder", path, strconv.Itoa(rate))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	next := func() error {
		var r report
		line, err := lines.ReadString('\n')
		if err != nil {
			return err
		}
		if _, err := fmt.Sscan(line, &r.n, &r.at); err != nil {
			return fmt.Errorf("report %q: %w", line, err)
		}
		told = append(told, r)
		return nil
	}
	if err := next(); err != nil {
		t.Fatal(err)
	}
	moment := time.Duration(rand.Int64N(int64(1500 * time.Millisecond)))
	timer := time.AfterFunc(moment, func() {
		killed = monotonic()
		cmd.Process.Kill()
	})
	defer timer.Stop()
	for err == nil {
		err = next()
	}
	state := cmd.Wait()
	if err != io.EOF || state == nil || state.Error() != "signal: killed" {
		t.Fatalf("after %v: reading reports: %v; process: %v", moment, err, state)
	}
	return told, killed
}

// checkAfterKill wants all that was told more than 100 ms before the kill, in
// order, in a file that is whole. It returns the last id, and how old the
// oldest event was that is not there.
func checkAfterKill(t *testing.T, path string, after int64, told []report, killed int64, round int) (last int64, lag time.Duration) {
	t.Helper()
	r, err := OpenReadOnly(t.Context(), path, Options{})
	if err != nil {
		t.Fatalf("after kill %d: %v", round+1, err)
	}
	defer r.Close()
	entries := query(t, r, Query{After: after})
	last = after
	have := int64(0)
	for i, e := range entries {
		// Retention may have deleted the first ones, but nothing in between.
		if n := int64(e.Conn); i > 0 && (n != have+1 || e.Run != entries[0].Run || e.ID != last+1) {
			t.Fatalf("kill %d: event %d (id %d, run %d) follows event %d (id %d, run %d)", round+1, n, e.ID, e.Run, have, last, entries[0].Run)
		}
		have, last = int64(e.Conn), e.ID
	}
	for _, r := range told {
		if r.n > have {
			lag = time.Duration(killed - r.at)
			break
		}
	}
	if lag > 100*time.Millisecond {
		t.Errorf("kill %d: event %d, recorded %v before, is not there; the last is %d", round+1, have+1, lag, have)
	}
	rows, err := r.Totals(t.Context(), Query{After: after})
	if err != nil || len(rows) > 0 && rows[0].Live != 0 {
		t.Errorf("kill %d: %+v, %v: connections of a killed process are alive", round+1, rows, err)
	}
	d := openAt(t, path, Options{})
	checkIntegrity(t, d)
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	return last, lag
}
