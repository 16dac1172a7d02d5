package service

import (
	"sync"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/stats"
)

// portEvents passes events on. Of several sockets on one port, as event loops
// have, the first one that listens and the last one that is closed count.
type portEvents struct {
	next stats.Sink

	mu   sync.Mutex
	open map[fivetuple.Tuple]int
}

// Record implements [stats.Sink].
func (p *portEvents) Record(e stats.Event) {
	switch e.Kind {
	case stats.Listen:
		if !p.counts(e.Tuple, 1, 1) {
			return
		}
	case stats.Close:
		if !p.counts(e.Tuple, -1, 0) {
			return
		}
	}
	p.next.Record(e)
}

// counts adds to how many sockets are open, and says whether that makes them n.
func (p *portEvents) counts(t fivetuple.Tuple, add, n int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open == nil {
		p.open = make(map[fivetuple.Tuple]int)
	}
	p.open[t] += add
	open := p.open[t]
	if open == 0 {
		delete(p.open, t)
	}
	return open == n
}
