package confine

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	someone = 65533 // nobody's number
	others  = 65532
)

var someoneOfOthers = fmt.Sprintf("%d:%d", someone, others)

// dropped gives up root for someone, who has no passwd entry. The tests as an ordinary
// user see that it is refused, and go on as that user.
func dropped(t *testing.T, keep ...string) (root bool) {
	t.Helper()
	if os.Getuid() == 0 {
		ok(t, syscall.Setgroups([]int{0, 4, others})) // as root has after a login
	}
	err := Drop(Options{User: someoneOfOthers, Keep: keep})
	if os.Getuid() == someone || os.Getuid() == 0 {
		ok(t, err)
		return true
	}
	if len(keep) == 0 {
		wantError(t, "an ordinary user becomes another", err, fs.ErrPermission)
	}
	ok(t, Drop(Options{}))
	return false
}

func TestEveryThreadIsWithoutRights(t *testing.T) {
	alone(t, func(t *testing.T) {
		eachOfMany(t, func() error { return nil }) // threads from before
		uid, gid := os.Getuid(), os.Getgid()
		if dropped(t) {
			uid, gid = someone, others
		}
		want := []string{
			fmt.Sprintf("Uid:\t%d\t%[1]d\t%[1]d\t%[1]d\n", uid), fmt.Sprintf("Gid:\t%d\t%[1]d\t%[1]d\t%[1]d\n", gid),
			"NoNewPrivs:\t1\n", "CapInh:\t0000000000000000\n", "CapPrm:\t0000000000000000\n", "CapEff:\t0000000000000000\n", "CapAmb:\t0000000000000000\n",
		}
		if uid == someone {
			want = append(want, "Groups:\t \n", "CapBnd:\t0000000000000000\n")
		}
		eachOfMany(t, func() error {
			files, err := filepath.Glob("/proc/self/task/*/status")
			if err != nil || len(files) < crowd {
				return fmt.Errorf("%d threads: %w", len(files), err)
			}
			for _, file := range files {
				text, err := os.ReadFile(file)
				if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
					continue
				}
				for _, line := range want {
					if !strings.Contains(string(text), line) {
						return fmt.Errorf("%s lacks %q:\n%s", file, line, text)
					}
				}
			}
			return nil
		})
	})
}

func TestRootCannotBeRegained(t *testing.T) {
	alone(t, func(t *testing.T) {
		dropped(t)
		eachOfMany(t, func() error {
			for name, call := range map[string]uintptr{"setuid": unix.SYS_SETUID, "setgid": unix.SYS_SETGID, "setfsuid": unix.SYS_SETFSUID} {
				unix.RawSyscall(call, 0, 0, 0)
				s, err := readStatus("/proc/thread-self/status")
				if err != nil {
					return err
				}
				if slices.Contains(strings.Fields(s["Uid"]+" "+s["Gid"]), "0") {
					return fmt.Errorf("after %s: user %s, group %s", name, s["Uid"], s["Gid"])
				}
			}
			return nil
		})
		wantError(t, "setgroups", syscall.Setgroups([]int{0}), unix.EPERM)
	})
}

func TestAFileOfTheFormerUserIsClosedToTheLatter(t *testing.T) {
	alone(t, func(t *testing.T) {
		path := makeFile(t, os.TempDir(), "key")
		ok(t, os.Chmod(path, 0o600))
		ok(t, os.Chown(path, os.Getuid(), os.Getgid()))
		open, err := os.Open(path)
		ok(t, err)
		var want error
		if dropped(t) {
			want = fs.ErrPermission
		}
		_, err = os.ReadFile(path)
		wantError(t, "open the file again", err, want)
		text, err := io.ReadAll(open)
		if err != nil || string(text) != "key" {
			t.Errorf("the open file has %q, %v", text, err)
		}
	})
}

func TestSocketsStayOpen(t *testing.T) {
	alone(t, func(t *testing.T) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		ok(t, err)
		early := accepted(t, ln)
		dropped(t)
		if _, err := Landlock(Rules{Bind: []uint16{}, Connect: []uint16{portOf(ln)}}); err != nil {
			t.Fatal(err)
		}
		early()
		accepted(t, ln)()
	})
}

// accepted makes a connection; the returned function sends a byte through it each way.
func accepted(t *testing.T, ln net.Listener) (use func()) {
	t.Helper()
	client, err := net.Dial(ln.Addr().Network(), ln.Addr().String())
	ok(t, err)
	server, err := ln.Accept()
	ok(t, err)
	return func() {
		t.Helper()
		for _, way := range [][2]net.Conn{{client, server}, {server, client}} {
			var b [1]byte
			_, err := way[0].Write([]byte{7})
			ok(t, err)
			if _, err := io.ReadFull(way[1], b[:]); err != nil || b[0] != 7 {
				t.Errorf("read %v, %v", b, err)
			}
		}
	}
}

func portOf(ln net.Listener) uint16 { return uint16(ln.Addr().(*net.TCPAddr).Port) }

func TestASetUserIDProgramGainsNothing(t *testing.T) {
	alone(t, func(t *testing.T) {
		exe := copyOfTest(t, 0o755|fs.ModeSetuid|fs.ModeSetgid)
		owner := os.Getuid()
		if owner == 0 { // or the test shows nothing
			before, err := rightsOf(exe, &unix.SysProcAttr{Credential: &syscall.Credential{Uid: someone, Gid: others}})
			ok(t, err)
			if !strings.Contains(before, fmt.Sprintf("Uid %d 0 0 0", someone)) {
				t.Fatalf("the program does not become root even with all rights, as on a file system that is mounted nosuid: set TMPDIR to a directory elsewhere\n%s", before)
			}
		}
		dropped(t)
		eachOfMany(t, func() error {
			after, err := rightsOf(exe, nil)
			if err != nil || (owner == 0 && strings.Contains(after, " 0 ")) || !strings.Contains(after, "CapPrm 0000000000000000") || !strings.Contains(after, "NoNewPrivs 1") {
				return fmt.Errorf("the program has %v\n%s", err, after)
			}
			return nil
		})
	})
}

func TestKeptCapabilitiesAreThoseNamedInAllThreads(t *testing.T) {
	alone(t, func(t *testing.T) {
		exe := copyOfTest(t, 0o755)
		transparent := func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1)
		}
		lowPort := func() error { return bindBelow1024(t) }
		want := func(err error) error { return nil }
		if !dropped(t, "CAP_NET_RAW") {
			want = func(err error) error { return err }
		}
		eachOfMany(t, func() error {
			if err := transparent(); !errors.Is(err, want(unix.EPERM)) {
				return fmt.Errorf("IP_TRANSPARENT: %w", err)
			}
			if err := lowPort(); !errors.Is(err, unix.EACCES) {
				return fmt.Errorf("bind a low port: %v, want %v", err, unix.EACCES)
			}
			return nil
		})
		if after, err := rightsOf(exe, nil); err != nil || !strings.Contains(after, "CapEff 0000000000000000") {
			t.Errorf("a child has %v\n%s", err, after)
		}
	})
}

func TestALowPortCanBeBoundWithTheRightToIt(t *testing.T) {
	alone(t, func(t *testing.T) {
		var want error
		if !dropped(t, "net_bind_service") {
			want = unix.EACCES
		}
		wantError(t, "bind a low port", bindBelow1024(t), want)
	})
}

// bindBelow1024 binds a port below 1024 that nobody uses.
func bindBelow1024(t *testing.T) error {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if err != nil || strings.TrimSpace(string(text)) != "1024" {
		t.Errorf("low ports are open to all: sysctl -w net.ipv4.ip_unprivileged_port_start=1024 (now %s, %v)", text, err)
	}
	for port := 1023; port > 0; port-- {
		ln, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			return ln.Close()
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return err
		}
	}
	return unix.EADDRINUSE
}

func TestDroppingTwiceTakesMore(t *testing.T) {
	alone(t, func(t *testing.T) {
		if !dropped(t, "net_raw", "net_admin") {
			return
		}
		ok(t, Drop(Options{User: someoneOfOthers, Keep: []string{"net_raw"}}))
		ok(t, Drop(Options{User: fmt.Sprintf("%d:%d", someone, others)}))
		err := Drop(Options{Keep: []string{"net_raw"}})
		if err == nil || !strings.Contains(err.Error(), "CAP_NET_RAW, which this process does not have") {
			t.Errorf("keep what there is not: %v", err)
		}
	})
}

func TestAThreadThatIsDifferentIsFound(t *testing.T) {
	alone(t, func(t *testing.T) {
		runtime.LockOSThread()
		ok(t, unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		for _, all := range []string{"0", "1"} {
			if err := eachThread(status{"NoNewPrivs": all}); err == nil {
				t.Errorf("all threads have no_new_privs %s, though one differs", all)
			}
		}
	})
}

func TestDropFailsIfARightIsStillThere(t *testing.T) {
	p, err := newPlan(Options{})
	ok(t, err)
	if err := p.verify(); err == nil || !strings.Contains(err.Error(), `instead of "`) {
		t.Errorf("before anything was given up: %v", err)
	}
}

func TestErrorsOfUsersSayWhatToDo(t *testing.T) {
	for _, c := range []struct{ user, want string }{
		{":", `user ":": write USER or USER:GROUP, by name or number`},
		{"nobody:", `user "nobody:": write USER or USER:GROUP`},
		{":nogroup", "write USER or USER:GROUP"},
		{"no-such-user", "adduser --system"},
		{"nobody:no-such-group", "addgroup --system"},
		{"65531", "write 65531:GID"},
		{"4294967295:1", "not a number from 0 to 4294967294"},
		{"1:99999999999", "not a number from 0 to 4294967294"},
		{"root", "root gives nothing up"},
		{"0:1", "root gives nothing up"},
	} {
		for what, f := range map[string]func(Options) error{"Drop": Drop, "Check": Check} {
			err := f(Options{User: c.user})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s %q: %v, want %q", what, c.user, err, c.want)
			}
		}
	}
	if err := Check(Options{User: "65531:65531"}); (err == nil) != (os.Geteuid() == 0) {
		t.Errorf("Check of what can be done: %v", err)
	}
	if err := Drop(Options{Keep: []string{"sys_admin"}}); err == nil || !strings.Contains(err.Error(), `"sys_admin" cannot be kept`) {
		t.Errorf("keep sys_admin: %v", err)
	}
	if s, err := readStatus("/proc/self/status"); err != nil || s["NoNewPrivs"] != "0" {
		t.Errorf("a refused Drop has changed this process: no_new_privs is %s, %v", s["NoNewPrivs"], err)
	}
}

func TestUsersAreReadByNameAndNumber(t *testing.T) {
	for text, want := range map[string]identity{
		"nobody": {65534, 65534}, "nobody:daemon": {65534, 1}, "1:2": {1, 2}, "1": {1, 1}, "daemon:65000": {1, 65000}, "nobody:0": {65534, 0},
	} {
		if got, err := parseUser(text); err != nil || got != want {
			t.Errorf("%q is %v, %v, want %v", text, got, err, want)
		}
	}
}

// In a user namespace with one user there is nobody else to become.
func TestAUserThatIsNotMappedIsAnErrorThatSaysSo(t *testing.T) {
	if os.Getenv(aloneVariable) == t.Name() {
		err := Drop(Options{User: someoneOfOthers})
		if err == nil || !strings.Contains(err.Error(), "user namespace") {
			t.Errorf("%v, want an error that names the user namespace", err)
		}
		return
	}
	cmd := exec.Command(executable(t), "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), aloneVariable+"="+t.Name(), atOnce)
	cmd.SysProcAttr = &unix.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS") {
		t.Errorf("the process of the test: %v\n%s", err, out)
	}
}
