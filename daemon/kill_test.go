package daemon

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple/history"
	"github.com/fivetuple/fivetuple/stats"
)

// serveUntilKilled is the daemon of TestKillLosesNoEventOlderThan100ms, in a
// process of its own.
func serveUntilKilled() {
	c, err := ParseConfig([]byte("services: [{name: e, listen: 0}, {name: u, listen: 'udp://0'}]"))
	if err == nil {
		var d *Daemon
		if d, err = Start(context.Background(), c, Options{Log: slog.New(slog.DiscardHandler), HistoryPath: os.Getenv("DAEMON_TEST_SERVE")}); err == nil {
			json.NewEncoder(os.Stdout).Encode(d.Addresses())
			select {}
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// TestKillLosesNoEventOlderThan100ms kills a daemon under load, again and again
// with the same history. A connection whose echo a client has seen was accepted
// before: its event must be in the history if that was 100 ms before the kill.
func TestKillLosesNoEventOlderThan100ms(t *testing.T) {
	kills := 3
	if s := os.Getenv("FT_DAEMON_KILLS"); s != "" {
		kills, _ = strconv.Atoi(s)
	}
	path := filepath.Join(t.TempDir(), "history.db")
	seen := 0
	for round := range kills {
		seen += killOnce(t, round, path)
	}
	db, err := history.OpenReadOnly(t.Context(), path, history.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	all := 0
	for _, err := range db.Query(t.Context(), history.Query{Kinds: []stats.Kind{stats.Accept}}) {
		if err != nil {
			t.Fatal(err)
		}
		all++
	}
	t.Logf("%d kills: %d accepts recorded, %d of them seen by clients 100 ms before a kill", kills, all, seen)
	if all < seen {
		t.Errorf("%d accepts recorded, clients saw %d", all, seen)
	}
}

// killOnce returns how many connections had to be in the history.
func killOnce(t *testing.T, round int, path string) int {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), "DAEMON_TEST_SERVE="+path)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var addrs map[string]string
	if err := json.NewDecoder(bufio.NewReader(out)).Decode(&addrs); err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		t.Fatalf("round %d: the daemon did not start: %v", round, err)
	}

	type sight struct {
		client string
		at     time.Time
	}
	var mu sync.Mutex
	var sights []sight
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				c, err := net.Dial("tcp", addrs["e"])
				if err != nil {
					return
				}
				c.SetDeadline(time.Now().Add(5 * time.Second))
				if err := tryEcho(c, "x"); err != nil {
					c.Close()
					return
				}
				mu.Lock()
				sights = append(sights, sight{c.LocalAddr().String(), time.Now()})
				mu.Unlock()
				c.Close()
				if raceEnabled { // SQLite is then ten times slower: keep below what it can write
					time.Sleep(10 * time.Millisecond) // a pace
				}
			}
		})
	}
	time.Sleep(200*time.Millisecond + rand.N(400*time.Millisecond)) // the moment of the kill is the input of the test
	killed := time.Now()
	cmd.Process.Kill()
	cmd.Wait()
	wg.Wait()

	db, err := history.Open(t.Context(), path, history.Options{})
	if err != nil {
		t.Fatalf("round %d: the history does not open: %v", round, err)
	}
	defer db.Close()
	recorded := make(map[string]int)
	for e, err := range db.Query(t.Context(), history.Query{Since: began, Kinds: []stats.Kind{stats.Accept}}) {
		if err != nil {
			t.Fatal(err)
		}
		recorded[e.Tuple.Remote.String()]++
	}
	must, missing := 0, 0
	oldest := time.Duration(0)
	for _, s := range sights {
		recorded[s.client]--
		if recorded[s.client] >= 0 {
			if killed.Sub(s.at) > 100*time.Millisecond {
				must++
			}
			continue
		}
		oldest = max(oldest, killed.Sub(s.at))
		if killed.Sub(s.at) > 100*time.Millisecond {
			missing++
		}
	}
	if missing > 0 {
		t.Errorf("round %d: %d of %d connections seen 100 ms before the kill are not in the history, the oldest %v before", round, missing, must+missing, oldest)
	}
	t.Logf("round %d: %d connections seen, oldest event lost %v before the kill", round, len(sights), oldest)
	return must
}
