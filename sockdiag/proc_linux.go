package sockdiag

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/fivetuple/fivetuple"
)

// procNet shows the sockets of the calling thread's network namespace, as the
// netlink socket does (proc_pid_net(5)).
const procNet = "/proc/thread-self/net"

// readProc decodes a file of procNet into s, one line after the other without
// the heading, and calls each with those to keep until it returns false.
func readProc(s *Socket, file string, decode func(fields []string) (keep bool, err error), each func(*Socket) bool) (more bool, err error) {
	f, err := os.Open(filepath.Join(procNet, file))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			if strings.HasSuffix(file, "6") { // IPv6 is off
				return true, nil
			}
			err = fmt.Errorf("the kernel has no such sockets: %w: %w", err, errors.ErrUnsupported)
		}
		return false, err
	}
	defer f.Close()
	return procLines(f, decode, func() bool { return each(s) })
}

func procLines(r io.Reader, decode func(fields []string) (keep bool, err error), each func() bool) (more bool, err error) {
	lines := bufio.NewScanner(r)
	lines.Scan()
	for lines.Scan() {
		keep, err := decode(strings.Fields(lines.Text()))
		if err != nil {
			return false, fmt.Errorf("line %q: %w", lines.Text(), err)
		}
		if keep && !each() {
			return false, nil
		}
	}
	return true, lines.Err()
}

// procInet fills s from a line of /proc/net/raw, icmp and their like for IPv6:
//
//	sl local rem st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode ref pointer drops
func (d *decoder) procInet(s *Socket, f []string) error {
	if len(f) < 13 {
		return truncated("line of sockets", len(f), 13)
	}
	local, err1 := procAddress(f[1])
	remote, err2 := procAddress(f[2])
	state, err3 := strconv.ParseUint(f[3], 16, 8)
	tx, rx, _ := strings.Cut(f[4], ":")
	sent, err4 := strconv.ParseUint(tx, 16, 32)
	received, err5 := strconv.ParseUint(rx, 16, 32)
	uid, err6 := strconv.ParseUint(f[7], 10, 32)
	inode, err7 := strconv.ParseUint(f[9], 10, 32)
	drops, err8 := strconv.ParseUint(f[12], 10, 32)
	s.State = fivetuple.State(state)
	s.Local, s.Remote = local, remoteOf(remote.Addr(), remote.Port())
	s.SendQueue, s.RecvQueue = uint32(sent), uint32(received)
	s.UID, s.Inode = uint32(uid), uint32(inode)
	if d.details&WithMemory != 0 {
		s.Memory = Memory{SendAlloc: s.SendQueue, RecvAlloc: s.RecvQueue, Drops: uint32(drops)}
	}
	return errors.Join(err1, err2, err3, err4, err5, err6, err7, err8)
}

// procAddress reads "0100007F:0050": an address as 32 bit numbers of the
// machine's byte order, and a port. A link-local address has no zone there.
func procAddress(text string) (netip.AddrPort, error) {
	host, port, _ := strings.Cut(text, ":")
	b, err := hex.DecodeString(host)
	if err == nil && len(b)%4 == 0 {
		for i := 0; i < len(b); i += 4 {
			binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
		}
	}
	addr, ok := netip.AddrFromSlice(b)
	n, errPort := strconv.ParseUint(port, 16, 16)
	if err != nil || errPort != nil || !ok {
		return netip.AddrPort{}, fmt.Errorf("address %q is not hexadecimal ADDRESS:PORT", text)
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), nil
}

// procPacket fills s from a line of /proc/net/packet:
//
//	sk RefCnt Type Proto Iface R Rmem User Inode
func (d *decoder) procPacket(s *Socket, f []string) error {
	if len(f) < 9 {
		return truncated("line of sockets", len(f), 9)
	}
	number, err1 := strconv.ParseUint(f[3], 16, 16)
	device, err2 := strconv.ParseUint(f[4], 10, 32)
	received, err3 := strconv.ParseUint(f[6], 10, 32)
	uid, err4 := strconv.ParseUint(f[7], 10, 32)
	inode, err5 := strconv.ParseUint(f[8], 10, 32)
	s.Protocol, s.State = fivetuple.Packet, fivetuple.StateClose
	s.Number, s.Interface, s.RecvQueue = uint16(number), uint32(device), uint32(received)
	s.UID, s.Inode = uint32(uid), uint32(inode)
	s.Name = d.packetName(s)
	return errors.Join(err1, err2, err3, err4, err5)
}
