package owner

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os/user"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple/internal/printable"
)

func processOf(pid int) (Process, error) {
	dir, err := openProcess(pid)
	if err != nil {
		return Process{}, fmt.Errorf("describe process %d: %w", pid, err)
	}
	defer unix.Close(dir)
	return describeWithUser(dir, pid)
}

func alive(p Process) bool {
	if p.PID <= 0 {
		return false // to kill(2) these are groups of processes
	}
	b, err := readFile(unix.AT_FDCWD, "/proc/"+strconv.Itoa(p.PID)+"/stat")
	if err == nil {
		var st stat
		if st, err = parseStat(b); err == nil {
			return st.start == p.Start && !st.ended()
		}
	}
	// Where /proc hides processes (hidepid) or is missing kill(2) still knows them.
	return !errors.Is(err, fs.ErrNotExist) || unix.Kill(p.PID, 0) != unix.ESRCH
}

// openProcess opens /proc/PID. What is read through it is of this process even
// when it ends and the PID is used again.
func openProcess(pid int) (dir int, err error) {
	path := "/proc/" + strconv.Itoa(pid)
	dir, err = unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return dir, nil
}

func describeWithUser(dir, pid int) (Process, error) {
	p, err := describe(dir, pid)
	if err != nil {
		return Process{}, fmt.Errorf("describe process %d: %w", pid, err)
	}
	p.User = userName(p.UID)
	return p, nil
}

// describe fills all but the user's name.
func describe(dir, pid int) (Process, error) {
	st, err := readStat(dir)
	if err != nil {
		return Process{}, err
	}
	status, err := readFile(dir, "status")
	if err != nil {
		return Process{}, err
	}
	uid, err := parseUID(status)
	if err != nil {
		return Process{}, err
	}
	return Process{PID: pid, Start: st.start, Command: printable.Escape(st.command), UID: uid}, nil
}

func readStat(dir int) (stat, error) {
	b, err := readFile(dir, "stat")
	if err != nil {
		return stat{}, err
	}
	return parseStat(b)
}

// readFile reads a file in /proc/PID, faster than os.ReadFile. The error of a
// process that has ended meanwhile is fs.ErrNotExist, as if it had never been.
func readFile(dir int, name string) ([]byte, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: gone(err)}
	}
	defer unix.Close(fd)
	for b := make([]byte, 0, 2048); ; {
		n, err := unix.Read(fd, b[len(b):cap(b)])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return nil, &fs.PathError{Op: "read", Path: name, Err: gone(err)}
		case n == 0:
			return b, nil
		default:
			b = slices.Grow(b[:len(b)+n], 1)
		}
	}
}

func gone(err error) error {
	if err == unix.ESRCH {
		return unix.ENOENT
	}
	return err
}

// stat is the part of /proc/PID/stat (proc_pid_stat(5)) that matters here.
type stat struct {
	command string
	state   byte
	parent  uint64
	flags   uint64 // PF_* of include/linux/sched.h
	threads uint64
	start   uint64 // clock ticks since boot
}

const (
	forkNoExec   = 0x00000040 // PF_FORKNOEXEC
	kernelThread = 0x00200000 // PF_KTHREAD
)

// ended says that the process waits to be reaped, or is just being so. With more
// threads than one only the first has ended, whose state this is (pthread_exit(3)).
func (s stat) ended() bool {
	return (s.state == 'Z' || s.state == 'X' || s.state == 'x') && s.threads <= 1
}

// parseStat takes fields 2, 3, 4, 9, 20 and 22. The second is in parentheses and may
// hold any byte, parentheses too; no later field can.
func parseStat(b []byte) (stat, error) {
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return stat{}, fmt.Errorf("read stat: no command in %q", b)
	}
	st := stat{command: string(b[open+1 : end])}
	number := 2
	for field := range bytes.FieldsSeq(b[end+1:]) {
		number++
		var err error
		switch number {
		case 3:
			st.state = field[0]
		case 4:
			st.parent, err = strconv.ParseUint(string(field), 10, 64)
		case 9:
			st.flags, err = strconv.ParseUint(string(field), 10, 64)
		case 20:
			st.threads, err = strconv.ParseUint(string(field), 10, 64)
		case 22:
			st.start, err = strconv.ParseUint(string(field), 10, 64)
			if err == nil {
				return st, nil
			}
		}
		if err != nil {
			return stat{}, fmt.Errorf("read stat: field %d: %w", number, err)
		}
	}
	return stat{}, fmt.Errorf("read stat: want 22 fields in %q", b)
}

// parseUID takes the effective user from /proc/PID/status:
// "Uid:", then the real, effective, saved and file system user.
func parseUID(status []byte) (uint32, error) {
	if ids := statusField(status, "Uid:"); len(ids) >= 2 {
		uid, err := strconv.ParseUint(string(ids[1]), 10, 32)
		return uint32(uid), err
	}
	return 0, errors.New("read status: no user id")
}

// statusField returns what stands in the line of /proc/PID/status that begins with name.
func statusField(status []byte, name string) [][]byte {
	for line := range bytes.Lines(status) {
		if rest, ok := bytes.CutPrefix(line, []byte(name)); ok {
			return bytes.Fields(rest)
		}
	}
	return nil
}

// userName reads /etc/passwd each time; a search keeps what it was told.
func userName(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return printable.Escape(u.Username)
	}
	return id
}
