package sessions

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// detachAll detaches the callers' descriptors of sockets.
func detachAll(ports []*port) {
	var fds []int
	for _, p := range ports {
		p.raw.Control(func(fd uintptr) { fds = append(fds, int(fd)) })
	}
	detach(fds)
}

// detach takes sockets from the poller of Go's runtime, where package net has
// entered them. Nobody waits for them there, and yet the kernel would wake a thread of
// the runtime for each datagram that comes, and for each that has left: more
// than half of all processor time at 100,000 datagrams per second. The runtime
// does not tell its epoll descriptor: each of this process is asked, and those that
// do not have the socket refuse. Without /proc the sockets stay where they are.
func detach(fds []int) {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return
	}
	defer dir.Close()
	for left := len(fds); left > 0; {
		names, err := dir.Readdirnames(64) // it is among the first
		for _, name := range names {
			if link, err := os.Readlink("/proc/self/fd/" + name); err != nil || link != "anon_inode:[eventpoll]" {
				continue
			}
			epoll, err := strconv.Atoi(name)
			if err != nil {
				continue
			}
			for _, fd := range fds {
				if unix.EpollCtl(epoll, unix.EPOLL_CTL_DEL, fd, nil) == nil {
					left--
				}
			}
		}
		if err != nil {
			return
		}
	}
}
