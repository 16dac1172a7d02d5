package stats

import (
	"math"
	"math/big"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestFormatBytes(t *testing.T) {
	for _, tc := range []struct {
		n    uint64
		want string
	}{
		{0, "0 B"}, {1, "1 B"}, {1023, "1023 B"}, {1024, "1.0 KiB"},
		{1075, "1.0 KiB"}, {1076, "1.1 KiB"}, // 1075.2 is the half
		{1536, "1.5 KiB"}, {1<<20 - 52, "1023.9 KiB"}, {1<<20 - 51, "1.0 MiB"}, {1<<20 - 1, "1.0 MiB"},
		{3 << 19, "1.5 MiB"}, {1 << 30, "1.0 GiB"}, {1<<40 - 1, "1.0 TiB"}, {1 << 50, "1.0 PiB"},
		{1 << 60, "1.0 EiB"}, {math.MaxUint64, "16.0 EiB"},
	} {
		if got := FormatBytes(tc.n); got != tc.want {
			t.Errorf("FormatBytes(%d) = %q, want %q", tc.n, got, tc.want)
		}
	}
}

// FuzzFormatBytes checks the rules against exact arithmetic.
func FuzzFormatBytes(f *testing.F) {
	for shift := range 64 {
		f.Add(uint64(1) << shift)
		f.Add(uint64(1)<<shift - 1)
		f.Add(uint64(1)<<shift - uint64(1)<<shift/20480)
	}
	f.Fuzz(func(t *testing.T, n uint64) {
		number, unit, _ := strings.Cut(FormatBytes(n), " ")
		if n < 1024 {
			if number != strconv.FormatUint(n, 10) || unit != "B" {
				t.Fatalf("%d: got %s %s", n, number, unit)
			}
			return
		}
		if !regexp.MustCompile(`^[1-9][0-9]{0,3}\.[0-9]$`).MatchString(number) || number >= "1024" && len(number) == 6 {
			t.Fatalf("%d: got %s %s, not one decimal below 1024", n, number, unit)
		}
		size := new(big.Rat).SetInt(new(big.Int).Lsh(big.NewInt(1), 10*uint(1+strings.Index("KMGTPE", unit[:1]))))
		got, _ := new(big.Rat).SetString(number)
		off := got.Mul(got, size).Sub(got, new(big.Rat).SetInt(new(big.Int).SetUint64(n)))
		if half := size.Mul(size, big.NewRat(1, 20)); off.Abs(off).Cmp(half) > 0 {
			t.Fatalf("%d: %s %s is off by %s, more than half a decimal", n, number, unit, off.FloatString(1))
		}
	})
}

func TestFormatDuration(t *testing.T) {
	for _, tc := range []struct {
		d    time.Duration
		want string
	}{
		{0, "0 s"}, {1, "1 ns"}, {999, "999 ns"}, {1000, "1.0 µs"}, {12_345, "12.3 µs"},
		{999_949, "999.9 µs"}, {999_950, "1.0 ms"}, {4500 * time.Microsecond, "4.5 ms"},
		{999_949_999, "999.9 ms"}, {999_950_000, "1.0 s"}, {59_949 * time.Millisecond, "59.9 s"},
		{59_950 * time.Millisecond, "1m00s"}, {192 * time.Second, "3m12s"}, {time.Hour - 1, "1h00m"},
		{2*time.Hour + 5*time.Minute, "2h05m"}, {24*time.Hour - 1, "1d00h"}, {220 * time.Hour, "9d04h"},
		{-time.Second, "-1.0 s"}, {math.MinInt64, "-106751d23h"}, {math.MaxInt64, "106751d23h"},
	} {
		if got := FormatDuration(tc.d); got != tc.want {
			t.Errorf("FormatDuration(%d) = %q, want %q", tc.d, got, tc.want)
		}
	}
}
