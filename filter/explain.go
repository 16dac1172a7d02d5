package filter

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"github.com/fivetuple/fivetuple"
)

// Explain says which term runs where, on several lines: which are left to the
// kernel, and the program for it in words.
func (f *Filter) Explain(rights ...Right) string {
	return f.Sockets(rights...).explain()
}

func (p SocketPlan) explain() string {
	if p.whole == nil {
		return "no filter: every socket\n"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "filter: %s\n", p.whole)
	if p.Never {
		b.WriteString("no socket can match: its terms exclude each other\n")
	}
	for _, s := range p.steps {
		fmt.Fprintf(&b, "  %s\n    %s\n", s.node, s.where())
	}
	if p.Protocols != nil {
		fmt.Fprintf(&b, "kernel, protocols: %s\n", protocolsText(p.Protocols))
	}
	if p.States != 0 {
		fmt.Fprintf(&b, "kernel, states: %s\n", statesText(p.States))
	}
	if p.Program != nil {
		fmt.Fprintf(&b, "kernel, program for TCP and UDP sockets (%d bytes):\n%s", len(p.Program), listing(p.Program))
	}
	fmt.Fprintf(&b, "here: %s\n", p.here())
	return b.String()
}

func (s step) where() string {
	var in []string
	if s.protocols {
		in = append(in, "protocols")
	}
	if s.states {
		in = append(in, "states")
	}
	if s.program {
		in = append(in, "program")
	}
	switch by := strings.Join(in, " and "); {
	case by == "":
		return "here"
	case s.here:
		return "kernel narrows by " + by + ", the rest here"
	default:
		return "kernel, by " + by
	}
}

// here says what is left for the predicate.
func (p SocketPlan) here() string {
	rest := "nothing"
	if p.rest != nil {
		rest = p.rest.String()
	}
	for _, n := range p.Protocols {
		if setRun>>n&1 == 0 {
			return rest + "; the whole filter for sockets other than TCP and UDP"
		}
	}
	if p.Protocols == nil {
		return rest + "; the whole filter for sockets other than TCP and UDP"
	}
	return rest
}

func protocolsText(all []fivetuple.Network) string {
	words := make([]string, len(all))
	for i, n := range all {
		words[i] = n.String()
	}
	return strings.Join(words, ", ")
}

// statesText names what is in the set or, if that is shorter, what is not.
func statesText(set uint32) string {
	var in, out []string
	for s := range fivetuple.StateNewSynRecv {
		switch {
		case s == fivetuple.StateUnknown:
		case set>>s&1 != 0:
			in = append(in, stateWord(s))
		default:
			out = append(out, stateWord(s))
		}
	}
	if len(out) < len(in) {
		return "all but " + strings.Join(out, ", ")
	}
	return strings.Join(in, ", ")
}

// listing writes a program in words, one instruction a line.
func listing(program []byte) string {
	var b strings.Builder
	for at := 0; at+opSize <= len(program); {
		op := program[at:]
		size, no := max(opSize, int(op[1])), at+int(binary.NativeEndian.Uint16(op[2:]))
		to := fmt.Sprintf("go to %d", no)
		switch {
		case no == len(program):
			to = "list it"
		case no > len(program):
			to = "leave it out"
		}
		if op[0] == bcJump {
			fmt.Fprintf(&b, "  %5d  %s\n", at, to)
		} else {
			fmt.Fprintf(&b, "  %5d  %s, else %s\n", at, instruction(op[:min(size, len(op))]), to)
		}
		at += size
	}
	fmt.Fprintf(&b, "  %5d  list it\n", len(program))
	return b.String()
}

func instruction(op []byte) string {
	switch op[0] {
	case bcLocalGE:
		return fmt.Sprintf("local port >= %d", binary.NativeEndian.Uint16(op[6:]))
	case bcLocalLE:
		return fmt.Sprintf("local port <= %d", binary.NativeEndian.Uint16(op[6:]))
	case bcRemoteGE:
		return fmt.Sprintf("remote port >= %d", binary.NativeEndian.Uint16(op[6:]))
	case bcRemoteLE:
		return fmt.Sprintf("remote port <= %d", binary.NativeEndian.Uint16(op[6:]))
	case bcLocalHost:
		return "local " + conditionText(op[opSize:])
	case bcRemoteHost:
		return "remote " + conditionText(op[opSize:])
	case bcDevice:
		return fmt.Sprintf("device is number %d", binary.NativeEndian.Uint32(op[opSize:]))
	case bcMark:
		return fmt.Sprintf("mark & %#x is %#x", binary.NativeEndian.Uint32(op[8:]), binary.NativeEndian.Uint32(op[opSize:]))
	case bcCgroup:
		return fmt.Sprintf("control group is number %d", binary.NativeEndian.Uint64(op[opSize:]))
	}
	return fmt.Sprintf("operation %d", op[0])
}

// conditionText writes what hostCondition made.
func conditionText(b []byte) string {
	if b[0] == familyA {
		return fmt.Sprintf("port is %d", binary.NativeEndian.Uint32(b[4:]))
	}
	a, _ := netip.AddrFromSlice(b[8:])
	if p := netip.PrefixFrom(a, int(b[1])); !p.IsSingleIP() {
		return "address is in " + p.String()
	}
	return "address is " + a.String()
}
