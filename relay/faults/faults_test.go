package faults

import (
	"math"
	"strings"
	"testing"
	"time"
)

func TestConfigOutOfBounds(t *testing.T) {
	for _, tt := range []struct {
		c    Config
		want string // "" if it is good
	}{
		{Config{}, ""},
		{Config{Seed: math.MaxUint64, Delay: time.Hour, Jitter: time.Hour, Loss: 1, Reorder: 1, Bandwidth: math.MaxInt64, CutAfter: math.MaxInt64, CutTime: math.MaxInt64}, ""},
		{Config{Delay: -1}, "delay -1ns: want 0 or more"},
		{Config{Delay: time.Hour + 1}, "delay 1h0m0.000000001s: want 1h0m0s at most"},
		{Config{Jitter: -time.Second}, "jitter -1s: want 0 or more"},
		{Config{Jitter: 2 * time.Hour}, "jitter 2h0m0s: want 1h0m0s at most"},
		{Config{Loss: -0.1}, "loss -0.1: want 0 to 1, where 0.01 is 1 %"},
		{Config{Loss: 1.01}, "loss 1.01: want 0 to 1"},
		{Config{Loss: math.NaN()}, "loss NaN: want 0 to 1"},
		{Config{Reorder: -1}, "reorder -1: want 0 to 1"},
		{Config{Reorder: 25}, "reorder 25: want 0 to 1"},
		{Config{Bandwidth: -1}, "bandwidth -1 bytes: want 0 or more"},
		{Config{CutAfter: -5}, "cut after -5 bytes: want 0 or more"},
		{Config{CutTime: -1}, "cut time -1ns: want 0 or more"},
	} {
		err := tt.c.Validate()
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), "faults: "+tt.want)) {
			t.Errorf("%+v: got %v, want %q", tt.c, err, tt.want)
		}
	}
}

func TestConfigInWords(t *testing.T) {
	for _, tt := range []struct {
		c    Config
		want string
	}{
		{Config{}, "none"},
		{Config{Seed: 7}, "none"},
		{Config{Seed: 7, Delay: 50 * time.Millisecond, Jitter: 10 * time.Millisecond, Loss: 0.01}, "delay 50ms, jitter 10ms, loss 1 %, seed 7"},
		{Config{Loss: 0.07, Reorder: 0.005}, "loss 7 %, reorder 0.5 %, seed 0"},
		{Config{Bandwidth: 125000, CutAfter: 1 << 20, CutTime: 90 * time.Second}, "bandwidth 125000 B/s, cut after 1048576 bytes, cut after 1m30s, seed 0"},
	} {
		if got := tt.c.String(); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
		if tt.c.Active() != (tt.want != "none") {
			t.Errorf("%q: active is %v", tt.want, tt.c.Active())
		}
	}
}
