package lease

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// denialAdvice says why the kernel refused to bind a port, and what to do: the
// port is below ip_unprivileged_port_start and the thread lacks
// CAP_NET_BIND_SERVICE (capabilities(7)), or something stricter is in force.
func denialAdvice(port uint16) string {
	start, err := unprivilegedPortStart()
	if err != nil {
		start = 1024 // the kernel's default
	}
	switch {
	case int(port) >= start:
		return "a security module, or a BPF program of the control group, forbids it"
	case canBindService():
		return fmt.Sprintf("ports below %d (net.ipv4.ip_unprivileged_port_start) need CAP_NET_BIND_SERVICE "+
			"in the user namespace that owns the network namespace, and this process has it in another one, or a security module forbids it", start)
	}
	program, err := os.Executable()
	if err != nil {
		program = "PROGRAM"
	}
	return fmt.Sprintf("ports below %d (net.ipv4.ip_unprivileged_port_start) need the capability CAP_NET_BIND_SERVICE, "+
		"which this process lacks: give it with \"setcap cap_net_bind_service=+ep %s\", "+
		"or open the ports to everybody with \"sysctl net.ipv4.ip_unprivileged_port_start=%d\"", start, program, port)
}

// canBindService says whether CAP_NET_BIND_SERVICE is effective in the calling thread.
func canBindService() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[0].Effective&(1<<unix.CAP_NET_BIND_SERVICE) != 0
}
