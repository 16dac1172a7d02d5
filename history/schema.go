package history

import (
	"fmt"

	"github.com/fivetuple/fivetuple/internal/sqlitefile"
)

var format = sqlitefile.Format{
	Noun:    "history",
	Missing: "nothing was recorded yet: start `ft serve`, or name another file",

	ApplicationID: 0x66743574, // "ft5t"
	Version:       1,
	Schema:        schema,

	IncrementalVacuum: true,
	Pragmas: []string{
		"wal_autocheckpoint(0)", // the writer's checkpoints run beside it
		fmt.Sprintf("journal_size_limit(%d)", maxLog*pageSize),
	},
}

const pageSize = 4096 // SQLite's default

// schema: times are nanoseconds since 1970, durations nanoseconds, kind and
// protocol the numbers of stats.Kind and fivetuple.Network. An IP address is
// 4 or 16 bytes, or NULL; the name beside it is then an IPv6 zone, else a Unix
// path. rtt is NULL where nothing is known of TCP. The ids of events are their
// order of recording and never used twice.
const schema = `
CREATE TABLE services (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE runs (id INTEGER PRIMARY KEY, started INTEGER NOT NULL, ended INTEGER);
CREATE TABLE events (
	id INTEGER PRIMARY KEY,
	run INTEGER NOT NULL,
	time INTEGER NOT NULL,
	kind INTEGER NOT NULL,
	service INTEGER NOT NULL,
	conn INTEGER NOT NULL,
	protocol INTEGER NOT NULL,
	local_ip BLOB, local_port INTEGER NOT NULL, local_name TEXT NOT NULL,
	remote_ip BLOB, remote_port INTEGER NOT NULL, remote_name TEXT NOT NULL,
	bytes_in INTEGER NOT NULL, bytes_out INTEGER NOT NULL,
	packets_in INTEGER NOT NULL, packets_out INTEGER NOT NULL,
	duration INTEGER NOT NULL, cause TEXT NOT NULL, error TEXT NOT NULL,
	rtt INTEGER, rttvar INTEGER NOT NULL, retransmits INTEGER NOT NULL, cwnd INTEGER NOT NULL, mss INTEGER NOT NULL
);
CREATE INDEX events_time ON events (time);`
