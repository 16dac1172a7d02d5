package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"unsafe"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// packetWire is a wire for users who may not open /dev/net/tun: the host has one
// end of a veth pair, and a packet(7) socket is bound to the other one, in a
// namespace that exists for this alone.
type packetWire struct {
	*os.File
	fd      int    // of the file
	in, out []byte // frames
	dropped int64
}

const frameHeader = 14 // Ethernet: destination, source, type

// newPacketWires is [newWires] by veth pairs.
func newPacketWires(a, b *Host, mtu int) (wires [2]wire, err error) {
	between, err := newNamespace()
	if err != nil {
		return wires, err
	}
	// The sockets keep the namespace, and it the devices.
	defer func() { err = errors.Join(err, between.close()) }()
	if err := between.try(silence); err != nil {
		return wires, err
	}
	for i, end := range []struct{ host, peer *Host }{{a, b}, {b, a}} {
		var w *packetWire
		far := fmt.Sprint("far", i)
		var mac net.HardwareAddr
		err := end.host.ns.try(func() (err error) {
			mac, err = newCable(end.peer.name, far, between, mtu)
			return err
		})
		if err == nil {
			err = between.try(func() (err error) {
				w, err = openPacketWire(far, mac, mtu)
				return err
			})
		}
		if err != nil {
			if i == 1 {
				wires[0].Close()
			}
			return wires, err
		}
		wires[i] = w
	}
	return wires, nil
}

// silence keeps this thread's namespace from sending packets of its own.
func silence() error {
	return errors.Join(
		os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0),
		os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0))
}

// newCable makes a veth pair: one end in this thread's namespace, like a TUN
// device without questions for hardware addresses, the other in the one between.
func newCable(name, far string, between *namespace, mtu int) (net.HardwareAddr, error) {
	if err := addVeth(name, far, between); err != nil {
		return nil, err
	}
	if err := checksumInSoftware(name); err != nil {
		return nil, err
	}
	link, err := net.InterfaceByName(name)
	if err != nil {
		return nil, err
	}
	if _, err := request(unix.RTM_NEWLINK, netlink.Acknowledge, linkHeader(link.Index, unix.IFF_NOARP), nil); err != nil {
		return nil, err
	}
	return link.HardwareAddr, setUpQuietly(name, mtu)
}

// checksumInSoftware has the kernel send whole packets through a device: with their
// checksum, and thereby not several in one either.
func checksumInSoftware(device string) error {
	value := struct{ command, data uint32 }{unix.ETHTOOL_STXCSUM, 0}
	ifreq := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(ifreq.name[:unix.IFNAMSIZ-1], device)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifreq))); errno != 0 {
		return fmt.Errorf("turn off the checksum offload of %s: %w", device, errno)
	}
	return nil
}

// openPacketWire reads and writes at a device of this thread's namespace; mac is
// the address of the device at the cable's other end.
func openPacketWire(device string, mac net.HardwareAddr, mtu int) (*packetWire, error) {
	if err := setSize(device, mtu, wireQueue); err != nil {
		return nil, err
	}
	if err := setUp(device); err != nil {
		return nil, err
	}
	if err := untilReady(device); err != nil {
		return nil, err
	}
	link, err := net.InterfaceByName(device)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open a packet socket: %w", err)
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 8<<20), // the kernel cuts it to net.core.rmem_max
		unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: link.Index, Protocol: allProtocols}))
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind a packet socket to %s: %w", device, err)
	}
	w := &packetWire{
		File: os.NewFile(uintptr(fd), "packet socket"),
		fd:   fd,
		in:   make([]byte, frameHeader+mtu),
		out:  make([]byte, frameHeader+mtu),
	}
	copy(w.out, mac)
	copy(w.out[6:], link.HardwareAddr)
	return w, nil
}

// allProtocols is ETH_P_ALL in network order.
var allProtocols = binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})

func (w *packetWire) Read(packet []byte) (int, error) {
	n, err := w.File.Read(w.in)
	if err != nil {
		return 0, err
	}
	return copy(packet, w.in[min(n, frameHeader):n]), nil
}

func (w *packetWire) Write(packet []byte) (int, error) {
	protocol := uint16(unix.ETH_P_IP)
	if len(packet) > 0 && packet[0]>>4 == 6 {
		protocol = unix.ETH_P_IPV6
	}
	binary.BigEndian.PutUint16(w.out[12:], protocol)
	return w.File.Write(append(w.out[:frameHeader], packet...))
}

// unread is what found no room in the socket's receive buffer. It is called by
// one goroutine at a time, and not after Close.
func (w *packetWire) unread() (int64, error) {
	since, err := unix.GetsockoptTpacketStats(w.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return 0, fmt.Errorf("read the statistics of a packet socket: %w", err)
	}
	w.dropped += int64(since.Drops) // the kernel begins again at each reading
	return w.dropped, nil
}
