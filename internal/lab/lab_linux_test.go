package lab

import (
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	// Tests of how a lab ends start this binary as `go test` would, from outside any lab.
	if os.Getenv(outsideVar) != "" {
		os.Unsetenv(outsideVar)
		exit(runOuter())
	}
	Main(m)
}

const outsideVar = "FIVETUPLE_LAB_TEST_OUTSIDE"

// eventually fails the test if the condition does not come true.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); !condition(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("after ten seconds still not: %s", what)
		}
	}
}

// failure returns the message with which fn fails its test, "" if it does not.
func failure(t *testing.T, fn func(testing.TB)) string {
	t.Helper()
	tb := &failingTB{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		fn(tb)
	}()
	<-done
	return tb.message
}

type failingTB struct {
	testing.TB
	message string
}

func (f *failingTB) Fatalf(format string, args ...any) {
	f.message = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func (f *failingTB) Errorf(format string, args ...any) {
	f.message = fmt.Sprintf(format, args...)
}
