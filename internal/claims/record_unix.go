//go:build unix

package claims

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
)

// A file is one header and then one record for each slot, all of the same size,
// numbers in little-endian order. As that size divides that of a page, no unit
// lies on two pages: the kernel lets SIGKILL cut a write short between pages
// only (generic_perform_write in mm/filemap.c).
//
//	header                    record
//	 0  magic, 16 bytes        0  1: in use (0: free, and the rest does not count)
//	16  version, 2 bytes       1  protocol
//	18  unitSize, 2 bytes      2  flags
//	20  1: complete            3  not used
//	24  id, 32 bytes           4  port, 2 bytes
//	56  not used               6  not used
//	                           8  zone, 4 bytes
//	                          12  pid, 4 bytes
//	                          16  address, 16 bytes
//	                          32  network namespace, 16 bytes
//	                          48  process, 16 bytes
//	                          64  expiry, 8 bytes
//	                          72  the same by the wall's clock, 8 bytes
//	                          80  not used
//	                         124  checksum of the bytes before it, 4 bytes
//
// Bytes that are not used are written as 0, and not looked at: claims that say
// more can still be read by this version.
const (
	magic      = "fivetuple claims" // 16 bytes
	version    = 1
	unitSize   = 128
	completeAt = 20
	idAt       = 24
	idSize     = 32
	sumAt      = 124
)

const (
	flagV6Only = 1 << iota
	flagReusePort
	flagIPv4
)

// unit is a header or a record.
type unit [unitSize]byte

// offset is where the record of a slot begins.
func offset(slot int) int64 { return int64(slot+1) * unitSize }

func checkSlot(slot int) error {
	if slot < 0 || slot >= Slots {
		return fmt.Errorf("slot %d: want 0 to %d: release leases that are no longer needed", slot, Slots-1)
	}
	return nil
}

func header(id [idSize]byte) (u unit) {
	copy(u[:], magic)
	binary.LittleEndian.PutUint16(u[16:], version)
	binary.LittleEndian.PutUint16(u[18:], unitSize)
	copy(u[idAt:], id[:])
	return u
}

// readHeader returns the id in a header, of which n bytes could be read.
func readHeader(u *unit, n int) (id [idSize]byte, err error) {
	if n < unitSize || !bytes.HasPrefix(u[:], []byte(magic)) {
		return id, errors.New("not a file of claims")
	}
	if v, size := binary.LittleEndian.Uint16(u[16:]), binary.LittleEndian.Uint16(u[18:]); v != version || size != unitSize {
		return id, fmt.Errorf("a file of version %d, with records of %d bytes; this program knows version %d, with %d bytes",
			v, size, version, unitSize)
	}
	return [idSize]byte(u[idAt:]), nil
}

func (c Claim) encode() (u unit, err error) {
	if !c.At.Addr().IsValid() || c.At.Port() == 0 {
		return u, fmt.Errorf("claim %s: want an IP address and a port", c.At)
	}
	u[0] = 1
	u[1] = c.Protocol
	if c.V6Only {
		u[2] |= flagV6Only
	}
	if c.ReusePort {
		u[2] |= flagReusePort
	}
	if c.At.Addr().Is4() {
		u[2] |= flagIPv4
	}
	binary.LittleEndian.PutUint16(u[4:], c.At.Port())
	binary.LittleEndian.PutUint32(u[8:], c.Zone)
	binary.LittleEndian.PutUint32(u[12:], uint32(c.PID))
	address := c.At.Addr().As16()
	copy(u[16:], address[:])
	copy(u[32:], c.NetNS[:])
	copy(u[48:], c.Process[:])
	binary.LittleEndian.PutUint64(u[64:], uint64(c.Expires))
	binary.LittleEndian.PutUint64(u[72:], uint64(c.Until))
	putChecksum(&u)
	return u, nil
}

// free says whether no claim is in a record.
func (u *unit) free() bool { return u[0] == 0 }

// decode reads a record that is in use. It fails if that was written in part, or by no program of ours.
func (u *unit) decode() (c Claim, ok bool) {
	if u[0] != 1 || binary.LittleEndian.Uint32(u[sumAt:]) != checksum(u) {
		return c, false
	}
	address := netip.AddrFrom16([16]byte(u[16:]))
	if u[2]&flagIPv4 != 0 {
		address = address.Unmap()
	}
	port := binary.LittleEndian.Uint16(u[4:])
	if port == 0 {
		return c, false
	}
	return Claim{
		Protocol:  u[1],
		V6Only:    u[2]&flagV6Only != 0,
		ReusePort: u[2]&flagReusePort != 0,
		At:        netip.AddrPortFrom(address, port),
		Zone:      binary.LittleEndian.Uint32(u[8:]),
		NetNS:     [16]byte(u[32:]),
		PID:       int32(binary.LittleEndian.Uint32(u[12:])),
		Process:   [16]byte(u[48:]),
		Expires:   int64(binary.LittleEndian.Uint64(u[64:])),
		Until:     int64(binary.LittleEndian.Uint64(u[72:])),
	}, true
}

func putChecksum(u *unit) { binary.LittleEndian.PutUint32(u[sumAt:], checksum(u)) }

func checksum(u *unit) uint32 { return crc32.Checksum(u[:sumAt], castagnoli) }

// castagnoli is the polynomial that processors compute.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)
