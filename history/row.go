package history

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/stats"
)

// Entry is an event as it was recorded.
type Entry struct {
	ID  int64 // its place in the order of recording
	Run int64 // the recording process: connection ids are unique within a run and service
	stats.Event
}

// MarshalJSON writes the event with the keys that every command shares, after "id" and "run".
func (e Entry) MarshalJSON() ([]byte, error) {
	b, err := json.Marshal(e.Event)
	if err != nil {
		return nil, err
	}
	return append(fmt.Appendf(nil, `{"id":%d,"run":%d,`, e.ID, e.Run), b[1:]...), nil
}

const insertEvent = `INSERT INTO events (run, service, time, kind, conn, protocol,
	local_ip, local_port, local_name, remote_ip, remote_port, remote_name,
	bytes_in, bytes_out, packets_in, packets_out, duration, cause, error,
	rtt, rttvar, retransmits, cwnd, mss)
	VALUES (?,?,?,?,?,?, ?,?,?,?,?,?, ?,?,?,?,?,?,?, ?,?,?,?,?)`

const selectEvent = `SELECT id, run, (SELECT name FROM services WHERE id = events.service), time, kind, conn, protocol,
	local_ip, local_port, local_name, remote_ip, remote_port, remote_name,
	bytes_in, bytes_out, packets_in, packets_out, duration, cause, error,
	rtt, rttvar, retransmits, cwnd, mss FROM events `

// appendColumns appends the arguments of insertEvent for e.
func appendColumns(args []any, run, service int64, e *stats.Event) []any {
	localIP, localPort, localName := addressColumns(e.Tuple.Local)
	remoteIP, remotePort, remoteName := addressColumns(e.Tuple.Remote)
	tcp, rtt := stats.TCP{}, any(nil)
	if e.TCP != nil {
		tcp, rtt = *e.TCP, int64(e.TCP.RTT)
	}
	return append(args, run, service, nanoseconds(e.Time), int64(e.Kind), int64(e.Conn), int64(e.Tuple.Protocol),
		localIP, localPort, localName, remoteIP, remotePort, remoteName,
		count(e.BytesIn), count(e.BytesOut), count(e.PacketsIn), count(e.PacketsOut), int64(e.Duration), e.Cause, e.Err,
		rtt, int64(tcp.RTTVar), int64(tcp.Retransmits), int64(tcp.Cwnd), int64(tcp.MSS))
}

// nanoseconds is a time as the file has it. That reaches from 1677 to 2262; what
// is earlier or later counts as its first or last moment.
func nanoseconds(t time.Time) int64 {
	switch {
	case t.Before(time.Unix(0, math.MinInt64)):
		return math.MinInt64
	case t.After(time.Unix(0, math.MaxInt64)):
		return math.MaxInt64
	}
	return t.UnixNano()
}

// count fits a count into SQLite's signed integers.
func count(n uint64) int64 { return int64(min(n, math.MaxInt64)) }

// addressColumns splits an address. IPv4 addresses mapped into IPv6 are kept
// as plain IPv4, so that conditions find them.
func addressColumns(a fivetuple.Address) (ip any, port int64, name string) {
	addr := a.AddrPort.Addr().Unmap()
	if !addr.IsValid() {
		return nil, 0, a.Name
	}
	return addr.AsSlice(), int64(a.AddrPort.Port()), addr.Zone()
}

func addressOf(ip []byte, port uint16, name string) fivetuple.Address {
	addr, ok := netip.AddrFromSlice(ip)
	if !ok {
		return fivetuple.Address{Name: name}
	}
	return fivetuple.Address{AddrPort: netip.AddrPortFrom(addr.WithZone(name), port)}
}

// scanEntry reads a row of selectEvent.
func scanEntry(rows *sql.Rows) (Entry, error) {
	var (
		e                     Entry
		ns, conn              int64
		localIP, remoteIP     sql.RawBytes
		localPort, remotePort uint16
		localName, remoteName string
		rtt                   sql.NullInt64
		tcp                   stats.TCP
	)
	err := rows.Scan(&e.ID, &e.Run, &e.Service, &ns, &e.Kind, &conn, &e.Tuple.Protocol,
		&localIP, &localPort, &localName, &remoteIP, &remotePort, &remoteName,
		&e.BytesIn, &e.BytesOut, &e.PacketsIn, &e.PacketsOut, &e.Duration, &e.Cause, &e.Err,
		&rtt, &tcp.RTTVar, &tcp.Retransmits, &tcp.Cwnd, &tcp.MSS)
	if err != nil {
		return Entry{}, err
	}
	e.Time, e.Conn = time.Unix(0, ns), uint64(conn)
	e.Tuple.Local = addressOf(localIP, localPort, localName)
	e.Tuple.Remote = addressOf(remoteIP, remotePort, remoteName)
	if rtt.Valid {
		tcp.RTT = time.Duration(rtt.Int64)
		e.TCP = &tcp
	}
	return e, nil
}
