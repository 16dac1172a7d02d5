package changes

import (
	"testing"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/filter"
	"github.com/fivetuple/fivetuple/sockopt"
)

// The kernel's event of an end may come after the look that shows the socket no more.
func TestEventOfAnEndIsWaitedFor(t *testing.T) {
	for _, late := range []bool{false, true} {
		w, rows := many(1)
		w.compare(nil)
		if len(w.pending) > 0 {
			t.Errorf("told before its event: %+v", w.pending)
		}
		event := destroyed{at: time.Now(), socket: rows[0].Socket}
		event.socket.State, event.socket.Info = fivetuple.StateClose, &sockopt.TCPInfo{Size: 280, RTT: 1, BytesReceived: 5}
		if late {
			for _, s := range w.known {
				s.absent = s.absent.Add(-grace)
			}
			w.compare(nil)
		}
		if err := w.take(event); err != nil {
			t.Fatal(err)
		}
		want := ""
		if late {
			want = errUnhashed
		}
		if len(w.pending) != 1 || w.pending[0].Kind != Close || w.pending[0].Err != want || w.pending[0].Final == late {
			t.Errorf("late %v: got %+v, want one close with error %q", late, w.pending, want)
		}
		if len(w.known) > 0 || len(w.closed) > 0 {
			t.Errorf("late %v: %d and %d are remembered, want none", late, len(w.known), len(w.closed))
		}
	}
}

// A connection has no inode, and no process, before it is accepted.
func TestOwnersAreLookedForAgainWhenASocketIsAccepted(t *testing.T) {
	w, rows := many(1)
	rows[0].Inode = 5
	w.compare(rows)
	if len(w.ownerless) != 1 {
		t.Errorf("of %d sockets, want 1", len(w.ownerless))
	}
	w.compare(rows)
	if len(w.ownerless) != 0 {
		t.Errorf("and again of %d", len(w.ownerless))
	}
}

// A filter on what only a look tells passes over what no look showed.
func TestSocketThatNoLookShowedHasNoUser(t *testing.T) {
	r := tcp(1, fivetuple.StateEstablished, "10.0.0.1:80", "10.0.0.2:5000")
	for text, want := range map[string]bool{"user root": false, "not user root": true, "port 80": true, "proc:nginx": false, "mark 0": false} {
		w := newWatcher(Options{Filter: parse(t, text)})
		w.unseen(&r, time.Now())
		if got := len(w.pending) == 1; got != want {
			t.Errorf("%s: told %v, want %v", text, got, want)
		}
	}
}

func parse(t *testing.T, text string) *filter.Filter {
	t.Helper()
	f, err := filter.Parse(t.Context(), text)
	if err != nil {
		t.Fatal(err)
	}
	return f
}
