package sqlitefile

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"go.uber.org/goleak"
)

// TestMain also plays the processes that tests start.
func TestMain(m *testing.M) {
	if path := os.Getenv(pathVariable); path != "" {
		if err := insertAgainAndAgain(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// pathVariable tells the test binary to play a process that uses this file.
const pathVariable = "FT_SQLITEFILE_TEST_PATH"

const insertsPerProcess = 25

func insertAgainAndAgain(path string) error {
	for range insertsPerProcess {
		db, err := notes.Open(context.Background(), path)
		if err != nil {
			return err
		}
		if err := insert(context.Background(), db); err != nil {
			return notes.Wrap(path, err)
		}
		if err := db.Close(); err != nil {
			return notes.Wrap(path, err)
		}
	}
	return nil
}

// The last process to close empties the log and removes it, while others open.
func TestProcessesThatOpenWriteAndCloseLoseNothing(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := newPath(t)
	const processes = 6
	var cmds []*exec.Cmd
	for range processes {
		cmd := exec.CommandContext(t.Context(), exe)
		cmd.Env = append(os.Environ(), pathVariable+"="+path)
		cmd.Stderr = t.Output()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		cmds = append(cmds, cmd)
	}
	for _, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
	if n := count(t, open(t, path)); n != processes*insertsPerProcess {
		t.Errorf("%d rows, want %d", n, processes*insertsPerProcess)
	}
}
