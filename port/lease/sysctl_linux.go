package lease

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/fivetuple/fivetuple"
)

// reservedPorts returns the ports that the kernel gives only to those who ask
// for them by number, written "8080,9000-9010".
func reservedPorts() (*portSet, error) {
	text, err := readSysctl("ip_local_reserved_ports")
	if err != nil {
		return nil, err
	}
	set := new(portSet)
	for part := range strings.SplitSeq(text, ",") {
		if part == "" {
			continue
		}
		r, err := fivetuple.ParsePortRange(part)
		if err != nil {
			return nil, fmt.Errorf("net.ipv4.ip_local_reserved_ports: %w", err)
		}
		for p := int(r.First); p <= int(r.Last); p++ {
			set.add(uint16(p))
		}
	}
	return set, nil
}

// ephemeralPorts returns where the kernel takes the source ports of outgoing connections from.
func ephemeralPorts() (fivetuple.PortRange, error) {
	text, err := readSysctl("ip_local_port_range")
	if err != nil || text == "" {
		return fivetuple.PortRange{}, err
	}
	var r fivetuple.PortRange
	if _, err := fmt.Sscan(text, &r.First, &r.Last); err != nil {
		return fivetuple.PortRange{}, fmt.Errorf("net.ipv4.ip_local_port_range %q: %w", text, err)
	}
	return r, nil
}

// unprivilegedPortStart returns the first port that needs no privilege; the parameter exists since Linux 4.11.
func unprivilegedPortStart() (int, error) {
	text, err := readSysctl("ip_unprivileged_port_start")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(text)
}

// readSysctl reads a parameter of the calling thread's network namespace. One
// that does not exist, as where /proc is hidden, is empty.
func readSysctl(name string) (string, error) {
	text, err := os.ReadFile("/proc/sys/net/ipv4/" + name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(text)), err
}
