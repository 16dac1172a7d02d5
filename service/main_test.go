package service

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/fivetuple/fivetuple/internal/lab"
)

func TestMain(m *testing.M) {
	lab.Enter()
	goleak.VerifyTestMain(m)
}
