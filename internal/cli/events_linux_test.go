package cli

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple/internal/lab"
)

// The kernel tells everybody of closes (NL_CFG_F_NONROOT_RECV): a user without
// any right misses none, and does not see whose they are.
func TestEventsNeedNoRights(t *testing.T) {
	ids, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	host := lab.NewHost(t, "host")
	l, err := host.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ft, err := exec.LookPath("ft")
	if err != nil {
		t.Fatal(err)
	}
	for dir := filepath.Dir(ft); strings.HasPrefix(dir, os.TempDir()+"/"); dir = filepath.Dir(dir) {
		os.Chmod(dir, 0o755) // so that another user can get to it
	}
	cmd := exec.Command(ft, "events", "--interval", "1h", "--count", "2", "-o", "csv")
	var stdout bytes.Buffer
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.SysProcAttr = &stdout, &syscall.SysProcAttr{}
	if strings.Contains(string(ids), "65536") {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	}
	host.Do(t, func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	kill := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
	defer kill.Stop()
	said := make([]byte, 200)
	n, err := stderr.Read(said) // it watches
	if err != nil || !strings.HasPrefix(string(said[:n]), "ft: watching ") {
		t.Fatalf("said %q, %v", said[:n], err)
	}
	client, err := host.Dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	var server net.Conn
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	client.Close()
	server.Read(make([]byte, 1))
	server.Close()
	stderr.Read(said)
	if err := cmd.Wait(); err != nil || strings.Count(stdout.String(), ",close,tcp,") != 2 {
		t.Errorf("ended with %v, printed\n%s", err, &stdout)
	}
}
