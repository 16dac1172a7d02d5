package owner

import (
	"encoding/binary"
	"strings"
	"testing"
)

// btfFile writes BTF. A type is name, kind, flags and number of members, size or type, and what
// follows, in numbers of four bytes; names are "\x00"-separated.
func btfFile(names string, types ...uint32) []byte {
	b := binary.NativeEndian.AppendUint16(nil, 0xeb9f)
	b = append(b, 1, 0)
	for _, v := range []uint32{24, 0, uint32(4 * len(types)), uint32(4 * len(types)), uint32(len(names))} {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	for _, v := range types {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	return append(b, names...)
}

func exampleBTF() []byte {
	const names = "\x00box\x00a\x00deep\x00bit\x00run\x00boxes\x00"
	const box, a, deep, bit, run, boxes = 1, 5, 7, 12, 16, 20
	return btfFile(names,
		0, 1<<24, 4, 32, // 1: an integer without a name
		box, 4<<24|1, 4, a, 1, 0, // 2: struct box { int a; }, of another part of the kernel
		0, 4<<24|1, 4, deep, 1, 0, // 3: struct { int deep; }
		0, 5<<24|1, 4, 0, 3, 0, // 4: union { struct 3; }
		box, 1<<31|4<<24|3, 16, a, 1, 0, 0, 4, 64, bit, 1, 3<<24|96, // 5: struct box { int a; (at 8) union 4; (at 12) int bit:3; }
		0, 13<<24|1, 1, a, 1, // 6: int (int a)
		run, 12<<24|1, 6, // 7: function run
		boxes, 4<<24|1, 4, deep, 1, 0, // 8: a longer name
	)
}

func TestKernelTypesTellWhereMembersAre(t *testing.T) {
	k := &kernelTypes{file: exampleBTF(), structs: map[string][]uint32{}, funcs: map[string]uint32{}}
	ok(k.parse([]string{"box", "deep"}, []string{"run", "box", "walk"}))
	if k.funcs["run"] != 7 || len(k.funcs) != 1 {
		t.Errorf("got functions %v, want run as 7", k.funcs)
	}
	for _, c := range []struct {
		of, member     string
		number, offset int
		bad            bool
	}{
		{of: "box", member: "a", number: 2},
		{of: "box", member: "deep", number: 5, offset: 8},
		{of: "box", member: "bit", number: 5, offset: 12},
		{of: "box", member: "b", bad: true},
		{of: "box", member: "dee", bad: true},
		{of: "deep", member: "a", bad: true},
		{of: "boxes", member: "deep", bad: true}, // not asked for
	} {
		number, offset, err := k.member(c.of, c.member)
		if int(number) != c.number || offset != c.offset || (err != nil) != c.bad {
			t.Errorf("%s.%s: got %d, %d, %v, want %d, %d, error %v", c.of, c.member, number, offset, err, c.number, c.offset, c.bad)
		}
	}
	if got := k.size(5); got != 16 {
		t.Errorf("got size %d, want 16", got)
	}
}

func TestKernelTypesThatAreNone(t *testing.T) {
	whole := exampleBTF()
	for name, b := range map[string][]byte{
		"empty": nil, "text": []byte(strings.Repeat("text", 10)), "half": whole[:len(whole)/2],
		"without names": btfFile("", 0, 1<<24, 4, 32)[:30], "a type cut short": btfFile("\x00", 0, 1<<24),
		"an unknown kind": btfFile("\x00", 0, 30<<24, 4), "kind 0": btfFile("\x00", 0, 0, 0),
	} {
		k := &kernelTypes{file: b, structs: map[string][]uint32{}, funcs: map[string]uint32{}}
		if err := k.parse([]string{"box"}, []string{"run"}); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
}

func FuzzKernelTypes(f *testing.F) {
	f.Add(exampleBTF())
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1024 {
			return
		}
		k := &kernelTypes{file: b, structs: map[string][]uint32{}, funcs: map[string]uint32{}}
		if k.parse([]string{"box"}, []string{"run"}) != nil {
			return
		}
		for number := range k.start {
			k.find(uint32(number), "deep", 0)
		}
		if number, _, err := k.member("box", "a"); err == nil {
			k.size(number)
		}
	})
}
