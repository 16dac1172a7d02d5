package tui

import "math/bits"

// history keeps the rates of the latest readings of every socket, one byte each:
// the rate is rounded to about 10%.
type history struct {
	rates []([historyLength]uint8)
}

const historyLength = 60

func (h *history) grow(n int) {
	for len(h.rates) < n {
		h.rates = append(h.rates, [historyLength]uint8{})
	}
}

func (h *history) clear(i int32) { h.rates[i] = [historyLength]uint8{} }

func (h *history) put(i int32, reading uint32, rate uint64) {
	h.rates[i][reading%historyLength] = squeeze(rate)
}

// of appends the rates of a socket up to a reading, the oldest first.
func (h *history) of(to []uint64, i int32, reading uint32) []uint64 {
	for n := reading + 1; n != reading+1+historyLength; n++ {
		to = append(to, unsqueeze(h.rates[i][n%historyLength]))
	}
	return to
}

// squeeze keeps the place of the highest bit and the two below it.
func squeeze(n uint64) uint8 {
	if n < 4 {
		return uint8(n)
	}
	shift := bits.Len64(n) - 3
	return uint8(shift+1)<<2 | uint8(n>>shift)&3
}

func unsqueeze(c uint8) uint64 {
	if c < 4 {
		return uint64(c)
	}
	return uint64(4|c&3) << (c>>2 - 1)
}

// spark draws numbers as a line of bars, the highest as the full one. What is not
// zero is drawn.
func spark(numbers []uint64, ascii bool) string {
	bars := []rune("_▁▂▃▄▅▆▇█")
	if ascii {
		bars = []rune("_.:-=+*%#")
	}
	var most uint64
	for _, n := range numbers {
		most = max(most, n)
	}
	line := make([]rune, len(numbers))
	for i, n := range numbers {
		line[i] = bars[0]
		if n > 0 {
			line[i] = bars[1+int(float64(n)/float64(most)*float64(len(bars)-2)+0.5)]
		}
	}
	return string(line)
}
