package stream

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

func TestAUnixSocketIsBornWithItsMode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	ln, err := (&net.ListenConfig{Control: modeBeforeBind(0o600)}).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("after bind the mode is %v, %v; want 0600 at once", info.Mode().Perm(), err)
	}
}
