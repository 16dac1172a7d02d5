package confine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// status is what /proc/PID/status says of a thread (proc_pid_status(5)), its
// values with one blank between their parts.
type status map[string]string

func readStatus(path string) (status, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	s := status{}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok {
			s[key] = strings.Join(strings.Fields(value), " ")
		}
	}
	return s, nil
}

// capability is a set of capabilities, and empty where it is not known.
func (s status) capability(set string) capability {
	n, _ := strconv.ParseUint(s[set], 16, 64)
	return capability(n)
}

func (status) hex(c capability) string { return fmt.Sprintf("%016x", uint64(c)) }

// eachThread says whether every thread of this process is as wanted. Those that
// begin meanwhile are like the thread that makes them.
func eachThread(want status) error {
	const tasks = "/proc/self/task"
	threads, err := os.ReadDir(tasks)
	if err != nil {
		return err
	}
	for _, t := range threads {
		got, err := readStatus(filepath.Join(tasks, t.Name(), "status"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it has ended
		}
		if err != nil {
			return err
		}
		for key, value := range want {
			if got[key] != value {
				return fmt.Errorf("thread %s has %s %q instead of %q", t.Name(), key, got[key], value)
			}
		}
	}
	return nil
}
