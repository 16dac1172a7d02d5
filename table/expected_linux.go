package table

import (
	"bytes"
	"fmt"
	"os"
)

// expected is about how many sockets the network namespace of the calling thread
// has, by /proc/net/sockstat (proc(5)), 0 if that cannot be read.
func expected() int {
	b, err := os.ReadFile("/proc/thread-self/net/sockstat")
	if err != nil {
		return 0
	}
	var used, skip, timeWait int
	for line := range bytes.Lines(b) {
		fmt.Sscanf(string(line), "sockets: used %d", &used)
		fmt.Sscanf(string(line), "TCP: inuse %d orphan %d tw %d", &skip, &skip, &timeWait)
	}
	const more = 64 // not accepted, opened meanwhile
	return used + timeWait + used/16 + more
}
