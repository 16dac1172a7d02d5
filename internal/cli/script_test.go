//go:build linux

package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/history"
	"github.com/fivetuple/fivetuple/internal/lab"
	"github.com/fivetuple/fivetuple/owner"
	"github.com/fivetuple/fivetuple/stats"
)

// TestMain runs everything in a lab: the machine has no other socket than those
// of the tests, so ports may be fixed there.
func TestMain(m *testing.M) {
	lab.Enter()
	// With -race every ft would sleep for a second before it exits.
	os.Setenv("GORACE", os.Getenv("GORACE")+" atexit_sleep_ms=0")
	testscript.Main(m, map[string]func(){
		"ft": func() { os.Exit(Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) },
	})
}

// TestScripts runs testdata/script. With UPDATE_SCRIPTS=1 the wanted outputs are
// written anew.
func TestScripts(t *testing.T) {
	replace(t, "/etc/services", "testdata/services")
	replace(t, "/etc/hosts", "testdata/hosts")
	testscript.RunT(oneByOne{t}, testscript.Params{
		Dir:                 "testdata/script",
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			if err := setUpDirectories(env); err != nil {
				return err
			}
			env.Setenv("GORACE", os.Getenv("GORACE"))
			env.Setenv("LINES", "two\nlines")
			env.Setenv("TEST_PID", strconv.Itoa(os.Getpid()))
			self, err := owner.ProcessOf(os.Getpid())
			env.Setenv("TEST_PROCESS", self.String())
			env.Setenv("TEST_COMMAND", self.Command)
			return err
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"awaitline": awaitLine,
			"exits":     exits,
			"listen":    listen,
			"record":    record,
			"signal":    signalChild,
		},
		Condition: condition,
	})
}

// oneByOne runs scripts in turn. While another one started a process, that would
// hold the sockets of this process, too, until it executes: ft would see it.
type oneByOne struct{ *testing.T }

func (oneByOne) Parallel()     {}
func (oneByOne) Verbose() bool { return testing.Verbose() }

func (o oneByOne) Run(name string, f func(testscript.T)) {
	o.T.Run(name, func(t *testing.T) { f(oneByOne{t}) })
}

// setUpDirectories keeps what a script writes in its own directory.
func setUpDirectories(env *testscript.Env) error {
	env.Setenv("STATE_DIRECTORY", filepath.Join(env.WorkDir, "state"))
	env.Setenv("RUNTIME_DIRECTORY", filepath.Join(env.WorkDir, "run"))
	env.Setenv("FT_CLAIMS_DIR", filepath.Join(env.WorkDir, "claims"))
	env.Setenv("TZ", "UTC")
	if err := os.Mkdir(env.Getenv("FT_CLAIMS_DIR"), 0o700); err != nil {
		return err
	}
	return os.Chmod(env.Getenv("FT_CLAIMS_DIR"), fs.ModeSticky|0o777)
}

// condition is [users]: the lab has the ids of other users, as it does if root
// started the tests.
func condition(name string) (bool, error) {
	if name != "users" {
		return false, fmt.Errorf("unknown condition %q", name)
	}
	ids, err := os.ReadFile("/proc/self/uid_map")
	return strings.Contains(string(ids), "65536"), err
}

// replace puts a file of the test in the place of one of the machine, in the
// lab's mounts only.
func replace(t *testing.T, path, by string) {
	if err := unix.Mount(by, path, "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("replace %s: %v: if there is none: apt-get install netbase", path, err)
	}
	t.Cleanup(func() { unix.Unmount(path, unix.MNT_DETACH) })
}

// exits is "exits CODE PROGRAM ARG...": it runs a program, which must end with
// that exit code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARG...")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

// listen is "listen NETWORK ADDRESS": this process holds the port until the
// script ends.
func listen(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: listen NETWORK ADDRESS")
	}
	var c net.ListenConfig
	c.SetMultipathTCP(false)
	if args[0] == "udp" {
		conn, err := c.ListenPacket(context.Background(), args[0], args[1])
		ts.Check(err)
		ts.Defer(func() { conn.Close() })
		return
	}
	l, err := c.Listen(context.Background(), args[0], args[1])
	ts.Check(err)
	ts.Defer(func() { l.Close() })
}

// record is "record FILE": it writes a history.
func record(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: record FILE")
	}
	db, err := history.Open(context.Background(), ts.MkAbs(args[0]), history.Options{MaxAge: -1})
	ts.Check(err)
	w, err := db.Writer()
	ts.Check(err)
	for _, e := range recorded() {
		w.Record(e)
	}
	ts.Check(db.Close())
}

// recorded is a history of two services, of which one says what no terminal
// should obey.
func recorded() []stats.Event {
	start := time.Date(2026, 1, 2, 3, 4, 5, 6_000_000, time.UTC)
	echo := fivetuple.Tuple{Protocol: fivetuple.TCP, Local: address("127.0.0.1:8080")}
	client := echo
	client.Remote = address("127.0.0.1:40312")
	udp := fivetuple.Tuple{Protocol: fivetuple.UDP, Local: address("[::1]:8081"), Remote: address("[::1]:5000")}
	events := []stats.Event{
		{Kind: stats.Listen, Service: "echo", Tuple: echo},
		{Kind: stats.Accept, Service: "echo", Tuple: client, Conn: 1},
		{Kind: stats.Data, Service: "echo", Tuple: client, Conn: 1, BytesIn: 1024, BytesOut: 512},
		{Kind: stats.Accept, Service: "echo-udp", Tuple: udp, Conn: 1},
		{
			Kind: stats.Disconnect, Service: "echo-udp", Tuple: udp, Conn: 1, BytesIn: 9, BytesOut: 9,
			PacketsIn: 3, PacketsOut: 3, Duration: 60 * time.Second, Cause: "idle timeout",
		},
		{
			Kind: stats.Disconnect, Service: "echo", Tuple: client, Conn: 1, BytesIn: 1536, BytesOut: 1536,
			Duration: 1500 * time.Millisecond, Cause: "peer closed",
			TCP: &stats.TCP{RTT: 20 * time.Microsecond, RTTVar: 5 * time.Microsecond, Cwnd: 10, MSS: 65483},
		},
		{Kind: stats.Error, Service: "echo", Tuple: echo, Err: "peer said \x1b[31m\u009b2Jred"},
		{Kind: stats.Close, Service: "echo", Tuple: echo},
	}
	for i := range events {
		events[i].Time = start.Add(time.Duration(i) * time.Minute)
	}
	return events
}

func address(s string) fivetuple.Address {
	return fivetuple.IPAddress(netip.MustParseAddrPort(s))
}
