package cli

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/fivetuple/fivetuple/relay/faults"
)

// faultFlags are faults on purpose.
type faultFlags struct{ faults.Config }

func (f *faultFlags) register(fl *pflag.FlagSet) {
	fl.DurationVar(&f.Delay, "delay", 0, "fault: all comes this `duration` later, each way")
	fl.DurationVar(&f.Jitter, "jitter", 0, "fault: and up to this `duration` more, at random")
	fl.Var((*shareFlag)(&f.Loss), "loss", "fault: this `share` is lost: 1% or 0.01; of streams, late")
	fl.Var((*shareFlag)(&f.Reorder), "reorder", "fault: this `share` of datagrams is overtaken by others")
	fl.Var((*bytesFlag)(&f.Bandwidth), "bandwidth", "fault: a link of so many `bytes` a second, each way")
	fl.Var((*cutFlag)(f), "cut-after", "fault: connections are reset after so many bytes, or so long: `1MiB`, 30s")
	fl.Uint64Var(&f.Seed, "seed", 0, "of all chance in faults: the same `number`, the same faults")
}

// shareFlag is a part of a whole: 0.01 or 1%.
type shareFlag float64

// String implements pflag.Value.
func (s *shareFlag) String() string {
	if *s == 0 {
		return ""
	}
	return strconv.FormatFloat(float64(*s), 'g', -1, 64)
}

// Set implements pflag.Value.
func (s *shareFlag) Set(text string) error {
	number, percent := strings.CutSuffix(text, "%")
	x, err := strconv.ParseFloat(number, 64)
	if percent {
		x /= 100
	}
	if err != nil || !(x >= 0 && x <= 1) {
		return fmt.Errorf("%q is not a share: write 1%% or 0.01", text)
	}
	*s = shareFlag(x)
	return nil
}

// Type implements pflag.Value.
func (s *shareFlag) Type() string { return "share" }

// cutFlag is a number of bytes or a time.
type cutFlag faultFlags

// String implements pflag.Value.
func (f *cutFlag) String() string {
	switch {
	case f.CutAfter > 0:
		return strconv.FormatInt(f.CutAfter, 10)
	case f.CutTime > 0:
		return f.CutTime.String()
	}
	return ""
}

// Set implements pflag.Value.
func (f *cutFlag) Set(text string) error {
	if d, err := time.ParseDuration(text); err == nil && d > 0 {
		f.CutTime = d
		return nil
	}
	var b bytesFlag
	if b.Set(text) != nil {
		return fmt.Errorf("%q is neither a number of bytes nor a time: 1MiB, 30s", text)
	}
	f.CutAfter = int64(b)
	return nil
}

// Type implements pflag.Value.
func (f *cutFlag) Type() string { return "bytes or duration" }
