package doctor

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/table"
)

// From so many connections in CLOSE_WAIT of one process on it does not just
// happen to be about to close them.
const (
	manyCloseWait    = 20
	harmfulCloseWait = 1000
)

func closeWait(m *machine) ([]Finding, error) {
	if m.tcpErr != nil {
		return nil, m.tcpErr
	}
	var found []Finding
	sum := 0
	for _, c := range table.CloseWaits(m.tcp) {
		sum += c.Sockets
		if c.Sockets >= manyCloseWait {
			found = append(found, unclosed(c))
		}
	}
	if len(found) == 0 {
		return fine(fmt.Sprintf("%d in CLOSE_WAIT, no process has %d or more", sum, manyCloseWait))
	}
	return found, nil
}

func unclosed(c table.CloseWait) Finding {
	f := Finding{
		Level: Warning, Value: fmt.Sprintf("%d connections in CLOSE_WAIT, %d of them not read to the end", c.Sockets, c.Unread),
		Effect: "The peers have closed these connections and the program has not. Each keeps a descriptor and memory until it does; they do not time out.",
		Fix:    "close the connection when a read returns 0 (end of file); a restart frees them",
	}
	if c.Sockets >= harmfulCloseWait {
		f.Level = Problem
	}
	switch {
	case c.Unaccepted:
		f.Subject = "not accepted yet"
		f.Effect = "The clients gave up before the server called accept(2)."
		f.Fix = "find out why the server does not accept: see ft ls for listeners with a long queue"
	case c.Process.PID == 0:
		f.Subject = fmt.Sprintf("a process that cannot be seen, user id %d", c.UID)
	default:
		f.Subject = fmt.Sprintf(`"%s" (pid %d)`, c.Process.Command, c.Process.PID)
	}
	return f
}

// finWait counts the connections that were closed on this side and wait for the peer.
func finWait(m *machine) ([]Finding, error) {
	const many = 1000
	if m.tcpErr != nil {
		return nil, m.tcpErr
	}
	var one, two, held int
	for i := range m.tcp {
		switch s := &m.tcp[i]; s.State {
		case fivetuple.StateFinWait1:
			one++
		case fivetuple.StateFinWait2:
			two++
			if s.Inode != 0 {
				held++
			}
		}
	}
	value := fmt.Sprintf("%d in FIN_WAIT1, %d in FIN_WAIT2", one, two)
	switch {
	case one >= many:
		return bad(Note, value, "Peers do not acknowledge the end of their connections: they are gone, or do not read. The kernel sends again until tcp_orphan_retries, or probes a closed window, and keeps the unsent data.",
			"ft ls -a state fin-wait-1")
	case held >= many:
		return bad(Note, fmt.Sprintf("%s, %d of them held by processes", value, held),
			"A program has shut down its side (SHUT_WR) and waits for the peer's end, which the kernel does not limit in time.",
			"read with a time limit after shutdown(2), then close")
	}
	return fine(value)
}

func finTimeout(m *machine) ([]Finding, error) {
	n, err := m.number("net.ipv4.tcp_fin_timeout")
	if err != nil {
		return nil, err
	}
	value := fmt.Sprintf("%d s in FIN_WAIT2 for closed sockets", n)
	if n > 60 {
		return bad(Note, value, "Connections whose peer never closes its side are kept that long. The length of TIME_WAIT is another: always 60 s.",
			"sysctl -w net.ipv4.tcp_fin_timeout=60")
	}
	return fine(value)
}

// orphans compares the TCP sockets that no process holds any more with their
// limit, both of the machine.
func orphans(m *machine) ([]Finding, error) {
	used, err := m.sockstat("TCP", "orphan")
	if err != nil {
		return nil, err
	}
	limit, err := m.number("net.ipv4.tcp_max_orphans")
	if err != nil {
		return nil, err
	}
	value := fmt.Sprintf("%d closed and not yet at their end, of %d at most", used, limit)
	if level := levelOfUse(used, limit); level != OK {
		return bad(level, value, "Over the limit the kernel resets connections that a program closes, and data not yet sent is lost. An orphan can take 64 KiB of memory.",
			fmt.Sprintf("sysctl -w net.ipv4.tcp_max_orphans=%d", 2*limit))
	}
	return fine(value)
}

// conntrack compares the connections that the packet filter tracks with their limit.
func conntrack(m *machine) ([]Finding, error) {
	used, err := m.number("net.netfilter.nf_conntrack_count")
	if errors.Is(err, fs.ErrNotExist) {
		return fine("connections are not tracked here")
	}
	if err != nil {
		return nil, err
	}
	limit, err := m.number("net.netfilter.nf_conntrack_max")
	if err != nil {
		return nil, err
	}
	value := fmt.Sprintf("%d tracked connections of %d at most", used, limit)
	if level := levelOfUse(used, limit); level != OK {
		return bad(level, value, `When the table is full packets of new connections are dropped ("nf_conntrack: table full, dropping packet" in the kernel's log).`,
			fmt.Sprintf("sysctl -w net.netfilter.nf_conntrack_max=%d", 2*limit))
	}
	return fine(value)
}
