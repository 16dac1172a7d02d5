package lease

import "time"

// moment is a time on two clocks: the wall's, which somebody may set, and the
// machine's since it was started, which says nothing about another start.
type moment struct {
	wall  time.Time
	boot  string // which start of the machine, as seen from which time namespace, "" if unknown
	since time.Duration
}

// after is the moment d later.
func (m moment) after(d time.Duration) moment {
	return moment{m.wall.Add(d), m.boot, m.since + d}
}

// minus is the time from other to m: by the machine's clock if both have the
// same, by the wall's otherwise.
func (m moment) minus(other moment) time.Duration {
	if m.boot != "" && m.boot == other.boot {
		return m.since - other.since
	}
	return m.wall.Sub(other.wall)
}
