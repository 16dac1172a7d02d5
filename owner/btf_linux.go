package owner

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// kernelTypes is what the kernel says of its own types: BTF, as
// Documentation/bpf/btf.rst of Linux describes it. It takes one pass over some
// hundred thousand types, most of which are passed over: a millisecond or two, where
// a library that decodes them takes fifty.
type kernelTypes struct {
	file    []byte
	types   []byte
	names   []byte
	start   []uint32 // where in types the one with this number begins
	unmap   func()
	structs map[string][]uint32 // the numbers of those asked for, by name
	funcs   map[string]uint32
}

// The kinds of types that matter here.
const (
	btfStruct, btfUnion, btfFunc = 4, 5, 12
)

// btfSizes are how many bytes follow the first twelve of a type of each kind: always,
// and for every one of its members.
var btfSizes = [...]struct{ fixed, member int }{
	1: {fixed: 4}, 3: {fixed: 12}, btfStruct: {member: 12}, btfUnion: {member: 12}, 6: {member: 8}, 13: {member: 8},
	14: {fixed: 4}, 15: {member: 12}, 17: {fixed: 4}, 19: {member: 12},
}

// openKernelTypes finds the structs and the functions of these names.
func openKernelTypes(path string, structs, funcs []string) (*kernelTypes, error) {
	b, unmap, err := mapFile(path)
	if err != nil {
		return nil, err
	}
	k := &kernelTypes{file: b, unmap: unmap, structs: map[string][]uint32{}, funcs: map[string]uint32{}}
	if err := k.parse(structs, funcs); err != nil {
		unmap()
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return k, nil
}

// mapFile maps a file, or reads it where it cannot be mapped: the kernel's types
// before Linux 6.16.
func mapFile(path string) (b []byte, unmap func(), err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if b, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_PRIVATE); err == nil {
		return b, func() { unix.Munmap(b) }, nil
	}
	b, err = os.ReadFile(path)
	return b, func() {}, err
}

var errBTF = errors.New("it is not BTF, or cut short")

func (k *kernelTypes) parse(structs, funcs []string) error {
	const magic = 0xeb9f
	if len(k.file) < 24 || binary.NativeEndian.Uint16(k.file) != magic {
		return errBTF
	}
	if k.types, k.names = k.section(8), k.section(16); k.types == nil || k.names == nil {
		return errBTF
	}
	k.start = make([]uint32, 1, 1+len(k.types)/24) // number 0 is void
	for at := 0; at < len(k.types); {
		if len(k.types)-at < 12 {
			return errBTF
		}
		t := k.types[at:]
		kind, members := btfKind(t)
		if kind == 0 || kind > len(btfSizes) {
			return fmt.Errorf("unknown kind of type %d", kind)
		}
		number := uint32(len(k.start))
		k.start = append(k.start, uint32(at))
		switch kind {
		case btfStruct:
			if name, ok := k.named(t, structs); ok {
				k.structs[name] = append(k.structs[name], number)
			}
		case btfFunc:
			if name, ok := k.named(t, funcs); ok {
				k.funcs[name] = number
			}
		}
		at += 12
		if kind < len(btfSizes) {
			at += btfSizes[kind].fixed + members*btfSizes[kind].member
		}
	}
	return nil
}

// section returns the part of the file whose offset, from the end of the header,
// and length stand at the given place in the header.
func (k *kernelTypes) section(at int) []byte {
	from := uint64(binary.NativeEndian.Uint32(k.file[4:])) + uint64(binary.NativeEndian.Uint32(k.file[at:]))
	to := from + uint64(binary.NativeEndian.Uint32(k.file[at+4:]))
	if to > uint64(len(k.file)) {
		return nil
	}
	return k.file[from:to]
}

func btfKind(t []byte) (kind, members int) {
	info := binary.NativeEndian.Uint32(t[4:])
	return int(info >> 24 & 0x1f), int(info & 0xffff)
}

// named says which of the names the type or member has that begins at t.
func (k *kernelTypes) named(t []byte, names []string) (string, bool) {
	at := int(binary.NativeEndian.Uint32(t))
	for _, name := range names {
		if end := at + len(name); end < len(k.names) && k.names[end] == 0 && string(k.names[at:end]) == name {
			return name, true
		}
	}
	return "", false
}

// member returns the number of the struct and where in it the member lies, in
// bytes. Of several structs of that name, as there are where parts of the kernel
// disagree, it is the first that has the member.
func (k *kernelTypes) member(name, member string) (number uint32, offset int, err error) {
	for _, number := range k.structs[name] {
		if bits, ok := k.find(number, member, 0); ok && bits%8 == 0 {
			return number, bits / 8, nil
		}
	}
	return 0, 0, fmt.Errorf("this kernel has no struct %s with a member %s", name, member)
}

// size is that of a struct, in bytes.
func (k *kernelTypes) size(number uint32) int {
	return int(binary.NativeEndian.Uint32(k.types[k.start[number]+8:]))
}

// find looks for a member, also in the structs without a name among the members.
func (k *kernelTypes) find(number uint32, member string, depth int) (bits int, ok bool) {
	if number == 0 || int(number) >= len(k.start) || depth > 3 {
		return 0, false
	}
	t := k.types[k.start[number]:]
	kind, members := btfKind(t)
	if kind != btfStruct && kind != btfUnion || len(t) < 12+12*members {
		return 0, false
	}
	bitfields := binary.NativeEndian.Uint32(t[4:])>>31 != 0
	for m := t[12 : 12+12*members]; len(m) > 0; m = m[12:] {
		at := binary.NativeEndian.Uint32(m[8:])
		if bitfields {
			at &= 1<<24 - 1 // the rest is its size, not 0 for a bit field
		}
		if _, ok := k.named(m, []string{member}); ok {
			return int(at), true
		}
		if binary.NativeEndian.Uint32(m) == 0 { // without a name
			if inner, ok := k.find(binary.NativeEndian.Uint32(m[4:]), member, depth+1); ok {
				return int(at) + inner, true
			}
		}
	}
	return 0, false
}
