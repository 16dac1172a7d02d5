package cli

import (
	"bytes"
	"math"
	"testing"
	"testing/synctest"
	"time"
)

func TestProgressIsShownAfterTwoSecondsAndTakenAway(t *testing.T) {
	for _, tt := range []struct {
		name  string
		lasts time.Duration
		want  string
	}{
		{"short", 1900 * time.Millisecond, ""},
		{"long", 2600 * time.Millisecond, "\r\x1b[Kscanned 20 of 100 ports, about 8.0 s left" +
			"\r\x1b[Kscanned 25 of 100 ports, about 8.0 s left\r\x1b[K"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var b bytes.Buffer
				start, end, ended := time.Now(), make(chan struct{}), make(chan struct{})
				go func() {
					defer close(ended)
					showProgress(&b, end, countLine("scanned", "ports", func() (uint64, uint64) {
						return uint64(time.Since(start) / (100 * time.Millisecond)), 100
					}))
				}()
				time.Sleep(tt.lasts)
				close(end)
				<-ended
				if got := b.String(); got != tt.want {
					t.Errorf("got  %q\nwant %q", got, tt.want)
				}
			})
		})
	}
}

func TestTimeLeft(t *testing.T) {
	for _, tt := range []struct {
		done, total uint64
		took        time.Duration
		want        string
	}{
		{0, 100, time.Minute, ""},
		{50, 100, 10 * time.Second, ", about 10.0 s left"},
		{1, 241, time.Second, ", about 4m00s left"},
		{100, 100, time.Second, ""},
		{1, math.MaxUint64, time.Second, ", more than a year left"},
	} {
		if got := timeLeft(tt.done, tt.total, tt.took); got != tt.want {
			t.Errorf("timeLeft(%d, %d, %v) = %q, want %q", tt.done, tt.total, tt.took, got, tt.want)
		}
	}
}
