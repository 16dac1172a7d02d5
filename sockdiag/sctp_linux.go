package sockdiag

import (
	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
)

// sctpRequests asks sctp_diag, which takes the states for a hint of what to go
// through, and lists an endpoint again before its associations. An association
// is a socket here, with the cookie and inode of its endpoint.
func (q Query) sctpRequests(d *decoder) []request {
	type row struct {
		cookie uint64
		ends   ends
	}
	seen, every := map[row]bool{}, q
	every.States = 0
	return every.inetPair(d, fivetuple.SCTP, unix.IPPROTO_SCTP, func(s *Socket) bool {
		s.Timer = Timer{} // has numbers of its own
		if s.Remote.IsValid() {
			s.State = sctpState(s.State)
		}
		r := row{s.Cookie, ends{s.Local, s.Remote}}
		first := !seen[r]
		seen[r] = true
		return first && q.States.include(s.State)
	})
}

// sctpState is the like in TCP of an association's state (enum sctp_state,
// include/net/sctp/constants.h).
func sctpState(n fivetuple.State) fivetuple.State {
	states := [...]fivetuple.State{
		0: fivetuple.StateClose,
		1: fivetuple.StateSynSent,     // COOKIE_WAIT
		2: fivetuple.StateSynSent,     // COOKIE_ECHOED
		3: fivetuple.StateEstablished, // ESTABLISHED
		4: fivetuple.StateFinWait1,    // SHUTDOWN_PENDING
		5: fivetuple.StateFinWait1,    // SHUTDOWN_SENT
		6: fivetuple.StateCloseWait,   // SHUTDOWN_RECEIVED
		7: fivetuple.StateLastAck,     // SHUTDOWN_ACK_SENT
	}
	if int(n) < len(states) {
		return states[n]
	}
	return fivetuple.StateUnknown
}
