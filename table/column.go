package table

import (
	"slices"
	"strings"

	"github.com/fivetuple/fivetuple/sockdiag"
)

// Column is a thing that can be shown of a row, and sorted by.
type Column struct {
	Name  string // as --columns and --sort take it: "rtt"
	Head  string // above it: "RTT"
	Doc   string // in a few words
	Right bool   // numbers are aligned to the right
	Key   string // in CSV and JSON, with the unit: "rtt_s"
	// Needs and Owners say what a [Query] must ask for.
	Needs  sockdiag.Details
	Owners bool
	Peers  bool
	// Text appends the cell for people, nothing if there is no value; it may
	// hold what does not print.
	Text func(b []byte, r *Row) []byte
	// Value appends the JSON value; where there is none that is null, "" or [].
	Value func(b []byte, r *Row) []byte
	// Compare orders rows by the column, the smallest first.
	Compare func(a, b *Row) int
}

// Columns lists every column, in the order that wide output has them.
func Columns() []Column { return columns }

// ColumnNamed finds a column by its name.
func ColumnNamed(name string) (Column, bool) {
	i := slices.IndexFunc(columns, func(c Column) bool { return strings.EqualFold(c.Name, name) })
	if i < 0 {
		return Column{}, false
	}
	return columns[i], true
}
