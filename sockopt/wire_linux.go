package sockopt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

var native = binary.NativeEndian

// encode returns the level and the bytes for setsockopt.
func encode(s Setting) (level int, raw string, err error) {
	o, v := s.opt, s.v
	level = o.Level
	var b []byte
	switch {
	case o.Kind == String, o.Kind == Hex:
		return level, v.text, nil
	case o.Kind == KeepAlive:
		b = int32Bytes(boolInt(v.on))
	case o.Kind == Group:
		return encodeGroup(o, v)
	case o.wire == wireLinger:
		b = append(int32Bytes(boolInt(v.on)), int32Bytes(v.n[0])...)
	case o.wire == wireTimeval:
		tv := unix.NsecToTimeval(v.n[0] * 1000)
		b = slices.Clone(unsafe.Slice((*byte)(unsafe.Pointer(&tv)), unsafe.Sizeof(tv)))
	case o.wire == wireUint64:
		b = native.AppendUint64(nil, uint64(v.n[0]))
	case o.wire == wireMulticastIf:
		return encodeMulticastIf(v.text)
	case o.Kind == Interface:
		index, err := interfaceIndex(v.text)
		if err != nil {
			return 0, "", err
		}
		b = int32Bytes(int64(index))
		if o.wire == wireNetIndex {
			b = binary.BigEndian.AppendUint32(nil, uint32(index))
		}
	default:
		b = int32Bytes(v.n[0])
	}
	return level, string(b), nil
}

// int32Bytes keeps the low 32 bits: numbers over MaxInt32 are the kernel's unsigned ones.
func int32Bytes(n int64) []byte { return native.AppendUint32(nil, uint32(n)) }

func boolInt(on bool) int64 {
	if on {
		return 1
	}
	return 0
}

// interfaceIndex resolves a name, an index or none in the network namespace of the calling thread.
func interfaceIndex(text string) (int, error) {
	if text == "none" || text == "" {
		return 0, nil
	}
	if n, err := strconv.Atoi(text); err == nil {
		return n, nil
	}
	ifi, err := net.InterfaceByName(text)
	if err != nil {
		return 0, fmt.Errorf("interface %s: %w (%s)", text, unix.ENODEV, interfaceNames())
	}
	return ifi.Index, nil
}

func interfaceNames() string {
	all, err := net.Interfaces()
	if err != nil {
		return err.Error()
	}
	names := []string{"there are"}
	for i, ifi := range all {
		if i == 16 {
			names = append(names, "and more")
			break
		}
		names = append(names, ifi.Name)
	}
	return strings.Join(names, " ")
}

// encodeMulticastIf makes struct ip_mreqn: group (unused), address, index.
func encodeMulticastIf(text string) (int, string, error) {
	b := make([]byte, 12)
	if addr, err := netip.ParseAddr(text); err == nil {
		copy(b[4:], addr.AsSlice())
		return levelIP, string(b), nil
	}
	index, err := interfaceIndex(text)
	if err != nil {
		return 0, "", err
	}
	native.PutUint32(b[8:], uint32(index))
	return levelIP, string(b), nil
}

// encodeGroup makes struct group_req or group_source_req of include/uapi/linux/in.h: the interface index, then one or
// two sockaddr_storage, aligned like a pointer.
func encodeGroup(o *Option, v value) (int, string, error) {
	index, err := interfaceIndex(v.text)
	if err != nil {
		return 0, "", err
	}
	const start, storage = unsafe.Sizeof(uintptr(0)), 128
	size := start + storage
	if o.wire == wireSourceGroup {
		size += storage
	}
	b := make([]byte, size)
	native.PutUint32(b, uint32(index))
	putSockaddr(b[start:], v.group)
	if o.wire == wireSourceGroup {
		putSockaddr(b[start+storage:], v.source)
	}
	if v.group.Is6() {
		return levelIPv6, string(b), nil
	}
	return levelIP, string(b), nil
}

// putSockaddr writes struct sockaddr_in or sockaddr_in6 with port 0.
func putSockaddr(b []byte, addr netip.Addr) {
	if addr.Is4() {
		native.PutUint16(b, unix.AF_INET)
		copy(b[4:], addr.AsSlice())
		return
	}
	native.PutUint16(b, unix.AF_INET6)
	copy(b[8:], addr.AsSlice())
}

var errShort = errors.New("the kernel answered with too few bytes")

// decode reads the bytes of getsockopt.
func decode(o *Option, raw []byte) (v value, err error) {
	switch {
	case o.Kind == String:
		text, _, _ := strings.Cut(string(raw), "\x00")
		v.text = text
		return v, nil
	case o.Kind == Hex:
		v.text = string(raw)
		return v, nil
	case o.wire == wireTCPInfo:
		v.text = DecodeTCPInfo(raw).String()
		return v, nil
	case o.wire == wireGroups:
		v.text = joinUint32(raw, " ")
		return v, nil
	case len(raw) == 1: // a few IP options answer with one byte if that is enough
		v.n[0] = int64(raw[0])
		return v, nil
	case len(raw) < 4:
		return v, errShort
	}
	word := native.Uint32(raw)
	switch o.wire {
	case wireLinger:
		if len(raw) < 8 {
			return v, errShort
		}
		if v.on = word != 0; v.on {
			v.n[0] = int64(int32(native.Uint32(raw[4:])))
		}
	case wireTimeval:
		var tv unix.Timeval
		if len(raw) < int(unsafe.Sizeof(tv)) {
			return v, errShort
		}
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&tv)), unsafe.Sizeof(tv)), raw)
		v.n[0] = int64(tv.Sec)*1_000_000 + int64(tv.Usec)
	case wireUint64:
		v.n[0] = int64(word)
		if len(raw) >= 8 {
			v.n[0] = int64(native.Uint64(raw))
		}
	case wireIndex:
		v.text = interfaceName(int(word))
	case wireNetIndex:
		v.text = interfaceName(int(binary.BigEndian.Uint32(raw)))
	case wireMulticastIf:
		v.text = netip.AddrFrom4([4]byte(raw)).String()
	case wireErrno:
		v.text = "none"
		if word != 0 {
			v.text = syscall.Errno(word).Error()
		}
	case wireCred:
		if len(raw) < 12 {
			return v, errShort
		}
		v.text = fmt.Sprintf("pid=%d uid=%d gid=%d", int32(word), int32(native.Uint32(raw[4:])), int32(native.Uint32(raw[8:])))
	case wireMemInfo:
		v.text = formatMemInfo(raw)
	default:
		switch {
		case o.Kind == KeepAlive:
			v.on = word != 0
		case o.Kind == Bool:
			v.n[0] = boolInt(word != 0)
		case o.Max > math.MaxInt32:
			v.n[0] = int64(word)
		default:
			v.n[0] = int64(int32(word))
		}
	}
	return v, nil
}

func interfaceName(index int) string {
	if index == 0 {
		return "none"
	}
	if ifi, err := net.InterfaceByIndex(index); err == nil {
		return ifi.Name
	}
	return strconv.Itoa(index)
}

func joinUint32(raw []byte, separator string) string {
	var parts []string
	for ; len(raw) >= 4; raw = raw[4:] {
		parts = append(parts, strconv.FormatUint(uint64(native.Uint32(raw)), 10))
	}
	return strings.Join(parts, separator)
}

// memInfoKeys are the letters of ss(8) for the counters of SK_MEMINFO_* in include/uapi/linux/sock_diag.h.
var memInfoKeys = [...]string{"r", "rb", "t", "tb", "f", "w", "o", "bl", "d"}

func formatMemInfo(raw []byte) string {
	var parts []string
	for _, key := range memInfoKeys {
		if len(raw) < 4 {
			break
		}
		parts = append(parts, key+strconv.FormatUint(uint64(native.Uint32(raw)), 10))
		raw = raw[4:]
	}
	return strings.Join(parts, ",")
}

// getsockopt fills buf and returns the part the kernel wrote.
func getsockopt(fd, level, number int, buf []byte) ([]byte, error) {
	size := uint32(len(buf))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(number),
		uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return nil, errno
	}
	return buf[:min(int(size), len(buf))], nil
}
