//go:build unix

package stream

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/fivetuple/fivetuple/stats"
)

func TestUnixListenerReplacesOnlyWhatNobodyListensOn(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	listen := func(mode os.FileMode) (net.Listener, error) {
		return ListenConfig{Mode: mode}.Listen(t.Context(), endpoint(t, "unix://"+path))
	}
	first, err := listen(0o640)
	if err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o640 {
		t.Errorf("mode is %v, want 0640", info.Mode().Perm())
	}
	if _, err := listen(0); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a second listener: %v, want EADDRINUSE", err)
	}
	first.(*unixListener).UnixListener.Close() // as a killed process: the file stays
	second, err := listen(0)
	if err != nil {
		t.Fatalf("a stale file was not replaced: %v", err)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("default mode is %v, want 0600", info.Mode().Perm())
	}
	os.Remove(path)
	third, err := listen(0)
	if err != nil {
		t.Fatal(err)
	}
	second.Close()
	if _, err := os.Stat(path); err != nil {
		t.Error("closing a replaced listener removed its successor's file")
	}
	third.Close()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Error("closing left the file behind")
	}
	os.Mkdir(path, 0o700)
	if _, err := listen(0); err == nil || !strings.Contains(err.Error(), "is a directory, not a socket") {
		t.Errorf("a directory at the path: %v", err)
	}
}

func TestClosingAUnixListenerTwiceLeavesItsSuccessorsFile(t *testing.T) {
	e := endpoint(t, "unix://"+filepath.Join(t.TempDir(), "s"))
	first, err := ListenConfig{}.Listen(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	first.Close()
	second, err := ListenConfig{}.Listen(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	first.Close() // the new file may well have the old one's inode number
	if _, err := os.Stat(e.Path); err != nil {
		t.Error(err)
	}
}

func TestAUnixListenerKeepsItsFileIfTold(t *testing.T) {
	e := endpoint(t, "unix://"+filepath.Join(t.TempDir(), "s"))
	for _, keep := range []bool{true, false} {
		ln, err := ListenConfig{}.Listen(t.Context(), e)
		if err != nil {
			t.Fatal(err)
		}
		ln.(interface{ SetUnlinkOnClose(bool) }).SetUnlinkOnClose(!keep)
		ln.Close()
		if _, err := os.Stat(e.Path); (err == nil) != keep {
			t.Errorf("keep %v: %v", keep, err)
		}
	}
}

func TestSeqpacketEchoKeepsRecords(t *testing.T) {
	ln := serve(t, &Server{Handler: Echo()}, "seqpacket://@stream-test-seq")
	c := connect(t, ln)
	for _, record := range []string{"one", "three four"} {
		fmt.Fprint(c, record)
	}
	b := make([]byte, 100)
	if n, err := c.Read(b); err != nil || string(b[:n]) != "one" {
		t.Errorf("got %q, %v", b[:n], err)
	}
}

func TestASeqpacketRecordThatDoesNotFitIsAnErrorAndNotCut(t *testing.T) {
	ev := newEvents()
	c := connect(t, serve(t, &Server{Handler: Echo(), Sink: ev}, "seqpacket://@stream-test-long"))
	if _, err := c.Write(make([]byte, chunkSize+1)); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 100)); err == nil {
		t.Errorf("got %d bytes of a record that does not fit", n)
	}
	if end := ev.wait(t, "disconnect", kindIs(stats.Disconnect)); !strings.Contains(end.Err, "a record of more than 65536 bytes") {
		t.Errorf("got %+v", end)
	}
}
