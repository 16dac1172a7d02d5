package doctor

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/fivetuple/fivetuple/internal/printable"
)

// fewDescriptors is what a busy server soon needs more than.
const fewDescriptors = 4096

// descriptorsProcess looks at what programs started from here may open. The
// soft limit is that of the parent, the shell: a Go program has raised its own.
func descriptorsProcess(m *machine) ([]Finding, error) {
	soft, hard, err := m.openFiles("self")
	if err != nil {
		return nil, err
	}
	if s, _, err := m.openFiles(strconv.Itoa(os.Getppid())); err == nil {
		soft = min(s, hard)
	}
	value := fmt.Sprintf("soft limit %d, hard limit %d", soft, hard)
	switch {
	case hard < fewDescriptors:
		return bad(Warning, value,
			fmt.Sprintf("A program started from here gets EMFILE (too many open files) at %d files and sockets, and cannot raise that without CAP_SYS_RESOURCE.", hard),
			"LimitNOFILE=524288 in its unit, or \"* hard nofile 524288\" in /etc/security/limits.conf")
	case soft < fewDescriptors:
		return bad(Note, value,
			fmt.Sprintf("A program started from here that does not raise the soft limit itself, as Go programs do, gets EMFILE (too many open files) at %d files and sockets.", soft),
			fmt.Sprintf("ulimit -n %d", hard))
	}
	return fine(value)
}

func descriptorsMachine(m *machine) ([]Finding, error) {
	n, err := m.sysctl("fs.file-nr", 3) // used, free (always 0), maximum
	if err != nil {
		return nil, err
	}
	used, limit := n[0], n[2]
	value := fmt.Sprintf("%d of %d open files of all processes", used, limit)
	if level := levelOfUse(used, limit); level != OK {
		return bad(level, value,
			"At the maximum open(2), socket(2) and accept(2) fail with ENFILE in every process without CAP_SYS_ADMIN.",
			fmt.Sprintf("sysctl -w fs.file-max=%d", 2*limit))
	}
	return fine(value)
}

func descriptorsCeiling(m *machine) ([]Finding, error) {
	const usual = 1 << 20 // the kernel's own
	n, err := m.number("fs.nr_open")
	if err != nil {
		return nil, err
	}
	value := fmt.Sprintf("%d descriptors in one process at most", n)
	if n < usual {
		return bad(Note, value, "RLIMIT_NOFILE cannot be set higher, not even by root.", fmt.Sprintf("sysctl -w fs.nr_open=%d", usual))
	}
	return fine(value)
}

// descriptorsNearLimit looks for processes that use over 80 % of their own soft limit.
func descriptorsNearLimit(m *machine) ([]Finding, error) {
	dir, err := os.Open(filepath.Join(m.root, "proc"))
	if err != nil {
		return nil, renamed(err, "/proc")
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	sized := m.fdSize("self") > 0 // since Linux 6.2, otherwise 0
	ceiling, err := m.number("fs.nr_open")
	if err != nil {
		ceiling = math.MaxInt64
	}
	var found []Finding
	looked, hidden := 0, 0
	for _, pid := range names {
		if _, err := strconv.Atoi(pid); err != nil {
			continue
		}
		used := m.fdSize(pid)
		if !sized {
			used = m.fdCount(pid)
		}
		soft, hard, err := m.openFiles(pid)
		switch {
		case os.IsNotExist(err): // it has ended
			continue
		case err != nil || used < 0:
			hidden++
			continue
		}
		looked++
		if f, near := nearLimit(used, soft, hard, ceiling, pid); near {
			command, _ := m.read("proc/" + pid + "/comm")
			f.Subject = fmt.Sprintf(`"%s" (pid %s)`, printable.Escape(command), pid)
			found = append(found, f)
		}
	}
	if hidden > 0 {
		found = append(found, Finding{
			Level: Unknown, Value: fmt.Sprintf("%d of %d processes do not show how many descriptors they have", hidden, looked+hidden),
			Fix: "run ft doctor as root",
		})
	}
	if len(found) == 0 {
		return fine(fmt.Sprintf("none of %d processes uses over 80%% of its limit", looked))
	}
	return found, nil
}

// nearLimit says whether a process uses much of its limit. ceiling is how far
// that can be raised, fs.nr_open.
func nearLimit(used, soft, hard, ceiling int64, pid string) (f Finding, near bool) {
	f.Level = levelOfUse(used, soft)
	if f.Level == OK {
		return f, false
	}
	f.Value = fmt.Sprintf("%d descriptors of %d", used, soft)
	f.Effect = fmt.Sprintf("At %d it gets EMFILE: it cannot accept or open connections any more.", soft)
	more := hard
	if more <= soft { // takes CAP_SYS_RESOURCE
		more = min(2*soft, ceiling)
	}
	f.Fix = fmt.Sprintf("prlimit --pid %s --nofile=%d:%d", pid, more, more)
	if more == soft {
		f.Fix = fmt.Sprintf("sysctl -w fs.nr_open=%d, then prlimit --pid %s --nofile=%d:%d", 2*soft, pid, 2*soft, 2*soft)
	}
	return f, true
}

// openFiles returns the limits of descriptors of a process, from /proc/PID/limits.
func (m *machine) openFiles(pid string) (soft, hard int64, err error) {
	path := "proc/" + pid + "/limits"
	text, err := m.read(path)
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, "Max open files"); ok {
			fields := strings.Fields(rest)
			if len(fields) < 2 {
				break
			}
			if soft, err = limit(fields[0]); err == nil {
				hard, err = limit(fields[1])
			}
			return soft, hard, err
		}
	}
	return 0, 0, fmt.Errorf("/%s has no limits of open files", path)
}

func limit(text string) (int64, error) {
	if text == "unlimited" {
		return math.MaxInt64, nil
	}
	return strconv.ParseInt(text, 10, 64)
}

// fdSize is the size of /proc/PID/fd, which since Linux 6.2 is the number of
// descriptors, and may be read by everybody. -1 if it may not.
func (m *machine) fdSize(pid string) int64 {
	info, err := os.Stat(filepath.Join(m.root, "proc", pid, "fd"))
	if err != nil {
		return -1
	}
	return info.Size()
}

// fdCount counts the descriptors one by one. -1 if it may not.
func (m *machine) fdCount(pid string) int64 {
	dir, err := os.Open(filepath.Join(m.root, "proc", pid, "fd"))
	if err != nil {
		return -1
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return -1
	}
	return int64(len(names))
}
