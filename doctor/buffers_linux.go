package doctor

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// pipePages looks at what all pipes of a user may take together (pipe(7)), and
// makes a pipe to see whether this user has reached it.
func pipePages(m *machine) ([]Finding, error) {
	soft, err := m.number("fs.pipe-user-pages-soft")
	if err != nil {
		return nil, err
	}
	page := int64(os.Getpagesize())
	got, want, err := m.newPipe(page)
	if err != nil {
		return nil, err
	}
	return pipeLimit(soft, page, got, want)
}

// pipeLimit judges the limit in pages, and what a new pipe holds and should.
func pipeLimit(soft, page, got, want int64) ([]Finding, error) {
	const usual = 16384
	const effect = "Over the limit every new pipe of the user holds one or two pages, and none can be made larger: copying with splice(2) crawls. CAP_SYS_RESOURCE and CAP_SYS_ADMIN lift it."
	value := fmt.Sprintf("%s of all pipes of a user", size(soft*page))
	if soft == 0 {
		value = "no limit"
	}
	switch {
	case got < want:
		return bad(Problem, fmt.Sprintf("%s, reached: a new pipe holds %s", value, size(got)), effect,
			fmt.Sprintf("sysctl -w fs.pipe-user-pages-soft=%d", max(4*soft, usual)))
	case soft != 0 && soft < usual:
		return bad(Note, value, effect, fmt.Sprintf("sysctl -w fs.pipe-user-pages-soft=%d", usual))
	}
	return fine(value)
}

// newPipe returns what a new pipe holds, and what it should: 16 pages, or
// fs.pipe-max-size if that is less.
func (m *machine) newPipe(page int64) (got, want int64, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return 0, 0, os.NewSyscallError("pipe2", err)
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	n, err := unix.FcntlInt(uintptr(p[0]), unix.F_GETPIPE_SZ, 0)
	if err != nil {
		return 0, 0, os.NewSyscallError("fcntl", err)
	}
	want = 16 * page
	if most, err := m.number("fs.pipe-max-size"); err == nil {
		want = min(want, most)
	}
	return int64(n), want, nil
}

func pipeSize(m *machine) ([]Finding, error) {
	const usual = 1 << 20
	n, err := m.number("fs.pipe-max-size")
	if err != nil {
		return nil, err
	}
	value := size(n) + " in one pipe at most"
	if n < usual {
		return bad(Note, value, "A relay that copies with splice(2) cannot move more at once without CAP_SYS_RESOURCE.",
			fmt.Sprintf("sysctl -w fs.pipe-max-size=%d", usual))
	}
	return fine(value)
}

// enoughBuffer is what a fast UDP or QUIC receiver asks for, and the kernel's
// own maximum in newer versions. In older ones it is 208 KiB.
const enoughBuffer = 4 << 20

func receiveBuffer(m *machine) ([]Finding, error) {
	n, err := m.number("net.core.rmem_max")
	if err != nil {
		return nil, err
	}
	value := "SO_RCVBUF of " + size(n) + " at most"
	if n < enoughBuffer {
		return bad(Note, value,
			"More is cut to that silently, unless a process with CAP_NET_ADMIN uses SO_RCVBUFFORCE. Bursts of UDP that do not fit are dropped. TCP that leaves its buffer to the kernel has a limit of its own.",
			fmt.Sprintf("sysctl -w net.core.rmem_max=%d", enoughBuffer))
	}
	return fine(value)
}

func sendBuffer(m *machine) ([]Finding, error) {
	n, err := m.number("net.core.wmem_max")
	if err != nil {
		return nil, err
	}
	value := "SO_SNDBUF of " + size(n) + " at most"
	if n < enoughBuffer {
		return bad(Note, value,
			"More is cut to that silently, unless a process with CAP_NET_ADMIN uses SO_SNDBUFFORCE. TCP that leaves its buffer to the kernel has a limit of its own.",
			fmt.Sprintf("sysctl -w net.core.wmem_max=%d", enoughBuffer))
	}
	return fine(value)
}

// enoughTCP is the kernel's own maximum of both TCP buffers, at least, on a
// machine that has the memory (Documentation/networking/ip-sysctl.rst).
const enoughTCP = 4 << 20

func tcpReceiveBuffer(m *machine) ([]Finding, error) {
	return tcpBuffer(m, "net.ipv4.tcp_rmem", "receives")
}

func tcpSendBuffer(m *machine) ([]Finding, error) {
	return tcpBuffer(m, "net.ipv4.tcp_wmem", "sends")
}

func tcpBuffer(m *machine, name, does string) ([]Finding, error) {
	n, err := m.sysctl(name, 3)
	if err != nil {
		return nil, err
	}
	least, first, most := n[0], n[1], n[2]
	value := fmt.Sprintf("grows from %s to %s", size(first), size(most))
	if most < enoughTCP {
		// A window is sent once a round trip; some of the buffer is overhead.
		return bad(Note, value,
			fmt.Sprintf("A connection with a round trip of 100 ms %s at %s at most.", does, bits(most*10)),
			fmt.Sprintf("sysctl -w %s=%q", name, fmt.Sprint(least, first, max(first, 6<<20))))
	}
	return fine(value)
}

// bits writes a rate for people.
func bits(bytesPerSecond int64) string {
	n := bytesPerSecond * 8
	if n < 10e6 {
		return fmt.Sprintf("%.1f Mbit/s", float64(n)/1e6)
	}
	return fmt.Sprintf("%.0f Mbit/s", float64(n)/1e6)
}

func tcpAutotuning(m *machine) ([]Finding, error) {
	n, err := m.number("net.ipv4.tcp_moderate_rcvbuf")
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return bad(Warning, "off", "The receive buffer of a TCP connection stays at its first size, so the peer cannot send faster than that each round trip.",
			"sysctl -w net.ipv4.tcp_moderate_rcvbuf=1")
	}
	return fine("on")
}

func tcpWindowScaling(m *machine) ([]Finding, error) {
	n, err := m.number("net.ipv4.tcp_window_scaling")
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return bad(Warning, "off", "A TCP window is 64 KiB at most: with a round trip of 100 ms that is "+bits(65535*10)+".",
			"sysctl -w net.ipv4.tcp_window_scaling=1")
	}
	return fine("on")
}

func tcpMemory(m *machine) ([]Finding, error) {
	return protocolMemory(m, "TCP", "net.ipv4.tcp_mem",
		"From there on the kernel shrinks windows and buffers of every TCP connection; at the maximum it drops data and resets orphaned connections.")
}

func udpMemory(m *machine) ([]Finding, error) {
	return protocolMemory(m, "UDP", "net.ipv4.udp_mem",
		"At the maximum the kernel drops datagrams that arrive, whatever the buffer of their socket.")
}

// protocolMemory compares the pages that all sockets of a protocol take with
// the bounds of tcp(7) and udp(7): low, pressure, high. Both are the machine's,
// not the network namespace's.
func protocolMemory(m *machine, protocol, name, effect string) ([]Finding, error) {
	used, err := m.sockstat(protocol, "mem")
	if err != nil {
		return nil, err
	}
	bounds, err := m.sysctl(name, 3)
	if err != nil {
		return nil, err
	}
	pressure, high := bounds[1], bounds[2]
	page := int64(os.Getpagesize())
	level := OK
	switch {
	case float64(used) >= 0.95*float64(high):
		level = Problem
	case used >= pressure:
		level = Warning
	}
	value := fmt.Sprintf("%s of all sockets, pressure from %s, %s at most", size(used*page), size(pressure*page), size(high*page))
	if level != OK {
		return bad(level, value, effect, fmt.Sprintf("sysctl -w %s=%q", name, fmt.Sprint(2*bounds[0], 2*pressure, 2*high)))
	}
	return fine(value)
}

func optionMemory(m *machine) ([]Finding, error) {
	const usual = 20480 // before Linux 6.8; 128 KiB since
	n, err := m.number("net.core.optmem_max")
	if err != nil {
		return nil, err
	}
	value := size(n) + " of options of a socket"
	if n < usual {
		return bad(Note, value, "Socket filters, many multicast groups and large ancillary messages fail with ENOBUFS or ENOMEM.",
			"sysctl -w net.core.optmem_max=131072")
	}
	return fine(value)
}

// packetBacklog looks at /proc/net/softnet_stat: of each CPU, in hexadecimal,
// the packets it processed and those it dropped because its queue was full.
func packetBacklog(m *machine) ([]Finding, error) {
	const path = "proc/thread-self/net/softnet_stat"
	text, err := m.read(path)
	if err != nil {
		return nil, err
	}
	var processed, dropped uint64
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			return nil, fmt.Errorf("/%s has a line %q", path, line)
		}
		for i, sum := range []*uint64{&processed, &dropped} {
			n, err := strconv.ParseUint(fields[i], 16, 64)
			if err != nil {
				return nil, fmt.Errorf("/%s has a line %q", path, line)
			}
			*sum += n
		}
	}
	if dropped == 0 {
		return fine("no packet dropped since boot")
	}
	level := Note
	if dropped > processed/1000 {
		level = Warning
	}
	queue, err := m.number("net.core.netdev_max_backlog")
	fix := "sysctl -w net.core.netdev_max_backlog=4000, on the host"
	if err == nil {
		fix = fmt.Sprintf("sysctl -w net.core.netdev_max_backlog=%d", max(4000, 2*queue))
	}
	// The kernel counts in 32 bits, and both wrap around.
	return bad(level, fmt.Sprintf("%d packets dropped since boot, about %d processed", dropped, processed),
		"The queue of a CPU was full: packets of loopback, of veth pairs and of devices whose packets are spread over CPUs are lost there, with nothing in the device's own counters.", fix)
}
