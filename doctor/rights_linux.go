package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// right is a capability (capabilities(7)), and what fails without it.
type right struct {
	bits uint64 // any of them will do
	name string
	// machine is set if the kernel wants it over the whole machine: one that a
	// user namespace gave does not count (capable, not ns_capable).
	machine bool
	effect  string
}

var (
	capNetAdmin = right{1 << unix.CAP_NET_ADMIN, "net_admin", false,
		"ft kill cannot destroy sockets, ft ls does not see marks, and SO_RCVBUFFORCE is refused."}
	capNetRaw = right{1 << unix.CAP_NET_RAW, "net_raw", false,
		"Raw sockets and packet sockets are refused: packets cannot be captured or made."}
	capNetBindService = right{1 << unix.CAP_NET_BIND_SERVICE, "net_bind_service", false,
		"ft serve and ft port cannot bind ports below net.ipv4.ip_unprivileged_port_start."}
	capBPF = right{1<<unix.CAP_BPF | 1<<unix.CAP_SYS_ADMIN, "bpf", true,
		"ft ls, who and top find the owners of sockets by reading /proc, which is slower with many descriptors."}
	capPerfmon = right{1<<unix.CAP_PERFMON | 1<<unix.CAP_SYS_ADMIN, "perfmon", true,
		"As without CAP_BPF: a BPF iterator over descriptors wants both."}
	capSysPtrace = right{1 << unix.CAP_SYS_PTRACE, "sys_ptrace", false,
		"ft ls and who cannot name the processes of other users, and ft inspect cannot open their sockets."}
	capSysResource = right{1 << unix.CAP_SYS_RESOURCE, "sys_resource", true,
		"The hard limit of descriptors cannot be raised, nor a pipe made larger than fs.pipe-max-size."}
	capSysAdmin = right{1 << unix.CAP_SYS_ADMIN, "sys_admin", false,
		"--netns cannot enter other network namespaces."}
)

// capability is a check whether this process has a capability in effect.
func capability(c right) func(*machine) ([]Finding, error) {
	return func(m *machine) ([]Finding, error) {
		has, err := m.has(c, "CapEff")
		if err != nil {
			return nil, err
		}
		inside, err := m.inUserNamespace()
		if err != nil {
			return nil, err
		}
		switch {
		case has && !inside:
			return fine("in effect")
		case has && !c.machine:
			return fine("in effect over what belongs to this user namespace")
		case has:
			return bad(Note, "of this user namespace only, which does not count here", c.effect, "run ft on the host, as root")
		}
		// A file cannot give what the bounding set lacks: it would not start.
		fix := fmt.Sprintf(`setcap cap_%s+ep "$(command -v ft)"`, c.name)
		if may, err := m.has(c, "CapBnd"); inside || err == nil && !may {
			fix = "start the container with --cap-add=" + strings.ToUpper(c.name) + ", or the unit with CapabilityBoundingSet="
		}
		return bad(Note, "not in effect", c.effect, fix)
	}
}

func (m *machine) has(c right, set string) (bool, error) {
	text, err := m.statusField(set)
	if err != nil {
		return false, err
	}
	caps, err := strconv.ParseUint(text, 16, 64)
	return caps&c.bits != 0, err
}

// inUserNamespace says whether this is another user namespace than the
// machine's first, which alone maps every id to itself.
func (m *machine) inUserNamespace() (bool, error) {
	text, err := m.read("proc/thread-self/uid_map")
	return !slices.Equal(strings.Fields(text), []string{"0", "0", "4294967295"}), err
}

// pingSockets tries to open an ICMP socket, which sends nothing.
func pingSockets(m *machine) ([]Finding, error) {
	err := opens(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP)
	value := "no"
	if text, terr := m.sysctlText("net.ipv4.ping_group_range"); terr == nil {
		value = fmt.Sprintf("no, net.ipv4.ping_group_range is %q", strings.Join(strings.Fields(text), " "))
	}
	switch {
	case err == nil:
		return fine("yes")
	case errors.Is(err, unix.EACCES):
		return bad(Note, value, "Echo requests (ping) take a raw socket, and so CAP_NET_RAW.", `sysctl -w net.ipv4.ping_group_range="0 2147483647"`)
	}
	return bad(Note, "no: "+err.Error(), "Echo requests (ping) take a raw socket, and so CAP_NET_RAW.", "")
}

// opens says whether a socket can be made, and closes it.
func opens(family, kind, protocol int) error {
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// ptraceScope looks at Yama (Documentation/admin-guide/LSM/Yama.rst).
func ptraceScope(m *machine) ([]Finding, error) {
	n, err := m.number("kernel.yama.ptrace_scope")
	if errors.Is(err, fs.ErrNotExist) {
		return fine("not restricted: no Yama here")
	}
	if err != nil {
		return nil, err
	}
	may, err := m.has(capSysPtrace, "CapEff")
	switch {
	case err != nil:
		return nil, err
	case n == 0:
		return fine("0, not restricted")
	case n >= 3:
		return bad(Note, "3, nobody may attach", "ft inspect cannot open the socket of another process, not even as root, until the machine restarts.",
			"set kernel.yama.ptrace_scope=1 in /etc/sysctl.d, and restart the machine")
	case may:
		return fine(fmt.Sprintf("%d, with CAP_SYS_PTRACE not restricted", n))
	}
	return bad(Note, fmt.Sprintf("%d, restricted", n), "ft inspect cannot open the sockets of other processes of this user, unless it started them.",
		"run ft inspect as root, or: sysctl -w kernel.yama.ptrace_scope=0")
}

func hidepid(m *machine) ([]Finding, error) {
	mounts, err := m.mounts()
	if err != nil {
		return nil, err
	}
	hidden := ""
	for _, mount := range mounts {
		if mount.point != "/proc" || mount.kind != "proc" {
			continue
		}
		hidden = "" // a later mount covers an earlier one
		for option := range strings.SplitSeq(mount.options, ",") {
			if mode, ok := strings.CutPrefix(option, "hidepid="); ok && mode != "0" && mode != "off" {
				hidden = option
			}
		}
	}
	may, err := m.has(capSysPtrace, "CapEff")
	switch {
	case err != nil:
		return nil, err
	case hidden == "":
		return fine("/proc shows every process")
	case may:
		return fine(hidden + ", with CAP_SYS_PTRACE not hidden")
	}
	return bad(Note, hidden, "/proc hides the processes of other users: who holds a socket of theirs cannot be told.",
		"run ft as root, or: mount -o remount,hidepid=0 /proc")
}

// userNamespaces makes one in a child, which then fails to start a program
// that does not exist, and is gone.
func userNamespaces(m *machine) ([]Finding, error) {
	const effect = "Containers without root do not work, nor do the tests of programs that make their own networks."
	_, _, err := syscall.StartProcess("/dev/null/none", []string{"none"}, &syscall.ProcAttr{
		Sys: &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER},
	})
	if !errors.Is(err, syscall.ENOTDIR) {
		value := "no"
		if err != nil {
			value = "no: " + err.Error()
		}
		return bad(Note, value, effect, m.userNamespaceFix())
	}
	admin, err := m.has(capSysAdmin, "CapEff")
	if err != nil {
		return nil, err
	}
	if n, err := m.number("kernel.apparmor_restrict_unprivileged_userns"); err == nil && n != 0 && !admin {
		return bad(Note, "yes, but without capabilities inside (AppArmor)", effect, "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0")
	}
	return fine("can be made")
}

func (m *machine) userNamespaceFix() string {
	if n, err := m.number("user.max_user_namespaces"); err == nil && n == 0 {
		return "sysctl -w user.max_user_namespaces=10000"
	}
	if n, err := m.number("kernel.unprivileged_userns_clone"); err == nil && n == 0 { // Debian's
		return "sysctl -w kernel.unprivileged_userns_clone=1"
	}
	return ""
}
