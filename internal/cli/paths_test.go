package cli

import (
	"os"
	"testing"
)

// systemd.exec(5): several directories have colons in between.
func TestFirstOfSeveralServiceDirectories(t *testing.T) {
	both := "/a" + string(os.PathListSeparator) + "/b"
	t.Setenv("STATE_DIRECTORY", both)
	t.Setenv("RUNTIME_DIRECTORY", both)
	if got, err := historyPath(); err != nil || got != "/a/history.db" {
		t.Errorf("history: got %s, %v, want /a/history.db", got, err)
	}
	if got := runtimeDir(); got != "/a" {
		t.Errorf("runtime directory: got %s, want /a", got)
	}
}
