package lab

import (
	"os"
	"strings"
	"testing"
)

// Sysctl sets a kernel parameter of the host's network, such as
// "net.ipv4.ip_forward". A key whose parts hold dots themselves is written with
// slashes, as in sysctl(8). Not every net parameter is a host's own: those that
// are the whole machine's do not exist here.
func (h *Host) Sysctl(t testing.TB, key, value string) {
	t.Helper()
	path := key
	if !strings.Contains(key, "/") {
		path = strings.ReplaceAll(key, ".", "/")
	}
	h.must(t, "set sysctl "+key, func() error {
		return os.WriteFile("/proc/sys/"+path, []byte(value), 0)
	})
}
