package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// newWires gives each host a device, named after the other, that is up.
func newWires(a, b *Host, mtu int) ([2]wire, error) {
	wires, err := newTunWires(a, b, mtu)
	// A device file that only root may open, as where no udev runs, or that a container lacks.
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return newPacketWires(a, b, mtu)
	}
	return wires, err
}

func newTunWires(a, b *Host, mtu int) (wires [2]wire, err error) {
	for i, end := range []struct{ host, peer *Host }{{a, b}, {b, a}} {
		err := end.host.ns.try(func() (err error) {
			wires[i], err = newTun(end.host.ns, end.peer.name, mtu)
			return err
		})
		if err != nil {
			if i == 1 {
				wires[0].Close()
			}
			return wires, err
		}
	}
	return wires, nil
}

// tunWire is a TUN device: one for IP packets that lasts as long as its file.
type tunWire struct {
	*os.File
	host   *namespace
	device string
}

// newTun makes a TUN device in a host, in whose namespace this thread is.
func newTun(host *namespace, name string, mtu int) (*tunWire, error) {
	const path = "/dev/net/tun"
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_TUN_EXCL)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err == nil {
		err = setUpQuietly(name, mtu)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make TUN device %s: %w", name, err)
	}
	return &tunWire{os.NewFile(uintptr(fd), path), host, name}, nil // after TUNSETIFF: only then it can be polled
}

// unread is what the kernel dropped since the device's queue was full.
func (w *tunWire) unread() (dropped int64, err error) {
	err = w.host.try(func() error {
		dropped, err = txDropped(w.device)
		return err
	})
	return dropped, err
}

// setUpQuietly sets up the host's end of a wire.
func setUpQuietly(device string, mtu int) error {
	if err := setSize(device, mtu, wireQueue); err != nil {
		return err
	}
	const leastIPv6 = 1280 // of a device that has IPv6: RFC 8200 section 5
	if mtu >= leastIPv6 {
		// There is no router on such a link, and what asks for one takes packet numbers.
		sysctl := "/proc/sys/net/ipv6/conf/" + device + "/router_solicitations"
		if err := os.WriteFile(sysctl, []byte("0"), 0); err != nil {
			return err
		}
	}
	return setUp(device)
}

// wireQueue is how many packets wait for the test process to read them.
const wireQueue = 10000

// isDown reports whether a packet was not taken since the host's device is not up.
func isDown(err error) bool {
	return errors.Is(err, unix.EIO) || errors.Is(err, unix.ENETDOWN)
}
