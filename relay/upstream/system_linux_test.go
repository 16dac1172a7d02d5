package upstream

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

const inSystem = "UPSTREAM_TEST_IN_SYSTEM" // says that this process has the files below

// The name servers of resolv.conf(5), its search domains and /etc/hosts are those that a
// process without a Config.DNS has. Package net reads them once: that takes a process
// with files of its own.
func TestNamesAreThoseOfTheSystem(t *testing.T) {
	if os.Getenv(inSystem) == "" {
		runInSystem(t)
		return
	}
	p := resolvedPool(t, Config{Targets: endpoints("db:80", "plain.test:81", "file.test:82"), Refresh: time.Minute})
	for i, want := range []struct {
		address string
		next    time.Duration
	}{
		{"10.0.0.1:80", 44 * time.Second},
		{"10.0.0.2:81", 55 * time.Second},
		{"10.0.0.3:82", time.Minute},
	} {
		s := p.Status()[i]
		if got := s.NextLookup.Sub(s.Resolved); s.Address.String() != want.address || got != want.next {
			t.Errorf("%s is %s, to be asked for again after %v, want %s, %v (%s)", s.Target, s.Address, got, want.address, want.next, s.LookupError)
		}
	}
}

func runInSystem(t *testing.T) {
	n := newNameServer("db.example.test", a(44, "10.0.0.1")...)
	n.set("plain.test", a(55, "10.0.0.2")...)
	n.listenOn(t, "127.0.0.1:53") // of the lab, where nobody else is
	dir := t.TempDir()
	resolv, hosts := filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "hosts")
	for name, text := range map[string]string{
		resolv: "nameserver 127.0.0.1\nsearch example.test\n",
		hosts:  "10.0.0.3 file.test\n",
	} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const script = `mount --bind "$1" /etc/resolv.conf && mount --bind "$2" /etc/hosts && exec "$0" -test.v -test.timeout 60s -test.run "^$3\$"`
	cmd := exec.CommandContext(t.Context(), "sh", "-c", script, os.Args[0], resolv, hosts, t.Name())
	cmd.Env = append(os.Environ(), inSystem+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if n.asked(1) < 2 {
		t.Error("the name server was not asked")
	}
}
