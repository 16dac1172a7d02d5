package cli

import (
	"fmt"
	"io"
	"time"

	"github.com/fivetuple/fivetuple/stats"
)

const (
	progressAfter = 2 * time.Second // jobs that are shorter show nothing
	progressEvery = 500 * time.Millisecond
)

// progress shows on a terminal that a long job goes on, unless the output is for
// a program. line says what to show, from how long it took so far. The job calls
// stop when it ends, before it prints: that takes the line away.
func (a *app) progress(line func(took time.Duration) string) (stop func()) {
	if !useColor(a.err) || a.format != formatTable && a.format != formatWide {
		return func() {}
	}
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		showProgress(a.err, end, line)
	}()
	return func() {
		close(end)
		<-ended
	}
}

func showProgress(w io.Writer, end <-chan struct{}, line func(took time.Duration) string) {
	const clear = "\r\x1b[K"
	start := time.Now()
	timer := time.NewTimer(progressAfter)
	defer timer.Stop()
	shown := false
	for {
		select {
		case <-end:
			if shown {
				io.WriteString(w, clear)
			}
			return
		case <-timer.C:
			io.WriteString(w, clear+line(time.Since(start)))
			shown = true
			timer.Reset(progressEvery)
		}
	}
}

// countLine is the line of a job that knows how far it is: "scanned 1200 of 65535
// ports, about 40 s left".
func countLine(done, things string, of func() (done, total uint64)) func(took time.Duration) string {
	return func(took time.Duration) string {
		n, total := of()
		return fmt.Sprintf("%s %d of %d %s%s", done, n, total, things, timeLeft(n, total, took))
	}
}

// timeLeft estimates how long the rest takes, at the pace so far.
func timeLeft(done, total uint64, took time.Duration) string {
	if done == 0 || done >= total {
		return ""
	}
	const year = 365 * 24 * time.Hour
	left := float64(took) / float64(done) * float64(total-done)
	if left > float64(year) { // no Duration may be so long
		return ", more than a year left"
	}
	return ", about " + stats.FormatDuration(time.Duration(left).Round(time.Second)) + " left"
}
