package table

import (
	"slices"
	"strings"
	"testing"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/sockdiag"
)

func TestEachGivesTheRowsThatReadHasWithTheirOwners(t *testing.T) {
	alone(t, func() { eachGivesTheRowsThatReadHas(t) })
}

func eachGivesTheRowsThatReadHas(t *testing.T) {
	// More than once the rows after which it is seen whether owners are known.
	ln := listen(t, "tcp", "127.0.0.1:0")
	for range ownEvery {
		dial(t, ln.Addr())
		accept(t, ln)
	}
	dial(t, ln.Addr()) // not accepted
	for _, filter := range []string{"", "tcp and state established", "sport = :" + portOf(ln.Addr())} {
		q := Query{Owners: true, Protocols: []fivetuple.Network{fivetuple.TCP, fivetuple.Unix}}
		if filter != "" {
			q.Filter = parse(t, filter)
		}
		want, err := Read(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		got := &Table{}
		if err := Each(t.Context(), q, func(r *Row) bool { got.Rows = append(got.Rows, *r); return true }); err != nil {
			t.Fatal(err)
		}
		g, w := described(got), described(want)
		if len(g) < ownEvery || !slices.Equal(g, w) {
			t.Errorf("%q: got %d rows, want %d; of these only:\n%.600s\n%.600s", filter, len(g), len(w), only(g, w), only(w, g))
		}
	}
	n := 0
	if err := Each(t.Context(), Query{Owners: true}, func(*Row) bool { n++; return n < 3 }); err != nil || n != 3 {
		t.Errorf("stopped after 3 rows: got %d, %v", n, err)
	}
}

func described(t *Table) (all []string) {
	for i := range t.Rows {
		t.Rows[i].Timer = sockdiag.Timer{} // it goes on
		all = append(all, string(t.Rows[i].AppendJSON(nil)))
	}
	slices.Sort(all)
	return all
}

func only(some, others []string) string {
	return strings.Join(slices.DeleteFunc(slices.Clone(some), func(s string) bool { return slices.Contains(others, s) }), "\n")
}
