package inspect

import (
	"testing"

	"github.com/fivetuple/fivetuple/internal/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }
