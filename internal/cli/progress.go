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

// progress shows on a terminal how far a long job is, "scanned 1200 of 65535
// ports, about 40 s left", unless the output is for a program. The job calls
// stop when it ends, before it prints: that takes the line away.
func (a *app) progress(done, things string, of func() (done, total uint64)) (stop func()) {
	if !useColor(a.err) || a.format != formatTable && a.format != formatWide {
		return func() {}
	}
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		showProgress(a.err, end, done, things, of)
	}()
	return func() {
		close(end)
		<-ended
	}
}

func showProgress(w io.Writer, end <-chan struct{}, done, things string, of func() (done, total uint64)) {
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
			n, total := of()
			fmt.Fprintf(w, clear+"%s %d of %d %s%s", done, n, total, things, timeLeft(n, total, time.Since(start)))
			shown = true
			timer.Reset(progressEvery)
		}
	}
}

// timeLeft estimates how long the rest takes, at the pace so far.
func timeLeft(done, total uint64, took time.Duration) string {
	if done == 0 || done > total {
		return ""
	}
	left := time.Duration(float64(took) / float64(done) * float64(total-done))
	return ", about " + stats.FormatDuration(left.Round(time.Second)) + " left"
}
