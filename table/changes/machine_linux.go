package changes

import (
	"os"
	"strings"

	"github.com/fivetuple/fivetuple/netns"
)

// machine says where the snapshot was made (random(4), proc_sys_kernel(5)).
func (s *Snapshot) machine() {
	s.Boot = read("/proc/sys/kernel/random/boot_id")
	s.Kernel = read("/proc/sys/kernel/osrelease")
	if here, err := netns.Current(); err == nil {
		s.Netns = here.ID
	}
}

// read returns the line in a file, "" if it cannot be read.
func read(path string) string {
	b, _ := os.ReadFile(path)
	return strings.TrimSpace(string(b))
}

// syncDirectory writes down that a file has a new name.
func syncDirectory(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return nil // it may not be read, only written to
	}
	defer d.Close()
	return d.Sync()
}
