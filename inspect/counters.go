package inspect

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/fivetuple/fivetuple/table"
)

// Counters are counts of the whole network namespace since it was made, which
// no single socket's share of is known (/proc/net/netstat, TcpExt).
type Counters struct {
	ListenOverflows uint64 // connections dropped: an accept queue was full
	ListenDrops     uint64 // connections dropped by listeners for any reason
	SynCookiesSent  uint64 // answers without a place in the queue: many connections began at once
	SynQueueDrops   uint64 // connection requests dropped: the SYN queue was full and cookies are off
}

// ReadCounters reads them for the namespace of the row's socket.
func ReadCounters(ctx context.Context, row table.Row) (c Counters, err error) {
	if err := ctx.Err(); err != nil {
		return Counters{}, err
	}
	err = inNamespace(row, func() error {
		text, err := readNetstat()
		if err != nil {
			return fmt.Errorf("read the counters of the network namespace: %w", err)
		}
		c, err = parseCounters(text)
		return err
	})
	return c, err
}

// parseCounters takes pairs of lines: names, then values, behind the same word.
func parseCounters(text string) (c Counters, err error) {
	fields := map[string]*uint64{
		"ListenOverflows": &c.ListenOverflows, "ListenDrops": &c.ListenDrops,
		"SyncookiesSent": &c.SynCookiesSent, "TCPReqQFullDrop": &c.SynQueueDrops,
	}
	lines := strings.Split(text, "\n")
	for i := 0; i+1 < len(lines); i += 2 {
		names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
		if len(names) == 0 || names[0] != "TcpExt:" {
			continue
		}
		if len(names) != len(values) {
			return Counters{}, fmt.Errorf("read the counters of the network namespace: %d names and %d values", len(names), len(values))
		}
		for j, name := range names {
			if field := fields[name]; field != nil {
				if *field, err = strconv.ParseUint(values[j], 10, 64); err != nil {
					return Counters{}, fmt.Errorf("read the counters of the network namespace: %s: %w", name, err)
				}
			}
		}
	}
	return c, nil
}
