package netns

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	ownPath  = "/proc/thread-self/ns/net"
	namesDir = "/run/netns" // of ip-netns(8); /var/run is a link to /run
)

func all() ([]Namespace, error) {
	found := map[uint64]Namespace{}
	if err := addMounts(found); err != nil {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	if err := addProcesses(found); err != nil {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	list := make([]Namespace, 0, len(found))
	for _, n := range found {
		list = append(list, n)
	}
	slices.SortFunc(list, func(a, b Namespace) int { return cmp.Compare(a.ID, b.ID) })
	return list, nil
}

// addMounts finds what is kept by a mount of nsfs (proc_pid_mountinfo(5)). One
// that is covered by another mount, or that is not of a network namespace,
// does not open as what mountinfo says.
func addMounts(found map[uint64]Namespace) error {
	f, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20) // overlay mounts have long lines
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 || !strings.HasPrefix(fields[3], "net:[") {
			continue
		}
		path := unescape(fields[4])
		id, err := identify(path)
		if err != nil || fields[3] != fmt.Sprintf("net:[%d]", id) {
			continue
		}
		n := Namespace{ID: id, Path: path, Name: nameOf(path)}
		if old, ok := found[id]; !ok || n.Name != "" && (old.Name == "" || n.Name < old.Name) {
			found[id] = n
		}
	}
	return lines.Err()
}

func nameOf(path string) string {
	if filepath.Dir(path) == namesDir || filepath.Dir(path) == "/var"+namesDir {
		return filepath.Base(path)
	}
	return ""
}

// unescape reads a path of mountinfo, in which space, tab, newline and
// backslash are written as \ooo.
func unescape(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}

func addProcesses(found map[uint64]Namespace) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		path := filepath.Join("/proc", e.Name(), "ns/net")
		id, err := identify(path)
		if err != nil { // it has ended, or may not be looked into
			continue
		}
		n, ok := found[id]
		if !ok {
			n = Namespace{ID: id, Path: path}
		}
		if n.PID == 0 || pid < n.PID {
			if n.PID != 0 && n.Path == processPath(n.PID) {
				n.Path = path
			}
			n.PID = pid
		}
		found[id] = n
	}
	return nil
}

func processPath(pid int) string { return fmt.Sprintf("/proc/%d/ns/net", pid) }

// identify gives the inode number.
func identify(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Ino, nil
}

func current() (Namespace, error) {
	id, err := identify(ownPath)
	found := map[uint64]Namespace{}
	if err == nil {
		err = addMounts(found)
	}
	if err != nil {
		return Namespace{}, fmt.Errorf("tell the network namespace: %w", err)
	}
	n := found[id]
	n.ID, n.PID = id, os.Getpid()
	if n.Path == "" {
		n.Path = processPath(n.PID)
		if main, err := identify(n.Path); err != nil || main != id { // the thread is elsewhere
			n.Path = fmt.Sprintf("/proc/%d/task/%d/ns/net", n.PID, unix.Gettid())
		}
	}
	return n, nil
}

func (n Namespace) do(fn func() error) (err error) {
	runtime.LockOSThread()
	home, err := enter(n)
	if err != nil || home < 0 {
		defer runtime.UnlockOSThread()
		if err != nil {
			return fmt.Errorf("enter network namespace %d at %s: %w", n.ID, n.Path, err)
		}
		return fn()
	}
	defer func() {
		// A thread that cannot return stays locked, and dies with its goroutine.
		if errHome := unix.Setns(home, unix.CLONE_NEWNET); errHome != nil {
			err = errors.Join(err, fmt.Errorf("leave network namespace %d: %w", n.ID, os.NewSyscallError("setns", errHome)))
		} else {
			runtime.UnlockOSThread()
		}
		unix.Close(home)
	}()
	return fn()
}

// enter takes the thread into the namespace and gives a descriptor of the one
// that it was in, -1 if that is the same.
func enter(n Namespace) (home int, err error) {
	home, id, err := open(ownPath)
	if err != nil || id == n.ID {
		unix.Close(home)
		return -1, err
	}
	target, id, err := open(n.Path)
	if err == nil {
		if id != n.ID { // the process ended, the name was given to another
			err = fmt.Errorf("another one is there now: %w", fs.ErrNotExist)
		} else {
			err = os.NewSyscallError("setns", unix.Setns(target, unix.CLONE_NEWNET))
		}
		unix.Close(target)
	}
	if errors.Is(err, fs.ErrPermission) {
		err = fmt.Errorf("needs CAP_SYS_ADMIN: %w", err)
	}
	if err != nil {
		unix.Close(home)
	}
	return home, err
}

// open opens a namespace, and gives its inode number.
func open(path string) (fd int, id uint64, err error) {
	if fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return -1, 0, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, 0, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return fd, st.Ino, nil
}
