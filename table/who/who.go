// Package who tells all about one port, or whatever else a filter names: which
// processes hold it, since when and on behalf of what, from where it can be reached,
// who is connected, how full its queue is, what sends it elsewhere, and how to free it.
//
// It stands on package table, so on sock_diag(7) and /proc, and for the rules of
// the packet filter on nf_tables over netlink(7). On other systems than Linux
// [About] returns an error that wraps [errors.ErrUnsupported].
package who

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/filter"
	"github.com/fivetuple/fivetuple/owner"
	"github.com/fivetuple/fivetuple/port/lease"
	"github.com/fivetuple/fivetuple/table"
)

// MaxClients is how many addresses a [Port] lists at most.
const MaxClients = 10

// Query says what is to be told about.
type Query struct {
	// Filter chooses the sockets. A nil one is every socket.
	Filter *filter.Filter
	// Leases returns the leases of the machine's ports, those that nobody holds
	// too. It is called at most once, and only if it is of use. nil: there are none.
	Leases func(context.Context) ([]lease.Lease, error)
}

// Report is all about a target.
type Report struct {
	Target string `json:"target"` // the filter, in its one form
	// Ports are the ports, and Unix sockets, that the target's sockets use: those
	// that are listened on or bound first. A port that was asked for by number is
	// there also if nothing uses it.
	Ports []Port `json:"ports"`
	// Unknown says what could not be found out, and what that takes.
	Unknown []string `json:"unknown,omitempty"`
}

// Held says whether a process, or the kernel, holds anything of the target. What
// is left of connections that nobody has any more is not held.
func (r *Report) Held() bool {
	for i := range r.Ports {
		if r.Ports[i].Held() {
			return true
		}
	}
	return false
}

// Port is what uses one port of one protocol, or one Unix socket address.
type Port struct {
	Protocol fivetuple.Network `json:"protocol"`
	// Port is 0 for a Unix socket, which has a Name, and for the connections
	// from several ports on none of which the target listens.
	Port uint16 `json:"port,omitempty"`
	Name string `json:"name,omitempty"`

	// Listeners are the sockets that wait for peers, or are bound and no more.
	Listeners []Listener `json:"listeners"`
	// Holders are the processes that hold any of the sockets, those of listeners
	// first, MaxHolders at most. MoreHolders is how many are left out.
	Holders     []Holder `json:"holders"`
	MoreHolders int      `json:"more_holders"`
	// Ownerless counts the sockets without a holder, by the reason.
	Ownerless map[string]int `json:"ownerless,omitempty"`
	// States counts the connections, most first.
	States []StateCount `json:"states"`
	// Clients are those who are connected, by address, most first, MaxClients at
	// most. MoreClients and MoreConnections are what is left out.
	Clients         []Client `json:"clients"`
	MoreClients     int      `json:"more_clients"`
	MoreConnections int      `json:"more_connections"`
	// TimeWait is in how long the last connection in TIME_WAIT is forgotten.
	TimeWait time.Duration `json:"-"`

	Forwards []Forward     `json:"forwards,omitempty"`
	Leases   []lease.Lease `json:"leases,omitempty"`
	Bind     *Bind         `json:"bind,omitempty"` // unless somebody listens there
	Advice   []Advice      `json:"advice,omitempty"`
}

// MarshalJSON adds "time_wait_s".
func (p Port) MarshalJSON() ([]byte, error) {
	type fields Port
	return json.Marshal(struct {
		fields
		TimeWait float64 `json:"time_wait_s,omitempty"`
	}{fields(p), p.TimeWait.Seconds()})
}

// Held says whether a process holds any of the sockets, or one waits for peers.
func (p *Port) Held() bool { return len(p.Holders) > 0 || len(p.Listeners) > 0 || p.Hidden() > 0 }

// Hidden counts the sockets that somebody holds whom this process may not see.
func (p *Port) Hidden() int {
	return p.Ownerless[table.Denied.String()] + p.Ownerless[table.Hidden.String()]
}

// Listener is a socket that waits for peers, or is bound and no more.
type Listener struct {
	*table.Row
	// Reach is from where it can be reached.
	Reach Reach
}

// MarshalJSON adds "reach" to what [table.Row.AppendJSON] writes.
func (l Listener) MarshalJSON() ([]byte, error) {
	b := bytes.TrimSuffix(l.Row.AppendJSON(nil), []byte("}"))
	return fmt.Appendf(b, `,"reach":%q}`, l.Reach), nil
}

// Reach is from where a listener can be reached, as far as its address decides; a
// packet filter may say otherwise.
type Reach string

// The values of Reach.
const (
	Loopback   Reach = "loopback"  // from this machine only
	OneAddress Reach = "address"   // at one address of this machine
	AllIPv4    Reach = "all-ipv4"  // at every IPv4 address
	AllIPv6    Reach = "all-ipv6"  // at every IPv6 address
	Dual       Reach = "all"       // at every address, IPv4 and IPv6
	Group      Reach = "multicast" // what is sent to a multicast group
	Local      Reach = "local"     // a Unix socket, by whoever may open its path
)

// Holder is a process that holds sockets of the port.
type Holder struct {
	owner.Process
	// CommandLine is as the process tells it, so any bytes.
	CommandLine []string        `json:"command_line"`
	Started     time.Time       `json:"started,omitzero"`
	Ancestors   []owner.Process `json:"ancestors"` // parent first
	Unit        string          `json:"unit,omitempty"`
	Container   string          `json:"container,omitempty"`
	// Listening are its descriptors for listeners; Connections counts those for others.
	Listening   []int `json:"listening_fds"`
	Connections int   `json:"connection_fds"`

	cgroup string // its path
}

// StateCount counts connections in one state.
type StateCount struct {
	State fivetuple.State `json:"state"`
	Count int             `json:"count"`
}

// Client is one address from which there are connections.
type Client struct {
	Address     string `json:"address"`
	Connections int    `json:"connections"`
	// Processes hold the other end of some of them, on this machine.
	Processes []owner.Process `json:"processes,omitempty"`
}

// Forward is something that sends what comes to the port elsewhere.
type Forward struct {
	Kind ForwardKind `json:"kind"`
	// To is where to: "172.17.0.2:80". It is empty if that is not known.
	To   string `json:"to,omitempty"`
	By   string `json:"by"` // the process, or the rule
	Note string `json:"note,omitempty"`
	// Incoming and Local say what is sent there: what comes from other machines,
	// and what this one sends itself.
	Incoming bool `json:"incoming"`
	Local    bool `json:"local"`
	// Only is the address of this machine that it is for, "" for any.
	Only string `json:"only,omitempty"`
}

// ForwardKind says what forwards.
type ForwardKind string

// The kinds.
const (
	ByProcess ForwardKind = "process" // a holder relays, as its command line says
	ByRule    ForwardKind = "rule"    // the packet filter does before any socket sees it
)

// Bind is whether one could listen on the port now.
type Bind struct {
	lease.Availability
	Reason string `json:"reason,omitempty"` // why not
}

// Advice is a way to free the port.
type Advice struct {
	Command string `json:"command,omitempty"` // for a shell; empty if there is none
	Text    string `json:"text"`
}

// About finds out about the sockets of this network namespace that a query chooses.
func About(ctx context.Context, q Query) (*Report, error) { return about(ctx, q) }
