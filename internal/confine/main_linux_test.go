package confine

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// atOnce has a program with the race detector end without the second that it waits by default.
const atOnce = "GORACE=atexit_sleep_ms=0"

// aloneVariable tells the test binary to play the process of one test.
const aloneVariable = "FT_CONFINE_TEST"

func TestMain(m *testing.M) {
	if os.Getenv(aloneVariable) == sayRights {
		saysRights()
		return
	}
	os.Exit(m.Run())
}

// alone runs the body in a process of its own, since what this package does cannot be undone.
// The process has an empty directory as its os.TempDir that others may enter too.
func alone(t *testing.T, body func(t *testing.T)) {
	t.Helper()
	if os.Getenv(aloneVariable) == t.Name() {
		body(t)
		return
	}
	dir := scratch(t)
	cmd := exec.CommandContext(t.Context(), executable(t), "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), aloneVariable+"="+t.Name(), "TMPDIR="+dir, atOnce)
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Errorf("the process of the test: %v\n%s", err, out)
	}
}

// scratch is a directory that other users may enter, as t.TempDir is not.
func scratch(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "confine")
	ok(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	ok(t, os.Chmod(dir, 0o755))
	return dir
}

func executable(t *testing.T) string {
	t.Helper()
	exe, err := os.Executable()
	ok(t, err)
	return exe
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantError(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// makeFile makes dir/name, and dir. Others may read them.
func makeFile(t *testing.T, dir, name string) string {
	t.Helper()
	ok(t, os.MkdirAll(dir, 0o755))
	path := filepath.Join(dir, name)
	ok(t, os.WriteFile(path, []byte(name), 0o644))
	return path
}

// crowd is a number of threads that there are at once, more than a Go program has by itself.
const crowd = 24

// eachOfMany calls do on many threads at once: those there are, and new ones.
func eachOfMany(t *testing.T, do func() error) {
	t.Helper()
	var together, done sync.WaitGroup
	together.Add(crowd)
	for range crowd {
		done.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			together.Done()
			together.Wait()
			if err := do(); err != nil {
				t.Errorf("thread %d: %v", unix.Gettid(), err)
			}
		})
	}
	done.Wait()
}

// sayRights has the test binary print the credentials that it was started with.
const sayRights = "say-rights"

func saysRights() {
	s, err := readStatus("/proc/self/status")
	if err != nil {
		os.Stdout.WriteString(err.Error())
		return
	}
	for _, key := range []string{"Uid", "Gid", "CapPrm", "CapEff", "CapAmb", "NoNewPrivs"} {
		os.Stdout.WriteString(key + " " + s[key] + "\n")
	}
}

// rightsOf starts a copy of the test binary and returns what rights it has.
func rightsOf(exe string, as *unix.SysProcAttr) (string, error) {
	cmd := exec.Command(exe)
	cmd.Env = []string{aloneVariable + "=" + sayRights, atOnce}
	cmd.SysProcAttr = as
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// copyOfTest is the test binary where others may run it too.
func copyOfTest(t *testing.T, mode fs.FileMode) string {
	t.Helper()
	path := filepath.Join(os.TempDir(), "program")
	text, err := os.ReadFile(executable(t))
	ok(t, err)
	ok(t, os.WriteFile(path, text, 0o755))
	ok(t, os.Chmod(path, mode))
	return path
}
