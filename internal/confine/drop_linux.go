package confine

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/psx"
)

func drop(o Options) error {
	p, err := newPlan(o)
	if err != nil {
		return err
	}
	if err := p.run(); err != nil {
		return fmt.Errorf("give up rights: %w", err)
	}
	if err := p.verify(); err != nil {
		return fmt.Errorf("rights were not given up, end this process: %w", err)
	}
	return nil
}

func check(o Options) error {
	_, err := newPlan(o)
	return err
}

// plan is what is to be done, found possible before anything is changed.
type plan struct {
	keep   capability
	become *identity // nil stays
	before status
}

func newPlan(o Options) (plan, error) {
	keep, err := parseCapabilities(o.Keep)
	if err != nil {
		return plan{}, err
	}
	p := plan{keep: keep}
	if p.before, err = readStatus("/proc/thread-self/status"); err != nil {
		return plan{}, fmt.Errorf("read this process's rights: %w: mount /proc", err)
	}
	if lacking := keep &^ p.before.capability("CapPrm"); lacking != 0 {
		return plan{}, fmt.Errorf("cannot keep %s, which this process does not have: start it as root, or with AmbientCapabilities= of a systemd unit", lacking)
	}
	if o.User == "" {
		return p, nil
	}
	who, err := parseUser(o.User)
	if err != nil {
		return plan{}, err
	}
	if p.before["Uid"] == four(who.uid) && p.before["Gid"] == four(who.gid) {
		return p, nil
	}
	if p.before.capability("CapEff")&(setUID|setGID) != setUID|setGID {
		return plan{}, fmt.Errorf("become user %s: %w: this process, of user %d, has not both CAP_SETUID and CAP_SETGID: start it as root, or without naming a user",
			o.User, os.ErrPermission, os.Geteuid())
	}
	p.become = &who
	return p, nil
}

func (p plan) run() error {
	if err := allPrctl(unix.PR_SET_NO_NEW_PRIVS, 1); err != nil {
		return err
	}
	// The bounding set is what programs with file capabilities, and all that root
	// starts, can have at most. no_new_privs would do; this is the second bolt.
	if p.mayBound() {
		for bit := range 64 {
			if one := capability(1) << bit; p.before.capability("CapBnd")&one != 0 && p.keep&one == 0 {
				if err := allPrctl(unix.PR_CAPBSET_DROP, uintptr(bit)); err != nil {
					return err
				}
			}
		}
	}
	if err := allPrctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL); err != nil {
		return err
	}
	if p.become != nil {
		if err := p.changeUser(); err != nil {
			return err
		}
	}
	return setCapabilities(p.keep)
}

func (p plan) mayBound() bool { return p.before.capability("CapEff")&setPCap != 0 }

func (p plan) changeUser() error {
	if p.keep != 0 { // or the change of user would clear them
		if err := allPrctl(unix.PR_SET_KEEPCAPS, 1); err != nil {
			return err
		}
	}
	if p.before["Groups"] != "" {
		if err := syscall.Setgroups(nil); err != nil {
			return refused("setgroups", err)
		}
	}
	if err := syscall.Setresgid(p.become.gid, p.become.gid, p.become.gid); err != nil {
		return refused("setresgid", err)
	}
	if err := syscall.Setresuid(p.become.uid, p.become.uid, p.become.uid); err != nil {
		return refused("setresuid", err)
	}
	return allPrctl(unix.PR_SET_KEEPCAPS, 0)
}

func refused(call string, err error) error {
	switch {
	case errors.Is(err, unix.EINVAL):
		err = fmt.Errorf("%w: the number is not mapped in this user namespace (see /proc/self/uid_map and gid_map)", err)
	case errors.Is(err, unix.EPERM):
		err = fmt.Errorf("%w: this user namespace may forbid it (see /proc/self/setgroups), or a seccomp filter", err)
	}
	return fmt.Errorf("%s: %w", call, err)
}

// setCapabilities makes the permitted and effective sets those to keep, and the
// inheritable set empty.
func setCapabilities(keep capability) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3} // PID 0, the calling thread
	half := [2]unix.CapUserData{
		{Effective: uint32(keep), Permitted: uint32(keep)},
		{Effective: uint32(keep >> 32), Permitted: uint32(keep >> 32)},
	}
	_, _, errno := psx.Syscall3(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&half[0])), 0)
	if errno != 0 {
		return os.NewSyscallError("capset", errno)
	}
	return nil
}

func allPrctl(option int, arg uintptr) error {
	if _, _, errno := psx.Syscall6(unix.SYS_PRCTL, uintptr(option), arg, 0, 0, 0, 0); errno != 0 {
		return fmt.Errorf("prctl %d, %d: %w", option, arg, errno)
	}
	return nil
}

// verify looks at every thread, and tries to become root again.
func (p plan) verify() error {
	want := status{
		"NoNewPrivs": "1", "CapInh": p.before.hex(0), "CapAmb": p.before.hex(0),
		"CapPrm": p.before.hex(p.keep), "CapEff": p.before.hex(p.keep),
	}
	if p.mayBound() {
		want["CapBnd"] = p.before.hex(p.keep & p.before.capability("CapBnd"))
	}
	if p.become != nil {
		want["Uid"], want["Gid"], want["Groups"] = four(p.become.uid), four(p.become.gid), ""
	}
	if err := eachThread(want); err != nil {
		return err
	}
	if p.become == nil {
		return nil
	}
	// On this thread alone. If it succeeds, which must not be, no other goroutine is to run on it.
	runtime.LockOSThread()
	for _, call := range []uintptr{unix.SYS_SETRESUID, unix.SYS_SETRESGID} {
		const same = ^uintptr(0)
		if _, _, errno := unix.RawSyscall(call, same, 0, same); errno == 0 {
			return errors.New("root could be regained")
		}
	}
	runtime.UnlockOSThread()
	return nil
}

func four(id int) string {
	return strings.TrimSpace(strings.Repeat(fmt.Sprint(id, " "), 4))
}
