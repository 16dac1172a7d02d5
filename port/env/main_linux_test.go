package env

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/fivetuple/fivetuple/internal/lab"
	"github.com/fivetuple/fivetuple/port/lease"
)

// The test binary plays `ft port env FILE` if this variable names the file.
const playVariable = "ENV_TEST_FILE"

func TestMain(m *testing.M) {
	if file := os.Getenv(playVariable); file != "" {
		if err := play(file); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	lab.Enter()
	// Tests ask for ports by number: the kernel is to take none of these for port 0 or a client.
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("61000 65535"), 0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	// Each registry of these tests is by itself.
	os.Setenv("FT_CLAIMS_DIR", "none")
	os.Exit(m.Run())
}

func play(file string) error {
	ctx := context.Background()
	path, err := lease.DefaultPath()
	if err != nil {
		return err
	}
	ports, err := lease.Open(ctx, path, lease.Options{})
	if err != nil {
		return err
	}
	defer ports.Close()
	project, err := Load(file)
	if err != nil {
		return err
	}
	variables, err := project.Lease(ctx, ports)
	for _, v := range variables {
		fmt.Printf("%s=%d\n", v.Name, v.Port)
	}
	return err
}

// openRegistry opens one for the test alone, and makes it this user's.
func openRegistry(t *testing.T) *lease.Shared {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("STATE_DIRECTORY", dir)
	ports, err := lease.Open(t.Context(), filepath.Join(dir, "ports.db"), lease.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ports.Close(); err != nil {
			t.Error(err)
		}
	})
	return ports
}
