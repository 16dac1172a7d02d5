package lease

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple/owner"
)

// lockHolder says which process has the lock on a file, from /proc/locks
// (proc_locks(5)), or nothing if it cannot be told.
func lockHolder(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return ""
	}
	st := info.Sys().(*syscall.Stat_t)
	file := fmt.Sprintf("%02x:%02x:%d", unix.Major(uint64(st.Dev)), unix.Minor(uint64(st.Dev)), st.Ino)
	locks, err := os.Open("/proc/locks")
	if err != nil {
		return ""
	}
	defer locks.Close()
	for lines := bufio.NewScanner(locks); lines.Scan(); {
		// 1: FLOCK  ADVISORY  WRITE 708 00:13:16090 0 EOF; those who wait have "->" after the number.
		var number, kind, mode, access, inode string
		var pid int
		n, _ := fmt.Sscan(lines.Text(), &number, &kind, &mode, &access, &pid, &inode)
		if n == 6 && kind == "FLOCK" && inode == file {
			return describeHolder(pid)
		}
	}
	return ""
}

func describeHolder(pid int) string {
	p, err := owner.ProcessOf(pid)
	if err != nil {
		return fmt.Sprintf("pid %d", pid)
	}
	if isStopped(pid) {
		return fmt.Sprintf("%s, which is stopped: let it go on with `kill -CONT %d`, or end it", p, pid)
	}
	return p.String()
}

// isStopped says whether the process is stopped by a signal or a debugger.
func isStopped(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, fields, _ := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " ")
	return strings.HasPrefix(fields, "T") || strings.HasPrefix(fields, "t")
}
