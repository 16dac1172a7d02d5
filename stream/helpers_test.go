package stream

import (
	"crypto/tls"
	"os/exec"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple/secure"
)

// selfSigned is the configuration of a server for localhost.
func selfSigned(t testing.TB) *tls.Config {
	t.Helper()
	config, err := secure.Server{SelfSigned: true}.Config()
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// waitFor returns when something has become true, within ten seconds.
func waitFor(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("within ten seconds not: %s", what)
		}
	}
}

// program names a command that another Debian package has.
func program(t testing.TB, name, pkg string, args ...string) *exec.Cmd {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Fatalf("%v: apt-get install %s", err, pkg)
	}
	return exec.CommandContext(t.Context(), name, args...)
}
