package cli

import (
	"testing"
	"time"
)

var testNow = time.Date(2026, 3, 4, 5, 6, 7, 0, time.FixedZone("", 3600))

func TestParseTime(t *testing.T) {
	at := func(s string) time.Time {
		when, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			t.Fatal(err)
		}
		return when
	}
	for _, tt := range []struct {
		text string
		want time.Time // zero: an error
	}{
		{"10m", testNow.Add(-10 * time.Minute)},
		{"1h30m", testNow.Add(-90 * time.Minute)},
		{"2d", testNow.Add(-48 * time.Hour)},
		{"1d12h", testNow.Add(-36 * time.Hour)},
		{"0s", testNow},
		{"0d", testNow},
		{"2026-01-02", at("2026-01-02T00:00:00+01:00")},
		{"2026-01-02 03:04", at("2026-01-02T03:04:00+01:00")},
		{"2026-01-02 03:04:05", at("2026-01-02T03:04:05+01:00")},
		{"2026-01-02 03:04:05.006", at("2026-01-02T03:04:05.006+01:00")},
		{"2026-01-02T03:04:05Z", at("2026-01-02T03:04:05Z")},
		{"2026-01-02T03:04:05.000000006-07:00", at("2026-01-02T03:04:05.000000006-07:00")},
		{text: "yesterday"},
		{text: "10"},
		{text: "-10m"},
		{text: "d"},
		{text: "-1d"},
		{text: "1d2d"},
		{text: "99999999d"},
		{text: "2000000h"},
		{text: "2026-13-01"},
		{text: "03:04"},
		{text: " "},
	} {
		got, err := parseTime(tt.text, testNow)
		if !got.Equal(tt.want) || (err != nil) != tt.want.IsZero() {
			t.Errorf("parseTime(%q)\ngot  %v, %v\nwant %v", tt.text, got, err, tt.want)
		}
	}
	if got, err := parseTime("", testNow); err != nil || !got.IsZero() {
		t.Errorf("no time: got %v, %v", got, err)
	}
}

// FuzzParseTime checks that how long ago something was is never in the future.
func FuzzParseTime(f *testing.F) {
	for _, s := range []string{"10m", "2d", "1d12h", "65535d", "876000h", "-1h", "2026-01-02", "2026-01-02 03:04:05.6", "2026-01-02T03:04:05Z"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ago, ok := parseAgo(s)
		if ok && ago < 0 {
			t.Errorf("%q is %v ago", s, ago)
		}
		when, err := parseTime(s, testNow)
		if ok && (err != nil || when.After(testNow)) {
			t.Errorf("%q: got %v, %v", s, when, err)
		}
	})
}
