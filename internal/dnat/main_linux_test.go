package dnat

import (
	"testing"

	"github.com/fivetuple/fivetuple/internal/lab"
)

// TestMain runs the tests in the lab, where the packet filter has no rules.
func TestMain(m *testing.M) { lab.Main(m) }
