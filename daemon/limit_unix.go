//go:build unix

package daemon

import "golang.org/x/sys/unix"

// descriptorLimit is how many descriptors this process may have (getrlimit(2)).
// Go's runtime has raised the soft limit to the hard one.
func descriptorLimit() int {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 1024
	}
	return int(min(uint64(l.Cur), 1<<20))
}
