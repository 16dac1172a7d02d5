package owner

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cgroups are those that a [Finder] has resolved.
type cgroups struct {
	known  map[uint64]Cgroup
	mount  string // where cgroup2 is mounted, "" if nowhere
	walked time.Time
}

func (g *cgroups) cgroup(id uint64) (Cgroup, bool) {
	if g.known == nil {
		g.known, g.mount = map[uint64]Cgroup{}, cgroupMount()
	}
	if c, ok := g.known[id]; ok || id == 0 || g.mount == "" {
		return c, ok
	}
	path, err := pathOfCgroup(g.mount, id)
	if err == nil {
		g.add(id, path)
	} else if err != unix.ESTALE && time.Since(g.walked) > time.Second {
		// Without CAP_DAC_READ_SEARCH all have to be read. One that has gone would be
		// looked for time and again.
		g.walk("/")
		g.walked = time.Now()
	}
	c, ok := g.known[id]
	return c, ok
}

func (g *cgroups) add(id uint64, path string) {
	c := cgroupAt(path)
	c.ID = id
	g.known[id] = c
}

// pathOfCgroup asks the kernel: the id is what file handles of the cgroup2 file system consist
// of (open_by_handle_at(2)), since Linux 5.5. ESTALE says that there is no such group.
func pathOfCgroup(mount string, id uint64) (string, error) {
	const kernfs = 0xfe // FILEID_KERNFS
	dir, err := unix.Open(mount, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(dir)
	fd, err := unix.OpenByHandleAt(dir, unix.NewFileHandle(kernfs, binary.NativeEndian.AppendUint64(nil, id)), unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return "", err
	}
	below, ok := strings.CutPrefix(path, mount)
	if !ok || below != "" && below[0] != '/' {
		return "", fmt.Errorf("cgroup %s lies outside %s", path, mount)
	}
	return "/" + strings.TrimPrefix(below, "/"), nil
}

// walk adds all groups from a path on. The id of each is the inode of its directory.
func (g *cgroups) walk(path string) {
	var st unix.Stat_t
	if unix.Stat(g.mount+path, &st) != nil {
		return
	}
	g.add(st.Ino, path)
	entries, _ := os.ReadDir(g.mount + path) // it may be removed meanwhile
	for _, e := range entries {
		if e.IsDir() {
			g.walk(filepath.Join(path, e.Name()))
		}
	}
}

// cgroupMount finds where cgroup2 is mounted: /sys/fs/cgroup, or
// /sys/fs/cgroup/unified where version 1 is in use as well.
func cgroupMount() string {
	b, err := readFile(unix.AT_FDCWD, "/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		mount, filesystem, _ := strings.Cut(line, " - ")
		if fields := strings.Fields(mount); len(fields) > 4 && strings.HasPrefix(filesystem, "cgroup2 ") {
			return unescapeMount(fields[4])
		}
	}
	return ""
}

// unescapeMount undoes \040 and the like (proc_pid_mountinfo(5)).
func unescapeMount(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}

func cgroupOf(pid int) (Cgroup, error) {
	b, err := readFile(unix.AT_FDCWD, "/proc/"+strconv.Itoa(pid)+"/cgroup")
	if err != nil {
		return Cgroup{}, fmt.Errorf("find the cgroup of process %d: %w", pid, err)
	}
	return cgroupIn(string(b)), nil
}
