package table

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/owner"
	"github.com/fivetuple/fivetuple/sockdiag"
)

var compareAddrs = cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })

func socket(state fivetuple.State, local, remote string) Row {
	s := Row{Socket: sockdiag.Socket{Protocol: fivetuple.TCP, State: state, Local: netip.MustParseAddrPort(local)}}
	if remote != "" {
		s.Remote = netip.MustParseAddrPort(remote)
	}
	return s
}

func TestDestinationsCountPortsOfTheRangePerLocalAndRemoteEnd(t *testing.T) {
	udp := socket(fivetuple.StateEstablished, "10.0.0.1:40003", "10.0.0.9:80")
	udp.Protocol = fivetuple.UDP
	sockets := []Row{
		socket(fivetuple.StateEstablished, "10.0.0.1:40000", "10.0.0.9:80"),
		socket(fivetuple.StateTimeWait, "10.0.0.1:40001", "10.0.0.9:80"),
		socket(fivetuple.StateSynSent, "10.0.0.1:40002", "10.0.0.9:80"),
		socket(fivetuple.StateEstablished, "10.0.0.1:40000", "10.0.0.9:81"), // another port there
		socket(fivetuple.StateEstablished, "10.0.0.2:40000", "10.0.0.9:80"), // another address here
		socket(fivetuple.StateEstablished, "10.0.0.1:39999", "10.0.0.9:80"), // no ephemeral port
		socket(fivetuple.StateListen, "10.0.0.1:40000", ""),
		udp,
	}
	got := Destinations(sockets, func(port uint16) bool { return port >= 40000 }, 1)
	want := []Destination{
		{Local: netip.MustParseAddr("10.0.0.1"), Remote: netip.MustParseAddrPort("10.0.0.9:80"), Ports: 3, TimeWait: 1},
		{Local: netip.MustParseAddr("10.0.0.1"), Remote: netip.MustParseAddrPort("10.0.0.9:81"), Ports: 1},
		{Local: netip.MustParseAddr("10.0.0.2"), Remote: netip.MustParseAddrPort("10.0.0.9:80"), Ports: 1},
	}
	compareAddr := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	if diff := cmp.Diff(want, got, compareAddrs, compareAddr); diff != "" {
		t.Errorf("want -, got +:\n%s", diff)
	}
	if got := Destinations(sockets, func(uint16) bool { return true }, 4); len(got) != 1 || got[0].Ports != 4 {
		t.Errorf("with at least 4 ports: got %v, want one destination with 4", got)
	}
}

func TestCloseWaitsCountEachProcessOnce(t *testing.T) {
	nginx, worker := owner.Process{PID: 7, Command: "nginx"}, owner.Process{PID: 9, Command: "worker"}
	holders := map[uint32][]owner.Holder{
		1: {{Process: nginx, FD: 3}, {Process: nginx, FD: 4}, {Process: worker, FD: 3}},
		2: {{Process: nginx, FD: 5}},
	}
	row := func(inode, queue, uid uint32) Row {
		s := socket(fivetuple.StateCloseWait, "10.0.0.1:80", "10.0.0.9:4000")
		s.Inode, s.RecvQueue, s.UID, s.Owners = inode, queue, uid, holders[inode]
		return s
	}
	open := row(2, 0, 0)
	open.State = fivetuple.StateEstablished
	got := CloseWaits([]Row{row(1, 0, 33), row(2, 5, 33), row(3, 0, 44), row(0, 9, 0), open})
	want := []CloseWait{
		{Process: nginx, UID: 33, Sockets: 2, Unread: 1},
		{Unaccepted: true, Sockets: 1, Unread: 1},
		{UID: 44, Sockets: 1},
		{Process: worker, UID: 33, Sockets: 1},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("want -, got +:\n%s", diff)
	}
}
