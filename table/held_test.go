package table

import (
	"testing"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/owner"
	"github.com/fivetuple/fivetuple/sockdiag"
)

func TestHeldSaysWhyNoProcessIsNamed(t *testing.T) {
	row := func(state fivetuple.State, inode uint32, owners ...owner.Holder) Row {
		return Row{Socket: sockdiag.Socket{State: state, Inode: inode}, Owners: owners}
	}
	nginx := owner.Holder{Process: owner.Process{PID: 7, Command: "nginx", User: "www"}}
	const hidden = "a process that /proc does not show here (run as root on the host to see which), or the kernel itself"
	for _, tt := range []struct {
		held Held
		want string
	}{
		{Held{Unreadable: 3}, "nobody any more"},
		{Held{Rows: []Row{row(fivetuple.StateListen, 1), row(fivetuple.StateListen, 2, nginx)}, Unreadable: 3}, `"nginx" (pid 7, user www)`},
		{Held{Rows: []Row{row(fivetuple.StateListen, 1)}, Unreadable: 3}, "a process of another user (run as root to see which)"},
		{Held{Rows: []Row{row(fivetuple.StateListen, 1)}}, hidden},
		{Held{Rows: []Row{row(fivetuple.StateTimeWait, 0), row(fivetuple.StateListen, 1)}}, hidden},
		{Held{Rows: []Row{row(fivetuple.StateFinWait2, 0)}, Unreadable: 3}, "a socket in state FIN_WAIT2 that no process holds"},
		{Held{Rows: []Row{row(fivetuple.StateTimeWait, 0)}, Unreadable: 3},
			"a socket in state TIME_WAIT that no process holds (it ends by itself within a minute)"},
	} {
		if got := tt.held.String(); got != tt.want {
			t.Errorf("%+v\ngot  %s\nwant %s", tt.held, got, tt.want)
		}
	}
}
