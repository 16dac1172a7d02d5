package lab

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"time"
)

const ms = time.Millisecond

// sending is a packet that comes to a shaper at a time; a number of bytes is its name.
type sending struct {
	at   time.Duration
	size int
}

func TestShaperKeepsTheConditions(t *testing.T) {
	for _, tt := range []struct {
		name  string
		c     Conditions
		sent  []sending
		want  string // sizes of packets and when they arrive
		stats Stats
	}{
		{"nothing asked for", Conditions{}, []sending{{0, 1}, {0, 2}, {5 * ms, 3}}, "1@0s 2@0s 3@5ms", Stats{}},
		{"delay", Conditions{Delay: 50 * ms}, []sending{{0, 1}, {3 * ms, 2}}, "1@50ms 2@53ms", Stats{}},
		{"all lost", Conditions{Loss: 1}, []sending{{0, 1}, {0, 2}}, "", Stats{Lost: 2}},
		// 1000 bytes take 8 ms at 1 Mbit/s.
		{"rate", Conditions{Rate: 1e6}, []sending{{0, 1000}, {0, 500}, {20 * ms, 1000}}, "1000@8ms 500@12ms 1000@28ms", Stats{}},
		{"rate and delay", Conditions{Rate: 1e6, Delay: 50 * ms}, []sending{{0, 1000}, {0, 500}}, "1000@58ms 500@62ms", Stats{}},
		// One is being sent, and two wait; the fourth finds no room, the fifth does after 8 ms.
		{"queue", Conditions{Rate: 1e6, Queue: 2000}, []sending{{0, 1000}, {1 * ms, 999}, {2 * ms, 1001}, {3 * ms, 1}, {8 * ms, 998}},
			"1000@8ms 999@15.992ms 1001@24ms 998@31.984ms", Stats{Dropped: 1}},
		{"queue without room for one", Conditions{Rate: 1e6, Queue: 1}, []sending{{0, 1000}, {7 * ms, 1000}, {8 * ms, 1000}},
			"1000@8ms 1000@16ms", Stats{Dropped: 1}},
		{"queue without a rate", Conditions{Queue: 1}, []sending{{0, 1000}, {0, 1000}}, "1000@0s 1000@0s", Stats{}},
		{"all overtake", Conditions{Delay: 50 * ms, Reorder: 1}, []sending{{0, 1}, {3 * ms, 2}}, "1@0s 2@3ms", Stats{}},
		{"overtaking keeps to the rate", Conditions{Delay: 50 * ms, Rate: 1e6, Reorder: 1}, []sending{{0, 1000}, {0, 500}}, "1000@8ms 500@12ms", Stats{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newShaper(tt.c)
			if got := fmt.Sprint(run(s, tt.sent)); got != "["+tt.want+"]" {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			if s.stats != tt.stats {
				t.Errorf("stats: got %+v, want %+v", s.stats, tt.stats)
			}
		})
	}
}

func TestQueueDefaultsToATenthOfASecond(t *testing.T) {
	for rate, want := range map[int64]int{1e9: 12_500_000, 1e6: 16 * 1500, 0: 16 * 1500} {
		if got := newShaper(Conditions{Rate: rate}).Queue; got != want {
			t.Errorf("queue at %d bit/s: got %d, want %d", rate, got, want)
		}
	}
}

func TestJitterStaysInBoundsAndInOrder(t *testing.T) {
	s := newShaper(Conditions{Delay: 20 * ms, Jitter: 10 * ms, Seed: 1})
	var late []time.Duration
	for i := range 1000 {
		sent := time.Duration(i) * 20 * ms // far enough apart for none to wait for another
		s.admit(make([]byte, 1), sent)
		at, _ := s.next()
		s.take(at)
		late = append(late, at-sent)
	}
	if least, most := slices.Min(late), slices.Max(late); least < 20*ms || least > 21*ms || most < 29*ms || most > 30*ms {
		t.Errorf("delays: got %v to %v, want about 20ms to 30ms", least, most)
	}
	var sent []sending
	want := make([]int, 0, 100)
	for i := range 100 {
		sent, want = append(sent, sending{0, i}), append(want, i)
	}
	if got := sizes(run(newShaper(s.Conditions), sent)); !slices.Equal(got, want) {
		t.Errorf("order: got %v, want %v", got, want)
	}
}

func TestReorderedPacketsOvertake(t *testing.T) {
	s := newShaper(Conditions{Delay: 10 * ms, Reorder: 0.25, Seed: 3})
	var sent []sending
	for i := range 1000 {
		sent = append(sent, sending{time.Duration(i) * time.Millisecond, i})
	}
	got := sizes(run(s, sent))
	overtook := int64(0)
	for i, n := range got {
		if slices.ContainsFunc(got[i:], func(later int) bool { return later < n }) {
			overtook++
		}
	}
	if s.stats.Reordered != overtook || overtook < 200 || overtook > 300 {
		t.Errorf("packets that overtook: counted %d, seen %d, want the same and about 250", s.stats.Reordered, overtook)
	}
	if slices.Sort(got); len(got) != 1000 || got[999] != 999 {
		t.Errorf("got %d packets, want all 1000", len(got))
	}
}

func TestChanceIsOfTheSeedAndTheNumber(t *testing.T) {
	c := Conditions{Loss: 0.1, Seed: 7}
	first := lost(newShaper(c), 0)
	if n := len(first); n < 70 || n > 130 {
		t.Errorf("lost of 1000 packets: got %d, want about 100", n)
	}
	other := newShaper(c)
	other.direction = 1
	other.set(c, 0)
	again := newShaper(Conditions{Loss: 0.5, Seed: 8})
	lost(again, 0)
	again.set(c, 0)
	for _, tt := range []struct {
		name   string
		shaper *shaper
		gap    time.Duration
		same   bool
	}{
		{"the same", newShaper(c), 0, true},
		{"at other times", newShaper(c), ms, true},
		{"with all else", newShaper(Conditions{Loss: 0.1, Seed: 7, Delay: ms, Jitter: ms, Reorder: 0.5, Rate: 1e9}), ms, true},
		{"set later", again, 0, true},
		{"another seed", newShaper(Conditions{Loss: 0.1, Seed: 8}), 0, false},
		{"the other direction", other, 0, false},
	} {
		if got := lost(tt.shaper, tt.gap); slices.Equal(got, first) != tt.same {
			t.Errorf("%s: got %v, want the packets lost to be the same: %t, as %v", tt.name, got, tt.same, first)
		}
	}
	// Seeds next to each other are as good as any.
	sum := 0.0
	for seed := range uint64(1000) {
		s := newShaper(Conditions{Seed: seed})
		sum += s.random.Float64()
	}
	if mean := sum / 1000; math.Abs(mean-0.5) > 0.03 { // 3.3 standard deviations
		t.Errorf("mean of the first draws of 1000 seeds: got %f, want 0.5", mean)
	}
}

func TestEachPacketDrawsAlike(t *testing.T) {
	sent := make([]sending, 100)
	for i := range sent {
		sent[i] = sending{time.Duration(i) * ms, i}
	}
	all := Conditions{Loss: 1e-9, Jitter: 1, Reorder: 0.3, Delay: 10 * ms, Seed: 1}
	none := all
	none.Loss, none.Jitter = 0, 0
	want, got := sizes(run(newShaper(all), sent)), sizes(run(newShaper(none), sent))
	if !slices.Equal(got, want) || slices.IsSorted(got) {
		t.Errorf("order without loss and jitter: got %v, want that with them, %v", got, want)
	}
}

func TestReorderingNeedsADelay(t *testing.T) {
	sent := make([]sending, 100)
	for i := range sent {
		sent[i] = sending{0, i}
	}
	s := newShaper(Conditions{Reorder: 0.5})
	if got := sizes(run(s, sent)); !slices.IsSorted(got) || s.stats.Reordered != 0 {
		t.Errorf("got %v, %d reordered, want none", got, s.stats.Reordered)
	}
}

func TestPacketThatOvertakesIsNotLate(t *testing.T) {
	s := newShaper(Conditions{Rate: 1e6, Delay: 50 * ms})
	s.admit(make([]byte, 1000), 0)
	s.set(Conditions{Rate: 1e6, Delay: 50 * ms, Reorder: 1}, 0)
	s.admit(make([]byte, 500), 0)
	if got, want := fmt.Sprint(until(s, time.Hour)), "[500@12ms 1000@58ms]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestNewRateIsOfPacketsThatWait(t *testing.T) {
	for _, tt := range []struct {
		at   time.Duration
		want string
	}{
		{4 * ms, "[1000@8ms 1000@14ms 1000@15ms]"}, // the first is being sent and keeps its time
		{9 * ms, "[1000@8ms 1000@16ms 1000@22ms]"}, // the second is, though nobody has looked since
	} {
		s := newShaper(Conditions{Rate: 1e6})
		for range 3 {
			s.admit(make([]byte, 1000), 0)
		}
		s.set(Conditions{Rate: 8e6, Delay: 5 * ms}, tt.at)
		if got := fmt.Sprint(until(s, time.Hour)); got != tt.want {
			t.Errorf("rate set at %v: got %s, want %s", tt.at, got, tt.want)
		}
	}
}

func TestShorterDelayKeepsTheOrder(t *testing.T) {
	s := newShaper(Conditions{Delay: 100 * ms})
	s.admit(make([]byte, 1), 0)
	s.set(Conditions{Delay: 10 * ms}, 1*ms)
	s.admit(make([]byte, 2), 1*ms)
	s.admit(make([]byte, 3), 95*ms)
	if got, want := fmt.Sprint(until(s, time.Hour)), "[1@100ms 2@100ms 3@105ms]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestMemoryOfADirectionIsBounded(t *testing.T) {
	s := newShaper(Conditions{Delay: time.Hour})
	data := make([]byte, 1)
	const most = mostHeld / 1500
	for range most + 5 {
		s.admit(data, 0)
	}
	if got := s.held(); got != most || s.stats.Overrun != 5 {
		t.Errorf("got %d packets held, %d not, want %d, 5", got, s.stats.Overrun, most)
	}
}

func TestListenerReportsAreHousekeeping(t *testing.T) {
	// IPv6, next header hop-by-hop; options: next header, length, router alert; ICMPv6.
	message := func(version, next, after, kind byte) []byte {
		p := make([]byte, 76)
		p[0], p[6], p[40], p[48] = version<<4, next, after, kind
		return p
	}
	for _, tt := range []struct {
		name   string
		packet []byte
		want   bool
	}{
		{"MLDv2 report", message(6, 0, 58, 143), true},
		{"MLDv1 report", message(6, 0, 58, 131), true},
		{"MLDv1 done", message(6, 0, 58, 132), true},
		{"MLD query", message(6, 0, 58, 130), false},
		{"echo request", message(6, 58, 0, 128), false},
		{"UDP with options", message(6, 0, 17, 143), false},
		{"IPv4", message(4, 0, 58, 143), false},
		{"cut short", message(6, 0, 58, 143)[:48], false},
		{"empty", nil, false},
	} {
		if got := isHousekeeping(tt.packet); got != tt.want {
			t.Errorf("%s: got %t, want %t", tt.name, got, tt.want)
		}
	}
}

func BenchmarkShaper(b *testing.B) {
	s := newShaper(Conditions{Delay: ms, Jitter: ms, Loss: 0.01, Reorder: 0.01, Rate: 1e9})
	data := make([]byte, 1500)
	b.ReportAllocs()
	for now := time.Duration(0); b.Loop(); now += 13 * time.Microsecond {
		s.admit(data, now)
		for ok := true; ok; {
			_, ok = s.take(now)
		}
	}
}

func newShaper(c Conditions) *shaper {
	s := &shaper{mtu: 1500}
	s.set(c, 0)
	return s
}

// arrival is a packet that left a shaper at a time.
type arrival struct {
	size int
	at   time.Duration
}

func (a arrival) String() string { return fmt.Sprintf("%d@%v", a.size, a.at) }

// run sends the packets, each at its time, and returns what arrives.
func run(s *shaper, sent []sending) []arrival {
	var got []arrival
	for _, p := range sent {
		got = append(got, until(s, p.at-1)...)
		s.admit(make([]byte, p.size), p.at)
	}
	return append(got, until(s, math.MaxInt64)...)
}

// until returns what arrives up to a time.
func until(s *shaper, end time.Duration) (got []arrival) {
	for {
		at, ok := s.next()
		if !ok || at > end {
			return got
		}
		for data, ok := s.take(at); ok; data, ok = s.take(at) {
			got = append(got, arrival{len(data), at})
		}
	}
}

func sizes(arrivals []arrival) []int {
	var sizes []int
	for _, a := range arrivals {
		sizes = append(sizes, a.size)
	}
	return sizes
}

// lost sends 1000 packets and returns the numbers of the lost ones.
func lost(s *shaper, gap time.Duration) []int {
	var numbers []int
	for i := range 1000 {
		before := s.stats.Lost
		now := time.Duration(i) * gap
		if s.admit(nil, now); s.stats.Lost > before {
			numbers = append(numbers, i)
		}
		s.take(now)
	}
	return numbers
}
