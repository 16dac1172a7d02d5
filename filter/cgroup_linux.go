package filter

import (
	"golang.org/x/sys/unix"
)

// cgroupRoot is where control groups are mounted, cgroups(7).
const cgroupRoot = "/sys/fs/cgroup"

// cgroupID is the id of a control group of version 2, which is the number of
// its inode; 0 if it is not there, or on a machine of 32 bits, where it is not.
func cgroupID(path string) uint64 {
	var fs unix.Statfs_t
	var st unix.Stat_t
	if ^uint(0)>>63 == 0 || unix.Statfs(cgroupRoot+path, &fs) != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC || unix.Stat(cgroupRoot+path, &st) != nil {
		return 0
	}
	return st.Ino
}
