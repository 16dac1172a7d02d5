package sockopt

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Get reads an option of a live socket. Of keepalive on TCP it also reads the times.
func Get(fd int, name string) (Setting, error) {
	o := lookup(name)
	if o == nil {
		return Setting{}, unknown(name)
	}
	sk, err := Identify(fd)
	if err != nil {
		return Setting{}, err
	}
	s, err := get(fd, o, sk)
	if err != nil {
		return Setting{}, fmt.Errorf("get %s: %w", o.Name, err)
	}
	return s, nil
}

// GetAll reads every option that the socket has, in the order of [All]. What this kernel, this kind of socket or its
// state does not have is left out, and so is what reading would change.
func GetAll(fd int) ([]Setting, error) {
	sk, err := Identify(fd)
	if err != nil {
		return nil, err
	}
	var all []Setting
	for _, o := range All() {
		if o.Access == WriteOnly || o.ClearsOnRead {
			continue
		}
		if s, err := get(fd, lookup(o.Name), sk); err == nil {
			all = append(all, s)
		}
	}
	return all, nil
}

// get reads an option and completes keepalive.
func get(fd int, o *Option, sk Sockets) (Setting, error) {
	if o.Access == WriteOnly {
		return Setting{}, ErrWriteOnly
	}
	if err := o.admits(sk); err != nil {
		return Setting{}, err
	}
	s, err := read(fd, o, sk)
	if err != nil || o.Kind != KeepAlive || !s.v.on || sk&TCP == 0 {
		return s, err
	}
	for i, part := range keepAliveParts {
		p, err := read(fd, lookup(part), sk)
		if err != nil {
			return s, err
		}
		s.v.n[i] = p.v.n[0]
	}
	return s, nil
}

// read reads one option of the kernel.
func read(fd int, o *Option, sk Sockets) (Setting, error) {
	buf := make([]byte, 512)
	if o.wire == wireUint64 { // some of these refuse any other length
		buf = buf[:8]
	}
	raw, err := getsockopt(fd, o.Level, o.Number, buf)
	if errors.Is(err, unix.ERANGE) { // peergroups: 4 bytes for each of up to 65536 groups
		raw, err = getsockopt(fd, o.Level, o.Number, make([]byte, 4*65536))
	}
	if err != nil {
		return Setting{}, explain(o, sk, os.NewSyscallError("getsockopt", err))
	}
	v, err := decode(o, raw)
	if err != nil {
		return Setting{}, fmt.Errorf("%s: %w", o.Constant, err)
	}
	return Setting{o, v}, nil
}

// Default reads an option from a fresh socket of the first kind that it belongs to: TCP, UDP, Unix stream, raw or packet,
// over IPv4 before IPv6. Raw and packet sockets need CAP_NET_RAW.
func Default(name string) (Setting, error) {
	o := lookup(name)
	if o == nil {
		return Setting{}, unknown(name)
	}
	for _, fresh := range freshSockets {
		if !o.Sockets.Admits(fresh.kind) {
			continue
		}
		fd, err := unix.Socket(fresh.domain, fresh.typ|unix.SOCK_CLOEXEC, fresh.protocol)
		if err != nil {
			return Setting{}, fmt.Errorf("default of %s: %w", o.Name, os.NewSyscallError("socket", err))
		}
		defer unix.Close(fd)
		s, err := get(fd, o, fresh.kind)
		if err != nil {
			return Setting{}, fmt.Errorf("default of %s: %w", o.Name, err)
		}
		return s, nil
	}
	return Setting{}, fmt.Errorf("default of %s: %w: %s", o.Name, ErrSocket, o.Sockets)
}

// experimental is the IP protocol for experiments of RFC 3692: raw sockets of it have the plain defaults, and get no traffic.
const experimental = 253

type freshSocket struct {
	kind                  Sockets
	domain, typ, protocol int
}

var freshSockets = []freshSocket{
	{TCP | IPv4, unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP},
	{TCP | IPv6, unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_TCP},
	{UDP | IPv4, unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDP},
	{UDP | IPv6, unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_UDP},
	{Unix, unix.AF_UNIX, unix.SOCK_STREAM, 0},
	{Raw | IPv4, unix.AF_INET, unix.SOCK_RAW, experimental},
	{Raw | IPv6, unix.AF_INET6, unix.SOCK_RAW, experimental},
	{Packet, unix.AF_PACKET, unix.SOCK_RAW, 0},
}
