package owner

import (
	"encoding/hex"
	"strconv"
	"strings"

	"github.com/fivetuple/fivetuple/internal/printable"
)

// Cgroup is a control group (cgroups(7)) and what its path says of it.
type Cgroup struct {
	// ID is the number of the group in the cgroup2 hierarchy, as the socket
	// table gives it. 0 where it is not known.
	ID uint64
	// Path is the path below the mount point, as "/system.slice/nginx.service". In
	// all three texts what does not print is escaped as in a Go string.
	Path string
	// Unit is the systemd unit it belongs to, the innermost one if a user's or a
	// container's systemd runs within another: "nginx.service", "session-3.scope". A slice is
	// none. Empty for none.
	Unit string
	// Container is the container it belongs to, the innermost one: the id of
	// docker, podman, containerd and CRI-O, 64 hexadecimal digits, or the name given
	// to LXC, systemd-nspawn or libvirt. Empty for none. A cgroup does not tell the name that
	// docker ps and podman ps show.
	Container string
}

// Cgroup returns the group with this number. It is false if there is none any
// more, or it lies outside what is mounted here.
func (f *Finder) Cgroup(id uint64) (Cgroup, bool) { return f.cgroup(id) }

// CgroupOf returns the group that a process is in. Where cgroup2 does not manage
// units and containers it is that of systemd's own hierarchy, or another of
// version 1. The error of a process that does not exist wraps [fs.ErrNotExist].
func CgroupOf(pid int) (Cgroup, error) { return cgroupOf(pid) }

// cgroupAt reads a path.
func cgroupAt(path string) Cgroup {
	c := Cgroup{Path: printable.Escape(path)}
	before := ""
	for part := range strings.SplitSeq(path, "/") {
		part = strings.TrimPrefix(part, "_") // systemd's, where the name could be taken for a file of the kernel's
		if isUnit(part) {
			c.Unit = printable.Escape(part)
		}
		if name := containerIn(part, before); name != "" {
			c.Container = printable.Escape(name)
		}
		before = part
	}
	return c
}

// cgroupIn chooses from /proc/PID/cgroup: a line "0::PATH" for cgroup2, and
// "NUMBER:CONTROLLERS:PATH" for each hierarchy of version 1.
func cgroupIn(file string) Cgroup {
	var v2, systemd, other Cgroup
	for line := range strings.Lines(file) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(fields) != 3 {
			continue
		}
		c := cgroupAt(strings.TrimSuffix(fields[2], " (deleted)"))
		switch {
		case fields[0] == "0" && fields[1] == "":
			v2 = c
		case fields[1] == "name=systemd":
			systemd = c
		case other == Cgroup{} || other.Container == "":
			other = c
		}
	}
	// Whoever manages a group says so by its name.
	for _, c := range []Cgroup{v2, systemd, other} {
		if c.Unit != "" || c.Container != "" {
			return c
		}
	}
	return v2
}

// isUnit knows the kinds of units that have processes (systemd.unit(5)).
func isUnit(name string) bool {
	for _, kind := range []string{".service", ".scope", ".socket", ".mount", ".swap"} {
		if len(name) > len(kind) && strings.HasSuffix(name, kind) {
			return true
		}
	}
	return false
}

// containerIn returns the container that a part of a path names.
func containerIn(part, before string) string {
	name, isScope := strings.CutSuffix(part, ".scope")
	switch {
	case isScope && strings.HasPrefix(name, "machine-"): // systemd-nspawn, libvirt
		return unescape(name[len("machine-"):])
	case strings.HasPrefix(part, "systemd-nspawn@") && strings.HasSuffix(part, ".service"):
		return unescape(part[len("systemd-nspawn@") : len(part)-len(".service")])
	case strings.HasPrefix(part, "lxc.payload."):
		return part[len("lxc.payload."):]
	case before == "lxc" || before == "lxc.payload":
		return part
	}
	// docker-ID.scope, libpod-ID.scope, cri-containerd-ID.scope, crio-ID.scope, under
	// docker and kubepods the ID alone, and in the first line of a broken
	// configuration that is common, SLICE:cri-containerd:ID.
	at := strings.LastIndexAny(name, "-:") + 1
	if id := name[at:]; isContainerID(id) && !strings.Contains(name[:at], "conmon") { // which watches over it from outside
		return id
	}
	return ""
}

func isContainerID(s string) bool {
	if len(s) != 64 || strings.ToLower(s) != s {
		return false
	}
	_, err := hex.DecodeString(s)
	return err == nil
}

// unescape undoes \xHH (systemd-escape(1)).
func unescape(s string) string {
	var b strings.Builder
	for s != "" {
		if len(s) >= 4 && s[:2] == `\x` {
			if c, err := strconv.ParseUint(s[2:4], 16, 8); err == nil {
				b.WriteByte(byte(c))
				s = s[4:]
				continue
			}
		}
		b.WriteByte(s[0])
		s = s[1:]
	}
	return b.String()
}
