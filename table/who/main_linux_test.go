package who

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"testing"

	"github.com/fivetuple/fivetuple/filter"
	"github.com/fivetuple/fivetuple/internal/lab"
)

// TestMain runs the tests in the lab, where no other program has sockets. The test
// binary also holds descriptors for the tests, and looks at them from elsewhere.
func TestMain(m *testing.M) {
	switch os.Getenv("FT_TEST_DO") {
	case "hold":
		fmt.Println("ready")
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	case "look":
		report, err := lookAt(context.Background(), os.Getenv("FT_TEST_TARGET"))
		if err == nil {
			err = json.NewEncoder(os.Stdout).Encode(report)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	lab.Main(m)
}

func lookAt(ctx context.Context, target string) (*Report, error) {
	f, err := filter.Parse(ctx, target)
	if err != nil {
		return nil, err
	}
	return About(ctx, Query{Filter: f})
}
