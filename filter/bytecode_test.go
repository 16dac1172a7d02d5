package filter

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/fivetuple/fivetuple"
)

// audit checks a program as inet_diag_bc_audit does (net/ipv4/inet_diag.c).
func audit(t testing.TB, program []byte) {
	t.Helper()
	if program == nil {
		return
	}
	bad := func(at int, format string, args ...any) {
		t.Fatalf("the kernel would refuse the program at %d: %s\n%s", at, fmt.Sprintf(format, args...), listing(program))
	}
	if len(program) == 0 || len(program) > 0xffff-4 {
		t.Fatalf("a program of %d bytes", len(program))
	}
	starts := map[int]bool{}
	for at := 0; at < len(program); at += int(program[at+1]) {
		starts[at] = true
	}
	for at := 0; at < len(program); {
		left := len(program) - at
		if left < 4 {
			bad(at, "cut short")
		}
		code, yes, no := program[at], int(program[at+1]), int(binary.NativeEndian.Uint16(program[at+2:]))
		least := 4
		switch code {
		case bcJump:
		case bcLocalGE, bcLocalLE, bcRemoteGE, bcRemoteLE:
			least += 4
		case bcLocalHost, bcRemoteHost:
			bits := map[byte]int{0: 0, 2: 32, 10: 128}
			size, known := bits[program[at+4]]
			if !known || int(program[at+5]) > size {
				bad(at, "family %d, prefix %d", program[at+4], program[at+5])
			}
			least += 8 + size/8
		case bcDevice:
			least += 4
		case bcMark, bcCgroup:
			least += 8
		default:
			bad(at, "operation %d", code)
		}
		if least > left {
			bad(at, "needs %d bytes of %d", least, left)
		}
		if no < least || no > left+4 || no&3 != 0 || no < left && !starts[at+no] {
			bad(at, "no is %d", no)
		}
		if yes < least || yes > left+4 || yes&3 != 0 {
			bad(at, "yes is %d", yes)
		}
		at += yes
		if at > len(program) {
			bad(at, "does not end at its end")
		}
	}
}

// run runs a program on a socket as inet_diag_bc_run does. In steps of the
// program alone, it shares no code with what made it.
func run(program []byte, s *fakeSocket) bool {
	is6 := s.local.Addr().Is6()
	raw := func(remote bool) []byte {
		a := s.local.Addr()
		if remote {
			a = s.peer.Addr()
		}
		if is6 {
			b := a.As16()
			return b[:]
		}
		return a.AsSlice()
	}
	sport, dport := int(s.local.Port()), int(s.peer.Port())
	at := 0
	for at < len(program) {
		op := program[at:]
		yes := true
		switch op[0] {
		case 1: // INET_DIAG_BC_JMP
			yes = false
		case 2:
			yes = sport >= int(binary.NativeEndian.Uint16(op[6:]))
		case 3:
			yes = sport <= int(binary.NativeEndian.Uint16(op[6:]))
		case 4:
			yes = dport >= int(binary.NativeEndian.Uint16(op[6:]))
		case 5:
			yes = dport <= int(binary.NativeEndian.Uint16(op[6:]))
		case 7, 8: // struct inet_diag_hostcond
			port, family, bits := dport, op[4], int(op[5])
			if op[0] == 7 {
				port = sport
			}
			addr := raw(op[0] == 8)
			own := byte(2)
			if is6 {
				own = 10
			}
			switch want := int32(binary.NativeEndian.Uint32(op[8:])); {
			case want != -1 && int(want) != port:
				yes = false
			case family != 0 && family != own:
				yes = own == 10 && family == 2 && bytes.Equal(addr[:12], []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255}) && sameBits(addr[12:], op[12:], bits)
			default:
				yes = bits == 0 || sameBits(addr, op[12:], bits)
			}
		case 9:
			yes = binary.NativeEndian.Uint32(op[4:]) == s.device
		case 10:
			yes = s.mark&binary.NativeEndian.Uint32(op[8:]) == binary.NativeEndian.Uint32(op[4:])
		case 13:
			yes = binary.NativeEndian.Uint64(op[4:]) == s.cgroup
		}
		if yes {
			at += int(op[1])
		} else {
			at += int(binary.NativeEndian.Uint16(op[2:]))
		}
	}
	return at == len(program)
}

func sameBits(a, b []byte, bits int) bool {
	for i := range bits {
		if (a[i/8]^b[i/8])>>(7-i%8)&1 != 0 {
			return false
		}
	}
	return true
}

// dumped says whether a dump by the plan lists the socket.
func dumped(p *SocketPlan, s *fakeSocket, everywhere bool) bool {
	listed := p.Protocols == nil
	for _, n := range p.Protocols {
		listed = listed || n == s.protocol
	}
	runs := setRun>>s.protocol&1 != 0 || everywhere && s.protocol == fivetuple.Raw
	return listed && (p.States == 0 || p.States>>s.state&1 != 0) && (p.Program == nil || !runs || run(p.Program, s))
}

func TestSplitAnswerEqualsThePredicate(t *testing.T) {
	const filters, sockets = 20000, 100
	r := rand.New(rand.NewPCG(4, 5))
	var table []*fakeSocket
	for range sockets {
		table = append(table, randomSocket(r))
	}
	accepted, narrowed, exact := 0, 0, 0
	for i := range filters {
		if i%20 == 0 {
			table[r.IntN(sockets)] = randomSocket(r)
		}
		text := RandomFilter(r, fakePorts, fakeAddrs)
		f, err := parse(fakeNames(), text)
		if err != nil {
			t.Fatalf("random filter: %v", err)
		}
		checkCanonical(t, f)
		var rights []Right
		if r.IntN(2) == 0 {
			rights = []Right{NetAdmin}
		}
		plan := f.Sockets(rights...)
		audit(t, plan.Program)
		if plan.rest == nil {
			exact++
		}
		for _, s := range table {
			want := f.Match(s)
			if want {
				accepted++
			}
			// On raw sockets the program may be run or not.
			for _, everywhere := range []bool{false, true} {
				lists := dumped(&plan, s, everywhere)
				if !lists {
					narrowed++
				}
				if got := lists && plan.Match(s); got != want {
					t.Fatalf("filter %s\nsocket %+v\nlisted %v (program on raw sockets: %v), split answer %v, predicate %v\n%s", text, *s, lists, everywhere, got, want, plan.explain())
				}
			}
		}
	}
	t.Logf("%d filters: accepted %.0f%%, left out by the kernel %.0f%%, nothing left to check for %.0f%%", filters,
		100*float64(accepted)/filters/sockets, 50*float64(narrowed)/filters/sockets, 100*float64(exact)/filters)
}

func TestWhatTheKernelCanDoIsNotDoneHere(t *testing.T) {
	for _, c := range []struct{ text, rest, protocols string }{
		{"sport = :22", "", "tcp udp mptcp sctp udplite"},
		{"8080", "", "tcp udp mptcp"},
		{"tcp and dst port 443", "", "tcp mptcp"},
		{"tcp dst port 80 or 443", "", "tcp mptcp"},
		{"udp port 53", "", "udp"},
		{"state established and src 10.0.0.0/8", "", "tcp udp mptcp sctp udplite raw icmp"},
		{"tcp and not port 22", "", "tcp mptcp"},
		{"tcp and not (state listen or src 10.0.0.0/8)", "", "tcp mptcp"},
		{"state listen", "", ""},
		{"dev lo", "", ""},
		{"tcp 127.0.0.1:5 > 1.2.3.4:80", "", "tcp mptcp"},
		{"cgroup /", "", ""},
		{"sport = :22 and proc sshd", "proc sshd", "tcp udp mptcp sctp udplite"},
		{"rtt > 5ms", "rtt > 5ms", "tcp mptcp"},
		{"tcp and dport != 80", "dport != 80", "tcp mptcp"},
		{"mark 5", "mark 5", "tcp udp mptcp sctp udplite raw icmp"},
		{"path /run/*", "path /run/*", "unix unixgram seqpacket"},
	} {
		plan := mustParse(t, c.text).Sockets()
		rest := strings.ReplaceAll(plan.rest.String(), "0x", "")
		got := strings.ReplaceAll(protocolsText(plan.Protocols), ",", "")
		if rest != c.rest || got != c.protocols {
			t.Errorf("%s: rest %q, protocols %q; want %q, %q", c.text, rest, got, c.rest, c.protocols)
		}
	}
}

func TestStatesAreAMaskOfTheKernel(t *testing.T) {
	bit := func(all ...fivetuple.State) (set uint32) {
		for _, s := range all {
			set |= 1 << s
		}
		return set
	}
	for _, c := range []struct {
		text string
		want uint32
	}{
		{"tcp", 0},
		{"state all", 0},
		{"state listen", bit(fivetuple.StateListen)},
		{"state syn-recv", bit(fivetuple.StateSynRecv, fivetuple.StateNewSynRecv)},
		{"exclude listen", ^bit(fivetuple.StateListen)},
		{"state listen or (tcp and state close)", bit(fivetuple.StateListen, fivetuple.StateClose, 13)},
		{"state != close", ^bit(fivetuple.StateClose, 13)},
		{"state listen or tcp", 0},
		{"state connected and state bucket", bit(fivetuple.StateSynRecv, fivetuple.StateNewSynRecv, fivetuple.StateTimeWait)},
	} {
		if got := mustParse(t, c.text).Sockets().States; got != c.want {
			t.Errorf("%s: got %#x, want %#x", c.text, got, c.want)
		}
	}
}

func TestMarkIsInTheProgramOnlyWithTheRight(t *testing.T) {
	f := mustParse(t, "mark 5")
	if plan := f.Sockets(); plan.Program != nil || plan.rest == nil {
		t.Error("without the right: a program, or nothing left")
	}
	if plan := f.Sockets(NetAdmin); plan.Program == nil || plan.rest != nil {
		t.Error("with the right: no program, or something left")
	}
}

func TestTermsThatExcludeEachOtherNeverMatch(t *testing.T) {
	for _, text := range []string{"tcp and udp", "state listen and state close", "unix and port 80", "rtt > 5ms and @name"} {
		plan := mustParse(t, text).Sockets()
		if !plan.Never || plan.Match(&fakeSocket{protocol: fivetuple.TCP}) {
			t.Errorf("%s: never %v", text, plan.Never)
		}
	}
}

func TestWhatIsTooLongForAProgramIsLeftToThePredicate(t *testing.T) {
	var many []string
	for i := range 5000 {
		many = append(many, fmt.Sprint(2*i+1))
	}
	f := mustParse(t, "tcp sport = "+strings.Join(many, ",")+" and dport = 80")
	plan := f.Sockets()
	audit(t, plan.Program)
	if plan.Program == nil || len(plan.Program) > maxProgram || !strings.HasPrefix(plan.rest.String(), "sport = 1,3,") {
		t.Errorf("program of %d bytes, rest %.40s", len(plan.Program), plan.rest)
	}
}

func TestThePlanOfNoFilterTakesAll(t *testing.T) {
	plan := (*Filter)(nil).Sockets()
	if plan.Protocols != nil || plan.States != 0 || plan.Program != nil || plan.rest != nil || plan.Never || !plan.Match(&fakeSocket{}) {
		t.Errorf("got %+v", plan)
	}
	if (&SocketPlan{}).Match(&fakeSocket{}) != true {
		t.Error("the zero plan takes nothing")
	}
}

func TestAPlanTakesNoSocketThatItDidNotAskFor(t *testing.T) {
	for _, c := range []struct {
		text     string
		protocol fivetuple.Network
		want     bool
	}{
		{"tcp", fivetuple.TCP, true}, {"tcp", fivetuple.UDP, false}, {"tcp", fivetuple.MPTCP, true}, {"not mptcp", fivetuple.MPTCP, false}, {"not mptcp", fivetuple.TCP, true},
	} {
		plan := mustParse(t, c.text).Sockets()
		if got := plan.Match(&fakeSocket{protocol: c.protocol}); got != c.want {
			t.Errorf("plan of %q, a socket of %s: got %v, want %v", c.text, c.protocol, got, c.want)
		}
	}
}

func TestTCPIsAskedForWithItsMultipathSockets(t *testing.T) {
	if got := protocolsText(mustParse(t, "not mptcp and sport = 80").Sockets().Protocols); got != "tcp, udp, mptcp, sctp, udplite" {
		t.Errorf("got %s", got)
	}
}

func TestExplainSaysWhereEachTermRuns(t *testing.T) {
	got := mustParse(t, "tcp and state established and dport = 443 and not src 10.0.0.0/8 and proc nginx").Explain()
	want := `filter: tcp and state established and dport = 443 and not src 10.0.0.0/8 and proc nginx
  tcp
    kernel, by protocols
  state established
    kernel, by states
  dport = 443
    kernel, by program
  not src 10.0.0.0/8
    kernel, by program
  proc nginx
    here
kernel, protocols: tcp, mptcp
kernel, states: established
kernel, program for TCP and UDP sockets (32 bytes):
      0  remote port is 443, else leave it out
     12  local address is in 10.0.0.0/8, else list it
     28  leave it out
     32  list it
here: proc nginx
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got := (*Filter)(nil).Explain(); got != "no filter: every socket\n" {
		t.Errorf("of no filter: got %q", got)
	}
}
