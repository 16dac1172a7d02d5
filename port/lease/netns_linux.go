package lease

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// networkNamespace names the network namespace of the calling thread, whose
// ports are its own. No other has had that name since the machine was started
// (SO_NETNS_COOKIE, socket(7), Linux 5.14); before Linux 5.14 a later one may.
func networkNamespace(boot string) (string, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); err == nil {
		return fmt.Sprintf("%s/%d", boot, cookie), nil
	}
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		return "", fmt.Errorf("which network namespace this is: %w", err)
	}
	return fmt.Sprintf("%s/net:[%d]", boot, st.Ino), nil
}

// inMainNamespace says whether that is the namespace of process 1: the one that
// goes on, under another name, when the machine is started again. The files in
// /proc/PID/net have numbers of their own in each namespace, and unlike
// /proc/PID/ns they show them to everybody.
func inMainNamespace() bool {
	var main, own unix.Stat_t
	return unix.Stat("/proc/1/net/dev", &main) == nil && unix.Stat("/proc/thread-self/net/dev", &own) == nil && main.Ino == own.Ino
}
