package changes

import (
	"testing"

	"github.com/fivetuple/fivetuple/internal/lab"
)

// TestMain runs the tests in the lab, where no other program has sockets.
func TestMain(m *testing.M) { lab.Main(m) }
