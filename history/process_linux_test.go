package history

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// TestMain also plays the processes that tests start.
func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		os.Exit(helperProcess(role))
	}
	goleak.VerifyTestMain(m)
}

// roleVariable tells the test binary to play another process.
const roleVariable = "FT_HISTORY_TEST_ROLE"

// helper is a process of the test binary, which is killed with the test.
func helper(t testing.TB, role string, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	cmd.Stderr = t.Output()
	return cmd
}

func helperProcess(role string) int {
	var err error
	switch role {
	case "recorder":
		err = recorderProcess(os.Args[1], os.Args[2])
	default:
		err = fmt.Errorf("no such role: %s", role)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, role+":", err)
		return 1
	}
	return 0
}

// recorderProcess records events of the sample kind at a rate per second, and
// after each few writes a line "number nanoseconds" to its standard output:
// what it has recorded (in Conn) and when, by the monotonic clock.
func recorderProcess(path, rate string) error {
	perSecond, err := strconv.Atoi(rate)
	if err != nil {
		return err
	}
	d, err := Open(context.Background(), path, Options{MaxBytes: 4 << 20, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		return err
	}
	w, err := d.Writer()
	if err != nil {
		return err
	}
	tick := time.NewTicker(time.Millisecond)
	for began, n := time.Now(), 0; ; <-tick.C {
		for due := int(time.Since(began).Seconds() * float64(perSecond)); n < due; {
			n++
			e := sample(n)
			e.Conn = uint64(n)
			w.Record(e)
		}
		if lost := w.Lost(); lost > 0 {
			return fmt.Errorf("%d of %d events were lost", lost, n)
		}
		if _, err := fmt.Println(n, monotonic()); err != nil {
			return err
		}
	}
}

// monotonic is a clock that processes share.
func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err)
	}
	return ts.Nano()
}
