package confine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// The rights of Rules. Nothing gets the right to make devices, named pipes and symbolic
// links, and to move files from one directory to another (LANDLOCK_ACCESS_FS_REFER).
const (
	onFiles landlock.AccessFSSet = ll.AccessFSExecute | ll.AccessFSReadFile | ll.AccessFSWriteFile | ll.AccessFSTruncate

	toRead    landlock.AccessFSSet = ll.AccessFSReadFile | ll.AccessFSReadDir
	toExecute                      = toRead | ll.AccessFSExecute
	toWrite                        = toRead | ll.AccessFSWriteFile | ll.AccessFSTruncate | ll.AccessFSMakeReg | ll.AccessFSMakeDir |
		ll.AccessFSMakeSock | ll.AccessFSRemoveFile | ll.AccessFSRemoveDir
)

// feature is something that Landlock confines from a version on.
type feature struct {
	name  string
	abi   int
	linux string // the first with that version
	asked bool
	what  landlock.Config
}

func features(r Rules) []feature {
	return []feature{
		{"files", 1, "5.13", true, landlock.V2}, // with REFER, which version 1 forbids anyway
		{"truncation", 3, "6.2", true, landlock.Config{HandledAccessFS: ll.AccessFSTruncate}},
		{"TCP ports to bind", 4, "6.7", r.Bind != nil, landlock.Config{HandledAccessNet: ll.AccessNetBindTCP}},
		{"TCP ports to connect to", 4, "6.7", r.Connect != nil, landlock.Config{HandledAccessNet: ll.AccessNetConnectTCP}},
		{"ioctl on devices", 5, "6.10", true, landlock.Config{HandledAccessFS: ll.AccessFSIoctlDev}},
		{"abstract Unix sockets", 6, "6.12", r.Abstract, landlock.Config{Scoped: ll.ScopeAbstractUnixSocket}},
		{"signals", signalsABI(), "6.15", r.Signals, landlock.Config{Scoped: ll.ScopeSignal}},
	}
}

// signalsABI is 6 on a kernel that lets threads of one process send each other signals, as the
// Go runtime does, though each has rules of its own: erratum 2 in the kernel's
// Documentation/userspace-api/landlock.rst. From version 8 on they have the same rules.
func signalsABI() int {
	const erratum2 = 1 << 1
	if fixed, err := ll.LandlockGetErrata(); err == nil && fixed&erratum2 != 0 {
		return 6
	}
	return 8
}

func restrict(r Rules) (Report, error) {
	abi, err := ll.LandlockGetABIVersion()
	if err != nil {
		return Report{}, unavailable(err)
	}
	report, c := confinable(r, abi)
	rules, err := report.rulesOf(r, c)
	if err != nil {
		return Report{}, fmt.Errorf("confine: %w", err)
	}
	if err := c.Restrict(rules...); err != nil {
		return Report{}, fmt.Errorf("confine: %w", err)
	}
	return report, nil
}

// confinable is what of the rules this version of Landlock can do.
func confinable(r Rules, abi int) (report Report, c landlock.Config) {
	report.ABI = abi
	for _, f := range features(r) {
		switch {
		case !f.asked:
		case abi < f.abi:
			report.Missing = append(report.Missing, fmt.Sprintf("%s (Linux %s)", f.name, f.linux))
		default:
			report.Confined = append(report.Confined, f.name)
			c.HandledAccessFS |= f.what.HandledAccessFS
			c.HandledAccessNet |= f.what.HandledAccessNet
			c.Scoped |= f.what.Scoped
		}
	}
	if abi < 2 {
		c.HandledAccessFS &^= ll.AccessFSRefer
	}
	return report, c
}

func unavailable(err error) error {
	switch {
	case errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("confine: %w: the kernel has no Landlock, which is in Linux from 5.13 on (CONFIG_SECURITY_LANDLOCK), or a container forbids it", err)
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("confine: %w: Landlock was not turned on when the kernel started: add it to lsm= on its command line", err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("confine: %w: %w: a seccomp filter, as of an older container runtime, forbids Landlock", errors.ErrUnsupported, err)
	}
	return fmt.Errorf("confine: find Landlock's version: %w", err)
}

func (r *Report) rulesOf(asked Rules, c landlock.Config) ([]landlock.Rule, error) {
	var rules []landlock.Rule
	for _, group := range []struct {
		paths  []string
		rights landlock.AccessFSSet
	}{{asked.Read, toRead}, {asked.Write, toWrite}, {asked.Execute, toExecute}} {
		for _, path := range group.paths {
			rights := group.rights & c.HandledAccessFS
			info, err := os.Stat(path)
			switch {
			case errors.Is(err, fs.ErrNotExist):
				r.Absent = append(r.Absent, path)
				continue
			case err != nil:
				return nil, err
			case !info.IsDir():
				rights &= onFiles
			}
			rules = append(rules, landlock.PathAccess(rights, path).IgnoreIfMissing())
			r.allowed = append(r.allowed, resolve(path))
		}
	}
	if c.HandledAccessNet&ll.AccessNetBindTCP != 0 {
		for _, port := range asked.Bind {
			rules = append(rules, landlock.BindTCP(port))
		}
	}
	if c.HandledAccessNet&ll.AccessNetConnectTCP != 0 {
		for _, port := range asked.Connect {
			rules = append(rules, landlock.ConnectTCP(port))
		}
	}
	return rules, nil
}

// SystemFiles are what any program of Go with sockets may come back to: names and
// name servers, certificates, its own state, limits of the kernel.
//
// All of /etc is in it, with its permissions: resolv.conf is replaced by another
// file when a machine changes networks, and a resolver that may see it but not open
// it asks 127.0.0.1 from then on.
func SystemFiles() (read, write []string) {
	read = []string{
		"/etc", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates", "/usr/share/zoneinfo",
		"/proc/self", "/proc/sys/net", "/proc/sys/fs", "/proc/sys/kernel",
	}
	for _, path := range []string{"/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/services", "/etc/localtime"} {
		switch target := resolve(path); {
		case strings.HasPrefix(target, "/etc/"):
		case filepath.Dir(filepath.Dir(target)) == "/": // not all of /run
			read = append(read, target)
		default: // as /run/systemd/resolve
			read = append(read, filepath.Dir(target))
		}
	}
	return read, []string{"/dev/null"}
}
