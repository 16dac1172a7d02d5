package activation

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	firstFD = 3 // SD_LISTEN_FDS_START
	unnamed = "unknown"
)

var listenVariables = []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"}

func inherited() ([]Socket, error) {
	pid, count, names := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_FDNAMES")
	for _, name := range listenVariables {
		if err := os.Unsetenv(name); err != nil {
			return nil, err
		}
	}
	if pid != strconv.Itoa(os.Getpid()) {
		return nil, nil // there are none, or they were for the process that started this one
	}
	n, err := strconv.ParseUint(count, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("take the sockets passed on: LISTEN_FDS=%q: want a number", count)
	}
	sockets := make([]Socket, n)
	labels := strings.Split(names, ":")
	if names != "" && len(labels) != int(n) {
		return nil, fmt.Errorf("take the sockets passed on: LISTEN_FDNAMES has %d names for %d sockets", len(labels), n)
	}
	for i := range sockets {
		fd := firstFD + i
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
			return nil, fmt.Errorf("take the sockets passed on: descriptor %d of LISTEN_FDS=%d: %w", fd, n, os.NewSyscallError("fcntl", err))
		}
		sockets[i].Name = unnamed
		if names != "" {
			sockets[i].Name = labels[i]
		}
	}
	for i := range sockets { // only now: an *os.File closes its descriptor when it is dropped
		sockets[i].File = os.NewFile(uintptr(firstFD+i), sockets[i].Name)
	}
	return sockets, nil
}
