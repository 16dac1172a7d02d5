package activation

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// playPass becomes a shell that shows the files it is given.
func playPass(paths []string) {
	var files []Socket
	for i, path := range paths {
		files = append(files, Socket{Name: fmt.Sprint("n", i), File: must(os.Open(path))})
	}
	script := `[ "$LISTEN_PID" = $$ ] && echo "$LISTEN_FDS $LISTEN_FDNAMES"; cat <&3; cat <&4; [ -e /proc/self/fd/5 ] && echo more`
	ok(Pass(Command{Path: "sh", Args: []string{"-c", script}, Env: os.Environ()}, files))
}

func TestPassGivesFilesOfAnyKind(t *testing.T) {
	one, two := filepath.Join(t.TempDir(), "one"), filepath.Join(t.TempDir(), "two")
	ok(os.WriteFile(one, []byte("first\n"), 0o600))
	ok(os.WriteFile(two, []byte("second\n"), 0o600))
	cmd := exec.Command("/proc/self/exe", one, two)
	cmd.Env = append(os.Environ(), roleVar+"=pass", noSleep)
	out, _ := cmd.CombinedOutput()
	if got, want := string(out), "2 n0:n1\nfirst\nsecond\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestPassOfAProgramThatIsNotThereFails(t *testing.T) {
	f := must(os.Open("/dev/null"))
	defer f.Close()
	err := Pass(Command{Path: "no-such-program"}, []Socket{{File: f}})
	if want := `run no-such-program: exec: "no-such-program": executable file not found in $PATH`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}
