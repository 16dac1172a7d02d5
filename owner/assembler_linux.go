package owner

// instruction is one of BPF, for a little-endian machine
// (Documentation/bpf/standardization/instruction-set.rst).
type instruction struct {
	code      uint8
	registers uint8 // written to in the low half, read in the high
	offset    int16
	immediate int32
}

type register uint8

const (
	r0  register = iota // what a function returns
	r1                  // r1 to r5 are the arguments of a call, and lost by it
	r2                  //
	r3                  //
	r4                  //
	r5                  //
	r6                  // r6 to r9 stay
	r7                  //
	r8                  //
	r9                  //
	r10                 // the end of the stack, to be read only
)

// assembler writes the instructions that [layout.program] uses, and no others.
type assembler struct {
	program []instruction
	jumps   map[int]string // the label that the jump at this place leads to
	labels  map[string]int
}

func newAssembler() *assembler {
	return &assembler{jumps: map[int]string{}, labels: map[string]int{}}
}

func (a *assembler) emit(code uint8, to, from register, offset, immediate int) {
	a.program = append(a.program, instruction{code, uint8(to) | uint8(from)<<4, int16(offset), int32(immediate)})
}

func (a *assembler) set(to register, v int)           { a.emit(0xb7, to, 0, 0, v) }
func (a *assembler) move(to, from register)           { a.emit(0xbf, to, from, 0, 0) }
func (a *assembler) add(to, from register)            { a.emit(0x0f, to, from, 0, 0) }
func (a *assembler) addConstant(to register, v int)   { a.emit(0x07, to, 0, 0, v) }
func (a *assembler) multiply(to register, v int)      { a.emit(0x27, to, 0, 0, v) }
func (a *assembler) and(to register, v int)           { a.emit(0x57, to, 0, 0, v) }
func (a *assembler) load64(to, from register, at int) { a.emit(0x79, to, from, at, 0) }
func (a *assembler) load32(to, from register, at int) { a.emit(0x61, to, from, at, 0) }
func (a *assembler) load16(to, from register, at int) { a.emit(0x69, to, from, at, 0) }

func (a *assembler) store64(to register, at int, from register) { a.emit(0x7b, to, from, at, 0) }
func (a *assembler) store32(to register, at int, from register) { a.emit(0x63, to, from, at, 0) }

// setToMap sets the register to the address of what an array map of one element holds.
func (a *assembler) setToMap(to register, fd int) {
	const mapValue = 2 // BPF_PSEUDO_MAP_VALUE
	a.emit(0x18, to, mapValue, 0, fd)
	a.emit(0, 0, 0, 0, 0)
}

// call calls one of the functions of bpf-helpers(7).
func (a *assembler) call(helper int) { a.emit(0x85, 0, 0, 0, helper) }

// callKernel calls a function of the kernel by its number among the types.
func (a *assembler) callKernel(function uint32) {
	const kernelFunction = 2 // BPF_PSEUDO_KFUNC_CALL
	a.emit(0x85, 0, kernelFunction, 0, int(function))
}

func (a *assembler) exit() { a.emit(0x95, 0, 0, 0, 0) }

// label is where the jumps to that name lead.
func (a *assembler) label(name string) { a.labels[name] = len(a.program) }

func (a *assembler) jumpTo(label string, code uint8, left, right register, v int) {
	a.jumps[len(a.program)] = label
	a.emit(code, left, right, 0, v)
}

func (a *assembler) jump(label string)                         { a.jumpTo(label, 0x05, 0, 0, 0) }
func (a *assembler) ifZero(r register, label string)           { a.jumpTo(label, 0x15, r, 0, 0) }
func (a *assembler) ifEqual(r, s register, label string)       { a.jumpTo(label, 0x1d, r, s, 0) }
func (a *assembler) ifUnequal(r, s register, label string)     { a.jumpTo(label, 0x5d, r, s, 0) }
func (a *assembler) ifNot(r register, v int, label string)     { a.jumpTo(label, 0x55, r, 0, v) }
func (a *assembler) ifAtLeast(r register, v int, label string) { a.jumpTo(label, 0x35, r, 0, v) }

func (a *assembler) finish() []instruction {
	for at, label := range a.jumps {
		a.program[at].offset = int16(a.labels[label] - at - 1)
	}
	return a.program
}
