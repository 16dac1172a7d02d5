package doctor

import (
	"fmt"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/table"
)

func listenBacklog(m *machine) ([]Finding, error) {
	const usual = 4096 // since Linux 5.4; 128 before
	n, err := m.number("net.core.somaxconn")
	if err != nil {
		return nil, err
	}
	value := fmt.Sprintf("a backlog of %d at most", n)
	if n >= usual {
		return fine(value)
	}
	level := Note
	if n < 512 {
		level = Warning
	}
	return bad(level, value,
		fmt.Sprintf("listen(2) cuts a longer backlog silently: when %d connections wait for accept(2), more are dropped.", n+1),
		fmt.Sprintf("sysctl -w net.core.somaxconn=%d", usual))
}

// synBacklog looks at what happens when the SYN queue of a listener is full.
// The kernel uses tcp_max_syn_backlog only without SYN cookies
// (tcp_conn_request, net/ipv4/tcp_input.c); otherwise the backlog bounds the queue.
func synBacklog(m *machine) ([]Finding, error) {
	cookies, err := m.number("net.ipv4.tcp_syncookies")
	if err != nil {
		return nil, err
	}
	switch cookies {
	case 1:
		return fine("SYN cookies when the queue of a listener is full")
	case 2:
		return bad(Note, "SYN cookies for every connection",
			"That is for tests: connections lose TCP options, such as window scaling where there are no timestamps.",
			"sysctl -w net.ipv4.tcp_syncookies=1")
	}
	value := "no SYN cookies"
	if n, err := m.number("net.ipv4.tcp_max_syn_backlog"); err == nil {
		value = fmt.Sprintf("no SYN cookies, %d half-open connections of a listener at most", n)
	}
	return bad(Warning, value, "When nearly that many clients, or as many as its backlog, have sent only a SYN, a listener drops new ones: a SYN flood shuts it.",
		"sysctl -w net.ipv4.tcp_syncookies=1")
}

func abortOnOverflow(m *machine) ([]Finding, error) {
	n, err := m.number("net.ipv4.tcp_abort_on_overflow")
	if err != nil {
		return nil, err
	}
	if n != 0 {
		return bad(Note, "on", "When the accept queue is full clients get a reset, where by default they try again and a short burst does no harm.",
			"sysctl -w net.ipv4.tcp_abort_on_overflow=0")
	}
	return fine("off")
}

// listenOverflows reads what was counted in the network namespace since it was made.
func listenOverflows(m *machine) ([]Finding, error) {
	overflows, err := m.netstat("ListenOverflows")
	if err != nil {
		return nil, err
	}
	drops, err := m.netstat("ListenDrops") // overflows are among them
	if err != nil {
		return nil, err
	}
	value := fmt.Sprintf("%d overflows of accept queues, %d connections dropped by listeners, since boot", overflows, drops)
	if drops == 0 {
		return fine(value)
	}
	return bad(Note, value, "Clients had to send again, and waited a second or more, or gave up. The counters do not say when (a container counts from its start): look whether they grow.",
		"let the server call accept(2) sooner, or give listen(2) a longer backlog")
}

// acceptQueue looks for listeners whose accept queue is full now, or nearly.
func acceptQueue(m *machine) ([]Finding, error) {
	if m.tcpErr != nil {
		return nil, m.tcpErr
	}
	var found []Finding
	listeners := 0
	for _, rows := range [][]table.Row{m.tcp, m.unix} {
		for i := range rows {
			r := &rows[i]
			if r.State != fivetuple.StateListen {
				continue
			}
			listeners++
			if level := queueLevel(r); level != OK {
				found = append(found, fullQueue(r, level))
			}
		}
	}
	if m.unixErr != nil {
		found = append(found, unknown(m.unixErr))
	}
	if len(found) == 0 {
		return fine(fmt.Sprintf("none of %d listeners has a full queue", listeners))
	}
	return found, nil
}

// queueLevel says how full the accept queue of a listener is. The kernel takes
// one more than the backlog (sk_acceptq_is_full, include/net/sock.h).
func queueLevel(r *table.Row) Level {
	switch {
	case r.State != fivetuple.StateListen:
		return OK
	case r.QueueFull():
		return Problem
	case uint64(r.RecvQueue)*5 > uint64(r.SendQueue)*4:
		return Warning
	}
	return OK
}

func fullQueue(s *table.Row, level Level) Finding {
	f := Finding{
		Level: level, Subject: s.Name, Value: fmt.Sprintf("%d connections wait for accept(2), the backlog is %d", s.RecvQueue, s.SendQueue),
		Effect: "When it is full connect(2) waits until the server accepts, and fails with EAGAIN if it is not to wait.",
		Fix:    "find out why it does not accept; a longer backlog helps against short bursts",
	}
	if s.Protocol.IsIP() {
		f.Subject = s.Local.String()
		f.Effect = "When it is full the kernel drops new connections: clients wait and try again, or time out."
	}
	if len(s.Owners) > 0 {
		f.Subject += fmt.Sprintf(` of "%s" (pid %d)`, s.Owners[0].Command, s.Owners[0].PID)
	}
	return f
}
