package scan_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple/internal/lab"
	"github.com/fivetuple/fivetuple/scan"
)

func TestMain(m *testing.M) {
	lab.Enter()
	if job := os.Getenv(jobVar); job != "" {
		os.Exit(runJob(job))
	}
	os.Exit(m.Run())
}

// jobVar makes this binary a scanner instead of a test: goroutines are in no test
// host, programs are.
const jobVar = "FIVETUPLE_SCAN_TEST_JOB"

type job struct {
	Targets []string
	Ports   string
	Timeout time.Duration
	Window  int
	Repeat  int    // so many scans more
	Files   uint64 // RLIMIT_NOFILE, 0 to leave it alone
	TakeAll bool   // open files until no descriptor is left
}

func runJob(text string) int {
	if err := doJob(text); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func doJob(text string) error {
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		return err
	}
	var targets []scan.Target
	for _, target := range j.Targets {
		addr, err := netip.ParseAddr(target)
		if err != nil {
			return err
		}
		targets = append(targets, scan.Target{First: addr})
	}
	ports, err := scan.ParsePorts(j.Ports, nil)
	if err != nil {
		return err
	}
	if err := limitFiles(j.Files, j.TakeAll); err != nil {
		return err
	}
	out := bufio.NewWriter(os.Stdout)
	results := json.NewEncoder(out)
	s := scan.Scanner{Timeout: j.Timeout, Parallel: j.Window, Public: true}
	for range 1 + j.Repeat {
		for r, err := range s.Scan(context.Background(), targets, ports) {
			if err != nil {
				return err
			}
			if err := results.Encode(r); err != nil {
				return err
			}
		}
	}
	return out.Flush()
}

// limitFiles lowers the limit of open files, and uses it up.
func limitFiles(limit uint64, takeAll bool) error {
	if limit > 0 {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: limit, Max: limit}); err != nil {
			return err
		}
	}
	for takeAll {
		if _, err := syscall.Dup(0); errors.Is(err, syscall.EMFILE) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return nil
}

// found is what a scan says about a port.
type found struct {
	Host   netip.Addr
	Port   uint16
	State  scan.State
	Reason string
}

// scanFrom scans in a host and returns all results.
func scanFrom(t *testing.T, h *lab.Host, j job) []found {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), jobVar+"="+string(text))
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	start := time.Now()
	if err := h.Start(t, cmd).Wait(); err != nil {
		t.Fatalf("scanner: %v", err)
	}
	t.Logf("scan of %v ports %s took %v", j.Targets, j.Ports, time.Since(start).Round(time.Millisecond))

	var results []found
	times := make(map[netip.AddrPort]int)
	for decoder := json.NewDecoder(&stdout); decoder.More(); {
		var f found
		if err := decoder.Decode(&f); err != nil {
			t.Fatal(err)
		}
		results = append(results, f)
		times[netip.AddrPortFrom(f.Host, f.Port)]++
	}
	ports, err := scan.ParsePorts(j.Ports, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := len(times), len(j.Targets)*ports.Len(); got != want {
		t.Errorf("got results for %d ports, want %d", got, want)
	}
	for port, n := range times {
		if n != 1+j.Repeat {
			t.Errorf("%v was reported %d times, want %d", port, n, 1+j.Repeat)
		}
	}
	return results
}
