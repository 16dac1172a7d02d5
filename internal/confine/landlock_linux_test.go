package confine

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// confined applies the rules, with the system's files, which the tests themselves need.
func confined(t *testing.T, r Rules) Report {
	t.Helper()
	read, write := SystemFiles()
	r.Read, r.Write = append(read, r.Read...), append(write, r.Write...)
	report, err := Landlock(r)
	ok(t, err)
	return report
}

func in(name string) string { return filepath.Join(os.TempDir(), name) }

func TestOnlyNamedPathsOpenInEveryThread(t *testing.T) {
	alone(t, func(t *testing.T) {
		config, history, closed := makeFile(t, in("config"), "ft.yaml"), makeFile(t, in("state"), "history"), makeFile(t, in("home"), "letter")
		before := func() error { return errors.Join(readable(config), readable(history), readable(closed)) }
		eachOfMany(t, before) // and these threads stay

		confined(t, Rules{Read: []string{in("config")}, Write: []string{in("state")}})
		denied := func(what string, err error) error {
			if !errors.Is(err, unix.EACCES) {
				return fmt.Errorf("%s: %v, want %v", what, err, unix.EACCES)
			}
			return nil
		}
		eachOfMany(t, func() error {
			mine := filepath.Join(in("state"), fmt.Sprint(unix.Gettid()))
			_, list := os.ReadDir(in("home"))
			_, above := os.ReadDir(os.TempDir())
			return errors.Join(
				readable(config), readable(history),
				denied("read a file elsewhere", readable(closed)), denied("list a directory elsewhere", list), denied("list the directory above", above),
				denied("write where only reading is allowed", os.WriteFile(config, nil, 0o644)), denied("truncate there", os.Truncate(config, 0)),
				denied("remove there", os.Remove(config)),
				os.WriteFile(mine, []byte("x"), 0o600), os.Truncate(mine, 0), os.Rename(mine, mine+"+"), os.Remove(mine+"+"),
				os.Mkdir(mine, 0o700), os.Remove(mine),
				denied("make a symbolic link", os.Symlink("x", mine)), denied("make a pipe", unix.Mkfifo(mine, 0o600)),
			)
		})
	})
}

func readable(path string) error {
	_, err := os.ReadFile(path)
	return err
}

func TestFilesDoNotMoveBetweenDirectories(t *testing.T) {
	alone(t, func(t *testing.T) {
		path := makeFile(t, in("a"), "file")
		ok(t, os.Mkdir(in("b"), 0o755))
		confined(t, Rules{Write: []string{in("a"), in("b")}})
		wantError(t, "rename to another directory", os.Rename(path, filepath.Join(in("b"), "file")), unix.EXDEV)
		wantError(t, "link from another directory", os.Link(path, filepath.Join(in("b"), "file")), unix.EXDEV)
	})
}

// An editor and a configuration management write a new file and move it into the old one's place.
func TestAReloadReadsAFileThatWasReplacedInANamedDirectory(t *testing.T) {
	alone(t, func(t *testing.T) {
		known, single := makeFile(t, in("config"), "ft.yaml"), makeFile(t, in("certificates"), "key.pem")
		link := in("link.yaml")
		ok(t, os.Symlink(known, link))
		replaced := replacedByOther(t, known, single)
		confined(t, Rules{Read: []string{in("config"), single}})
		ok(t, readable(single))
		replaced()
		ok(t, readable(known))
		ok(t, readable(link))
		wantError(t, "read a file that has taken the place of one that was named", readable(single), unix.EACCES)
	})
}

// replacedByOther starts a process that is not confined; at the call it replaces the files.
func replacedByOther(t *testing.T, paths ...string) (replace func()) {
	t.Helper()
	cmd := exec.Command("/bin/sh", append([]string{"-c", `read go; for f; do echo new >"$f.new" && mv "$f.new" "$f" || exit; done`, "sh"}, paths...)...)
	stdin, err := cmd.StdinPipe()
	ok(t, err)
	ok(t, cmd.Start())
	return func() {
		t.Helper()
		_, err := stdin.Write([]byte("\n"))
		ok(t, err)
		ok(t, cmd.Wait())
	}
}

func TestProgramsRunOnlyFromNamedPaths(t *testing.T) {
	alone(t, func(t *testing.T) {
		allowed, other := copyOfTest(t, 0o755), executable(t)
		confined(t, Rules{Read: []string{"/"}, Execute: []string{allowed, "/lib", "/lib64", "/usr/lib"}})
		_, err := os.OpenFile(allowed, os.O_WRONLY, 0)
		wantError(t, "write to a program", err, unix.EACCES)
		eachOfMany(t, func() error {
			said, err := rightsOf(allowed, nil)
			if err != nil || !strings.Contains(said, "NoNewPrivs 1") {
				return fmt.Errorf("a named program: %v, %s", err, said)
			}
			if said, err = rightsOf(other, nil); !errors.Is(err, unix.EACCES) {
				return fmt.Errorf("another program: %v, %s", err, said)
			}
			return nil
		})
	})
}

func TestWhatIsOpenStaysOpen(t *testing.T) {
	alone(t, func(t *testing.T) {
		f, err := os.OpenFile(makeFile(t, in("log"), "log"), os.O_RDWR, 0)
		ok(t, err)
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		ok(t, err)
		unixListener, err := net.Listen("unix", in("socket"))
		ok(t, err)
		early := accepted(t, ln)
		confined(t, Rules{Bind: []uint16{}, Connect: []uint16{portOf(ln)}})
		_, err = f.WriteString("more")
		ok(t, err)
		wantError(t, "truncate an open file", f.Truncate(0), nil)
		early()
		accepted(t, ln)()
		accepted(t, unixListener)()
	})
}

func TestUnixSocketsAreBoundOnlyInWritableDirectories(t *testing.T) {
	alone(t, func(t *testing.T) {
		ok(t, os.Mkdir(in("run"), 0o755))
		ok(t, os.Mkdir(in("etc"), 0o755))
		confined(t, Rules{Read: []string{in("etc")}, Write: []string{in("run")}})
		ln, err := net.Listen("unix", filepath.Join(in("run"), "s"))
		ok(t, err)
		accepted(t, ln)()
		ok(t, ln.Close()) // which removes the file
		_, err = net.Listen("unix", filepath.Join(in("etc"), "s"))
		wantError(t, "bind elsewhere", err, unix.EACCES)
	})
}

func TestTCPPortsAreThoseNamedInEveryThread(t *testing.T) {
	alone(t, func(t *testing.T) {
		to, other := listenPlain(t), listenPlain(t)
		report := confined(t, Rules{Bind: []uint16{0}, Connect: []uint16{portOf(to)}})
		if !slices.Contains(report.Confined, "TCP ports to bind") || !slices.Contains(report.Confined, "TCP ports to connect to") {
			t.Errorf("the report: %v", report)
		}
		eachOfMany(t, func() error {
			if _, err := net.Dial("tcp", other.Addr().String()); !errors.Is(err, unix.EACCES) {
				return fmt.Errorf("connect to another port: %w", err)
			}
			if err := bindPlain(portOf(other) ^ 1); !errors.Is(err, unix.EACCES) {
				return fmt.Errorf("bind a port that was not named: %w", err)
			}
			c, err := net.Dial("tcp", to.Addr().String())
			if err != nil {
				return err
			}
			c.Close()
			return bindPlain(0)
		})
	})
}

func TestWithoutPortsAnyMayBeUsed(t *testing.T) {
	alone(t, func(t *testing.T) {
		report := confined(t, Rules{})
		if slices.Contains(report.Confined, "TCP ports to bind") {
			t.Errorf("the report: %v", report)
		}
		accepted(t, listenPlain(t))()
	})
}

// listenPlain listens on a TCP socket that is not Multipath TCP.
func listenPlain(t *testing.T) net.Listener {
	t.Helper()
	var l net.ListenConfig
	l.SetMultipathTCP(false)
	ln, err := l.Listen(t.Context(), "tcp4", "127.0.0.1:0")
	ok(t, err)
	return ln
}

func bindPlain(port uint16) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Bind(fd, &unix.SockaddrInet4{Port: int(port), Addr: [4]byte{127, 0, 0, 1}})
}

// What the package documentation says that Landlock does not govern.
func TestUnixSocketsByPathUDPAndNamesOfFilesAreNotGoverned(t *testing.T) {
	alone(t, func(t *testing.T) {
		closed := makeFile(t, in("home"), "letter")
		server, err := net.Listen("unix", filepath.Join(in("home"), "socket"))
		ok(t, err)
		datagrams, err := net.ListenPacket("udp", "127.0.0.1:0")
		ok(t, err)
		confined(t, Rules{Bind: []uint16{}, Connect: []uint16{}})

		accepted(t, server)()
		c, err := net.Dial("udp", datagrams.LocalAddr().String())
		ok(t, err)
		_, err = c.Write([]byte{1})
		ok(t, err)
		if _, err := os.Stat(closed); err != nil {
			t.Error(err)
		}
		ok(t, os.Chmod(closed, 0o600))
	})
}

func TestAbstractSocketsAreClosedOnlyOnDemand(t *testing.T) {
	name := fmt.Sprintf("@confine-test-%d", os.Getppid())
	alone(t, func(t *testing.T) {
		ln, err := net.Listen("unix", name)
		ok(t, err)
		confined(t, Rules{})
		accepted(t, ln)()

		confined(t, Rules{Abstract: true})
		eachOfMany(t, func() error {
			if _, err := net.Dial("unix", name); !errors.Is(err, unix.EPERM) {
				return fmt.Errorf("connect to an abstract socket: %v, want %v", err, unix.EPERM)
			}
			return nil
		})
	})
}

func TestSignalsReachNobodyOutside(t *testing.T) {
	alone(t, func(t *testing.T) {
		other := exec.Command("/bin/cat")
		stdin, err := other.StdinPipe()
		ok(t, err)
		ok(t, other.Start())
		confined(t, Rules{Signals: true})
		eachOfMany(t, func() error {
			if err := other.Process.Signal(unix.SIGTERM); !errors.Is(err, unix.EPERM) {
				return fmt.Errorf("signal a process outside: %v, want %v", err, unix.EPERM)
			}
			return unix.Kill(os.Getpid(), unix.SIGURG) // which the runtime sends its own threads
		})
		ok(t, stdin.Close())
		ok(t, other.Wait())
	})
}

func TestAnotherCallOnlyTakesMore(t *testing.T) {
	alone(t, func(t *testing.T) {
		a, b := makeFile(t, in("a"), "file"), makeFile(t, in("b"), "file")
		confined(t, Rules{Read: []string{in("a")}})
		confined(t, Rules{Read: []string{in("b"), in("a")}})
		ok(t, readable(a))
		wantError(t, "read what the first call has closed", readable(b), unix.EACCES)
	})
}

func TestSystemFilesAreEnoughForNamesAndTheProcessItself(t *testing.T) {
	alone(t, func(t *testing.T) {
		confined(t, Rules{})
		eachOfMany(t, func() error {
			_, errUser := user.LookupId("0")
			_, errFds := os.ReadDir("/proc/self/fd")
			_, errExe := os.Readlink("/proc/self/exe")
			errs := []error{errUser, errFds, errExe}
			for _, path := range []string{
				"/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/services", "/proc/self/status", "/proc/thread-self/stat", "/proc/thread-self/ns/net",
				"/proc/sys/net/core/rmem_max", "/proc/sys/fs/file-max", "/proc/sys/fs/pipe-user-pages-soft", "/proc/sys/kernel/random/boot_id",
			} {
				f, err := os.Open(path)
				errs = append(errs, err)
				f.Close()
			}
			f, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
			f.Close()
			return errors.Join(append(errs, err)...)
		})
		for _, closed := range []string{"/", "/usr/bin", "/var", "/dev", "/proc", "/proc/1"} {
			if _, err := os.ReadDir(closed); !errors.Is(err, unix.EACCES) {
				t.Errorf("list %s: %v, want %v", closed, err, unix.EACCES)
			}
		}
	})
}

func TestRightsAndFilesGoTogether(t *testing.T) {
	alone(t, func(t *testing.T) {
		closed, open := makeFile(t, in("home"), "letter"), makeFile(t, in("config"), "ft.yaml")
		root := dropped(t)
		confined(t, Rules{Read: []string{in("config")}})
		eachOfMany(t, func() error {
			if err := readable(closed); !errors.Is(err, unix.EACCES) {
				return fmt.Errorf("read a file elsewhere: %v, want %v", err, unix.EACCES)
			}
			return readable(open)
		})
		if root {
			wantError(t, "read what only root may, though below a named directory", readable("/etc/shadow"), unix.EACCES)
		}
	})
}

func TestTheReportTellsWhatThereIs(t *testing.T) {
	alone(t, func(t *testing.T) {
		closed, open := makeFile(t, in("home"), "letter"), makeFile(t, in("config"), "ft.yaml")
		ok(t, os.Chmod(makeFile(t, in("config"), "secret"), 0))
		report := confined(t, Rules{Read: []string{in("config"), in("absent")}, Write: []string{in("gone")}, Abstract: true, Signals: true})

		absent := slices.DeleteFunc(slices.Clone(report.Absent), func(path string) bool { return !strings.HasPrefix(path, os.TempDir()) })
		if want := []string{in("absent"), in("gone")}; !slices.Equal(absent, want) {
			t.Errorf("absent are %q, want %q", absent, want)
		}
		if report.ABI >= 7 && (len(report.Missing) != 0 ||
			!strings.HasSuffix(report.String(), "confines files, truncation, ioctl on devices, abstract Unix sockets, signals")) {
			t.Errorf("the report: %v; missing %q", report, report.Missing)
		}
		for path, outside := range map[string]bool{closed: true, in("new"): true, "/": true, in("config-2"): true, filepath.Join(in("config"), "absent"): false, open: false} {
			err := report.Explain(&fs.PathError{Op: "open", Path: path, Err: unix.EACCES})
			if got := strings.Contains(err.Error(), "outside of what this process left itself"); got != outside || !errors.Is(err, unix.EACCES) {
				t.Errorf("%s: %v, want an explanation: %v", path, err, outside)
			}
		}
		for _, err := range []error{nil, unix.EACCES, &fs.PathError{Path: closed, Err: unix.ENOENT}} {
			if got := report.Explain(err); got != err {
				t.Errorf("%v became %v", err, got)
			}
		}
	})
}

func TestAnOlderKernelsReportSaysWhatIsMissing(t *testing.T) {
	asked := Rules{Connect: []uint16{}, Abstract: true, Signals: true}
	for abi, want := range map[int]string{
		1: "truncation (Linux 6.2), TCP ports to connect to (Linux 6.7), ioctl on devices (Linux 6.10), abstract Unix sockets (Linux 6.12), signals (Linux 6.15)",
		3: "TCP ports to connect to (Linux 6.7), ioctl on devices (Linux 6.10), abstract Unix sockets (Linux 6.12), signals (Linux 6.15)",
		5: "abstract Unix sockets (Linux 6.12), signals (Linux 6.15)",
		8: "",
	} {
		report, c := confinable(asked, abi)
		if got := strings.Join(report.Missing, ", "); got != want {
			t.Errorf("ABI %d lacks %s; want %s", abi, got, want)
		}
		if refer := c.HandledAccessFS&(1<<13) != 0; refer != (abi > 1) {
			t.Errorf("ABI %d is asked for REFER: %v", abi, refer)
		}
	}
}

func TestAKernelWithoutLandlockIsUnsupported(t *testing.T) {
	for _, errno := range []error{unix.ENOSYS, unix.EOPNOTSUPP, unix.EPERM} {
		if err := unavailable(errno); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%v: %v does not wrap errors.ErrUnsupported", errno, err)
		}
	}
}
