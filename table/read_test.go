package table

import (
	"slices"
	"testing"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/sockdiag"
)

func TestASocketThatWasListedTwiceIsKeptOnce(t *testing.T) {
	const listen, closed, established = fivetuple.StateListen, fivetuple.StateClose, fivetuple.StateEstablished
	type socket struct {
		cookie uint64
		state  fivetuple.State
	}
	for _, tt := range []struct {
		name       string
		rows, want []socket
	}{
		{"bound, then connected", []socket{{1, established}, {2, established}, {1, closed}}, []socket{{1, established}, {2, established}}},
		{"bound, then listening", []socket{{1, listen}, {2, listen}, {1, closed}}, []socket{{1, listen}, {2, listen}}},
		{"several", []socket{{1, closed}, {2, closed}, {3, closed}, {1, established}, {3, established}}, []socket{{2, closed}, {1, established}, {3, established}}},
		{"without cookies", []socket{{0, closed}, {0, closed}, {0, established}}, []socket{{0, closed}, {0, closed}, {0, established}}},
	} {
		table := Table{Rows: []Row{{}}} // of another namespace
		for _, s := range tt.rows {
			table.Rows = append(table.Rows, Row{Socket: sockdiag.Socket{Cookie: s.cookie, State: s.state}})
		}
		table.dropRepeated(1)
		var got []socket
		for i := range table.Rows[1:] {
			got = append(got, socket{table.Rows[1+i].Cookie, table.Rows[1+i].State})
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}
