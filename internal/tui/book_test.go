package tui

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/filter"
	"github.com/fivetuple/fivetuple/owner"
	"github.com/fivetuple/fivetuple/sockdiag"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/table"
)

// kernel plays the socket table of a kernel at a time.
type kernel struct {
	sockets []sockdiag.Socket
	now     time.Time
	err     error // ends each dump
	queries []sockdiag.Query
}

func newKernel(sockets ...sockdiag.Socket) *kernel {
	return &kernel{sockets: sockets, now: time.Now()}
}

func (k *kernel) dump(_ context.Context, q sockdiag.Query) iter.Seq2[sockdiag.Socket, error] {
	k.queries = append(k.queries, q)
	return func(yield func(sockdiag.Socket, error) bool) {
		var info sockopt.TCPInfo
		for _, s := range k.sockets {
			if !slices.Contains(q.Protocols, s.Protocol) {
				continue
			}
			if s.Info != nil { // the kernel's is overwritten for each
				info = *s.Info
				s.Info = &info
			}
			if !yield(s, nil) {
				return
			}
		}
		if k.err != nil {
			yield(sockdiag.Socket{}, k.err)
		}
	}
}

func (k *kernel) book() *book {
	b := newBook()
	b.dump = k.dump
	b.now = func() time.Time { return k.now }
	b.here.ID = 1
	return b
}

func (k *kernel) after(d time.Duration) { k.now = k.now.Add(d) }

// tcp makes a connection with its counters.
func tcp(cookie uint64, remote string, in, out uint64) sockdiag.Socket {
	return sockdiag.Socket{
		Protocol: fivetuple.TCP, State: fivetuple.StateEstablished, Cookie: cookie, Inode: uint32(1000 + cookie),
		Local: netip.MustParseAddrPort("10.0.0.1:80"), Remote: netip.MustParseAddrPort(remote),
		Info: &sockopt.TCPInfo{BytesReceived: in, BytesAcked: out},
	}
}

func read(t *testing.T, b *book, r reading) {
	t.Helper()
	if err := b.read(t.Context(), r); err != nil {
		t.Fatal(err)
	}
}

// rowsOf are the rows of the book by cookie.
func rowsOf(b *book) map[uint64]table.Row {
	rows := map[uint64]table.Row{}
	for i := range b.slots {
		if b.slots[i].is(inUse) {
			var row table.Row
			b.unpack(int32(i), &row, new(sockopt.TCPInfo))
			rows[row.Cookie] = row
		}
	}
	return rows
}

func TestRatesAreDifferencesOfTheCounters(t *testing.T) {
	k := newKernel(tcp(1, "10.0.0.2:1", 1000, 50), tcp(2, "10.0.0.2:2", 0, 0))
	b := k.book()
	read(t, b, reading{})
	for cookie, row := range rowsOf(b) {
		if row.Rate.Known {
			t.Errorf("socket %d has a rate after one reading: %v", cookie, row.Rate)
		}
	}
	k.after(2 * time.Second)
	k.sockets = []sockdiag.Socket{tcp(2, "10.0.0.2:2", 0, 7), tcp(3, "10.0.0.2:3", 900, 900), tcp(1, "10.0.0.2:1", 5000, 1050)}
	read(t, b, reading{})
	rows := rowsOf(b)
	for cookie, want := range map[uint64]table.Rate{1: {Known: true, In: 2000, Out: 500}, 2: {Known: true, In: 0, Out: 4}, 3: {}} {
		if got := rows[cookie].Rate; got != want {
			t.Errorf("socket %d: got %+v, want %+v", cookie, got, want)
		}
	}
	if b.total.in != 2000 || b.total.out != 504 {
		t.Errorf("total in %d, out %d, want 2000, 504", b.total.in, b.total.out)
	}
}

// What is found again under an old name with fewer bytes is another socket.
func TestCountersThatFellGiveNoRate(t *testing.T) {
	k := newKernel(tcp(1, "10.0.0.2:1", 5000, 5000))
	b := k.book()
	read(t, b, reading{})
	k.after(time.Second)
	k.sockets = []sockdiag.Socket{tcp(1, "10.0.0.2:1", 10, 6000)}
	read(t, b, reading{})
	if got := rowsOf(b)[1].Rate; got.Known {
		t.Errorf("got %+v, want an unknown rate", got)
	}
}

func TestASocketOfTheSameTupleIsAnother(t *testing.T) {
	k := newKernel(tcp(1, "10.0.0.2:1", 100, 0))
	b := k.book()
	read(t, b, reading{})
	serial := b.slots[0].serial
	k.after(time.Second)
	k.sockets = []sockdiag.Socket{tcp(2, "10.0.0.2:1", 900, 0)}
	read(t, b, reading{})
	if b.total.sockets != 1 {
		t.Fatalf("%d sockets, want 1", b.total.sockets)
	}
	row := rowsOf(b)[2]
	if row.Rate.Known || row.Opened != k.now {
		t.Errorf("rate %+v, first seen %v; want none, %v", row.Rate, row.Opened, k.now)
	}
	for i := range b.slots {
		if b.slots[i].is(inUse) && b.slots[i].serial == serial {
			t.Error("it has the name of the old one")
		}
	}
}

func TestSocketsWithoutACookieAreToldApartByTheirEnds(t *testing.T) {
	wait := func(remote string) sockdiag.Socket {
		s := tcp(0, remote, 0, 0)
		s.State, s.Inode, s.Info = fivetuple.StateTimeWait, 0, nil
		return s
	}
	k := newKernel(wait("10.0.0.2:1"), wait("10.0.0.2:2"))
	b := k.book()
	read(t, b, reading{})
	k.after(time.Second)
	k.sockets = k.sockets[1:]
	read(t, b, reading{})
	if b.total.sockets != 1 || len(b.byID) != 1 {
		t.Errorf("%d sockets, %d names, want 1 of each", b.total.sockets, len(b.byID))
	}
	if b.total.unowned[table.TimeWait] != 1 {
		t.Errorf("without an owner: %v, want 1 in TIME_WAIT", b.total.unowned)
	}
}

func TestAgeIsKnownOfWhatCameLater(t *testing.T) {
	k := newKernel(tcp(1, "10.0.0.2:1", 0, 0))
	b := k.book()
	read(t, b, reading{})
	k.after(5 * time.Second)
	came := k.now
	k.sockets = append(k.sockets, tcp(2, "10.0.0.2:2", 0, 0))
	read(t, b, reading{})
	k.after(time.Hour)
	read(t, b, reading{})
	rows := rowsOf(b)
	if got := rows[1].Opened; !got.IsZero() {
		t.Errorf("what was there from the beginning was opened %v, want unknown", got)
	}
	if got := rows[2].Opened; !got.Equal(came) {
		t.Errorf("opened %v, want %v", got, came)
	}
}

func TestSlotsAreUsedAgain(t *testing.T) {
	k := newKernel()
	b := k.book()
	for i := range uint64(100) {
		k.sockets = []sockdiag.Socket{tcp(2*i+1, "10.0.0.2:1", 0, 0), tcp(2*i+2, "10.0.0.2:2", 0, 0)}
		k.sockets[0].Info.BytesReceived = 1 << 30
		read(t, b, reading{})
		k.after(time.Second)
		k.sockets[0].Info.BytesReceived += 1 << 20
		read(t, b, reading{})
		k.after(time.Second)
		rates := b.history.of(nil, b.byCookie[2*i+1], b.readings)
		if slices.Max(rates[:historyLength-1]) != 0 || rates[historyLength-1] == 0 {
			t.Fatalf("a socket that is new has the history %v", rates)
		}
	}
	if len(b.slots) > 4 || len(b.byCookie) != 2 || len(b.odd) != 0 {
		t.Errorf("%d slots, %d cookies for 2 sockets", len(b.slots), len(b.byCookie))
	}
}

// A cut dump may lack sockets: they stay for one reading.
func TestInterruptedReadingsCloseNothingAtOnce(t *testing.T) {
	k := newKernel(tcp(1, "10.0.0.2:1", 0, 0), tcp(2, "10.0.0.2:2", 0, 0))
	b := k.book()
	read(t, b, reading{})
	k.sockets, k.err = k.sockets[:1], sockdiag.ErrInterrupted
	for i, want := range []int{2, 1} {
		k.after(time.Second)
		read(t, b, reading{})
		if b.total.sockets != want {
			t.Errorf("after %d cut readings: %d sockets, want %d", i+1, b.total.sockets, want)
		}
	}
}

func TestAReadingThatFailsKeepsWhatIsKnown(t *testing.T) {
	k := newKernel(tcp(1, "10.0.0.2:1", 0, 0))
	b := k.book()
	read(t, b, reading{})
	k.err = errors.New("no buffer")
	if err := b.read(t.Context(), reading{}); !errors.Is(err, k.err) {
		t.Errorf("error %v, want %v", err, k.err)
	}
	if b.total.sockets != 1 {
		t.Errorf("%d sockets, want 1", b.total.sockets)
	}
}

// Every column shows of an unpacked row what it shows of the row itself.
func TestSlotsKeepAllThatColumnsShow(t *testing.T) {
	k := newKernel()
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 500 {
		s := sockdiag.Socket{Info: &sockopt.TCPInfo{}}
		scramble(r, reflect.ValueOf(&s).Elem())
		scramble(r, reflect.ValueOf(s.Info).Elem())
		s.Protocol = []fivetuple.Network{fivetuple.TCP, fivetuple.UDP, fivetuple.Raw, fivetuple.Unix}[i%4]
		s.State = fivetuple.State(1 + r.IntN(12))
		s.Timer.Kind = sockdiag.TimerKind(r.IntN(5))
		s.Cookie = uint64(i + 1)
		s.Local, s.Remote = address(r), address(r)
		s.Name, s.PeerInode, s.Congestion = "", 0, []string{"", "cubic", "bbr"}[r.IntN(3)]
		if s.Protocol == fivetuple.Unix {
			s.Local, s.Remote, s.Name, s.PeerInode = netip.AddrPort{}, netip.AddrPort{}, "@x", 7
		}
		if s.Protocol != fivetuple.TCP {
			s.Info = nil
		}
		k.sockets = append(k.sockets, s)
	}
	b := k.book()
	read(t, b, reading{})
	rows := rowsOf(b)
	for _, s := range k.sockets {
		want := table.Row{Socket: s, Namespace: &b.here}
		got, ok := rows[s.Cookie]
		if !ok {
			t.Fatalf("socket %d is missing", s.Cookie)
		}
		for _, c := range table.Columns() {
			if got, want := string(c.Text(nil, &got)), string(c.Text(nil, &want)); got != want {
				t.Fatalf("column %s of %+v: got %q, want %q", c.Name, s, got, want)
			}
		}
	}
}

// scramble fills the numbers of a struct.
func scramble(r *rand.Rand, v reflect.Value) {
	for i := range v.NumField() {
		f := v.Field(i)
		switch {
		case !f.CanSet():
		case f.Type() == reflect.TypeFor[time.Duration]():
			f.SetInt(int64(r.IntN(1e6)) * int64(time.Millisecond))
		case f.CanInt():
			f.SetInt(int64(r.IntN(100)))
		case f.CanUint():
			f.SetUint(r.Uint64() >> (64 - f.Type().Bits()))
		case f.Kind() == reflect.Bool:
			f.SetBool(r.IntN(2) == 0)
		case f.Kind() == reflect.Struct:
			scramble(r, f)
		}
	}
}

func address(r *rand.Rand) netip.AddrPort {
	port := uint16(r.IntN(65536))
	var a netip.Addr
	switch r.IntN(4) {
	case 0:
		return netip.AddrPort{}
	case 1:
		a = netip.AddrFrom4([4]byte{10, byte(r.IntN(256)), 0, 1})
	case 2:
		a = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: byte(r.IntN(256))})
	case 3:
		a = netip.AddrFrom16([16]byte{0xfe, 0x80, 15: 1}).WithZone("eth0")
	}
	return netip.AddrPortFrom(a, port)
}

func TestPagesAreTheSortedRows(t *testing.T) {
	k := newKernel()
	r := rand.New(rand.NewPCG(3, 4))
	for i := range 400 {
		s := tcp(uint64(i+1), fmt.Sprintf("10.0.%d.2:%d", r.IntN(3), 1+r.IntN(60000)), 0, 0)
		s.RecvQueue = uint32(r.IntN(20)) // many are alike
		s.Info.RTT = time.Duration(r.IntN(100)) * time.Millisecond
		k.sockets = append(k.sockets, s)
	}
	b := k.book()
	read(t, b, reading{})
	for _, name := range []string{"recvq", "-recvq", "remote", "-rtt", "rate", "state", "process"} {
		var o order
		o.column, o.reverse, _ = checkSort(name)
		var want []uint64
		all := rowsOf(b)
		for i := range b.slots {
			want = append(want, b.slots[i].cookie)
		}
		slices.SortStableFunc(want, func(x, y uint64) int { // slots are in the order in which they came
			rx, ry := all[x], all[y]
			if o.reverse {
				return -o.column.Compare(&rx, &ry)
			}
			return o.column.Compare(&rx, &ry)
		})
		for _, first := range []int{0, 5, 50, 390, 1000} {
			p := b.page(o, first, 20, 0)
			first = min(first, 380)
			var got []uint64
			for i := range p.rows {
				got = append(got, p.rows[i].Cookie)
			}
			if !slices.Equal(got, want[first:first+20]) {
				t.Errorf("sorted by %s, from %d:\ngot  %v\nwant %v", name, first, got, want[first:first+20])
			}
		}
		for _, rank := range []int{3, 200, 399} {
			serial := b.slots[b.byCookie[want[rank]]].serial
			if p := b.page(o, 0, 20, serial); p.picked == nil || p.rank != rank || p.picked.Cookie != want[rank] {
				t.Errorf("sorted by %s: the row in place %d is found in place %d", name, rank, p.rank)
			}
		}
	}
}

func TestPagesFollowWhatChanged(t *testing.T) {
	k := newKernel()
	r := rand.New(rand.NewPCG(5, 6))
	for i := range 50 {
		k.sockets = append(k.sockets, tcp(uint64(i+1), "10.0.0.2:1", 0, 0))
	}
	b := k.book()
	var o order
	o.column, _, _ = checkSort("recvq")
	for range 50 {
		for i := range k.sockets {
			k.sockets[i].RecvQueue = r.Uint32()
		}
		read(t, b, reading{})
		for _, n := range []int{2, 50} {
			rows := b.page(o, 0, n, 0).rows
			if !slices.IsSortedFunc(rows, func(a, b pageRow) int { return cmp.Compare(a.RecvQueue, b.RecvQueue) }) || len(rows) != n {
				t.Fatalf("%d rows, not in order", len(rows))
			}
			least := slices.MinFunc(k.sockets, func(a, b sockdiag.Socket) int { return cmp.Compare(a.RecvQueue, b.RecvQueue) })
			if rows[0].Cookie != least.Cookie {
				t.Fatalf("the first of %d rows is %d, want %d", n, rows[0].Cookie, least.Cookie)
			}
		}
	}
}

func TestGroupsSumUp(t *testing.T) {
	k := newKernel(tcp(1, "10.0.0.2:1", 0, 0), tcp(2, "10.0.0.2:2", 0, 0), tcp(3, "10.0.0.3:3", 0, 0))
	k.sockets[2].State = fivetuple.StateCloseWait
	b := k.book()
	read(t, b, reading{})
	shared := []owner.Holder{{Process: owner.Process{PID: 7, Command: "first"}}, {Process: owner.Process{PID: 8, Command: "second"}}}
	b.owners.of = func(inode uint32, _ uint64) []owner.Holder {
		if inode == 1003 {
			return nil
		}
		return shared
	}
	b.owners.at, b.owners.upTo = k.now, b.serial
	k.after(time.Second)
	k.sockets[0], k.sockets[1] = tcp(1, "10.0.0.2:1", 100, 5), tcp(2, "10.0.0.2:2", 200, 0)
	read(t, b, reading{})
	type sum struct {
		name, filter         string
		sockets, in, out, cw int
	}
	for _, tt := range []struct {
		by   grouping
		want []sum
	}{
		{byProcess, []sum{{"first/7", "pid:7", 2, 300, 5, 0}, {"(not in /proc, or the kernel's)", "", 1, 0, 0, 1}}},
		{byPeer, []sum{{"10.0.0.2", "dst host 10.0.0.2", 2, 300, 5, 0}, {"10.0.0.3", "dst host 10.0.0.3", 1, 0, 0, 1}}},
		{byPort, []sum{{"tcp to 2", "tcp and dst port 2", 1, 200, 0, 0}, {"tcp to 1", "tcp and dst port 1", 1, 100, 5, 0}, {"tcp to 3", "tcp and dst port 3", 1, 0, 0, 1}}},
	} {
		var got []sum
		for _, g := range b.groups(tt.by, len(groupColumns)-1, true) {
			got = append(got, sum{g.name, g.filter, g.sockets, int(g.in), int(g.out), g.closeWait})
			if _, err := filter.Parse(t.Context(), g.filter); err != nil {
				t.Errorf("the filter of %s: %v", g.name, err)
			}
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("by %s:\ngot  %v\nwant %v", tt.by, got, tt.want)
		}
	}
}

func TestTheFilterSeesRatesAgesAndOwners(t *testing.T) {
	k := newKernel(tcp(1, "10.0.0.2:1", 0, 0), tcp(2, "10.0.0.2:2", 0, 0))
	b := k.book()
	b.owners.of = held(map[uint32]int{1002: 77})
	for _, tt := range []struct {
		filter string
		want   []uint64
	}{
		{"rate > 1KiB/s", []uint64{1}},
		{"rate < 1KiB/s", []uint64{2, 3}},
		{"age < 1m", []uint64{3}},
		{"pid:77", []uint64{2}},
		{"not pid:77", []uint64{1, 3}},
		{"port 2 or rate > 1KiB/s", []uint64{1, 2}},
		{"unix", nil},
	} {
		f, err := filter.Parse(t.Context(), tt.filter)
		if err != nil {
			t.Errorf("%s: %v", tt.filter, err)
			continue
		}
		for _, narrow := range []bool{false, true} {
			k := newKernel(k.sockets...)
			b := k.book()
			b.owners.of = held(map[uint32]int{1002: 77})
			r := reading{filter: f, narrow: narrow, owners: true, inet: true}
			read(t, b, reading{})
			k.after(time.Second)
			k.sockets = []sockdiag.Socket{tcp(1, "10.0.0.2:1", 5000, 0), tcp(2, "10.0.0.2:2", 1, 0), tcp(3, "10.0.0.2:3", 0, 0)}
			read(t, b, reading{})
			k.after(time.Second)
			k.sockets[0], k.sockets[1] = tcp(1, "10.0.0.2:1", 10000, 0), tcp(2, "10.0.0.2:2", 2, 0)
			read(t, b, r)
			var got []uint64
			for i := range b.slots {
				if b.slots[i].is(matched) {
					got = append(got, b.slots[i].cookie)
				}
			}
			if slices.Sort(got); !slices.Equal(got, tt.want) || b.total.sockets != len(tt.want) {
				t.Errorf("%s (narrow %t): got %v, want %v", tt.filter, narrow, got, tt.want)
			}
		}
	}
}

// held is what a search would find: a process for each inode.
func held(pids map[uint32]int) holdersOf {
	all := map[uint32][]owner.Holder{}
	for inode, pid := range pids {
		all[inode] = []owner.Holder{{Process: owner.Process{PID: pid, Command: "prog"}, FD: 3}}
	}
	return func(inode uint32, _ uint64) []owner.Holder { return all[inode] }
}

func TestReadingsAskForTheKindsThatAreThere(t *testing.T) {
	k := newKernel(tcp(1, "10.0.0.2:1", 0, 0))
	b := k.book()
	real := b.dump
	b.dump = func(ctx context.Context, q sockdiag.Query) iter.Seq2[sockdiag.Socket, error] {
		if slices.Contains(q.Protocols, fivetuple.SCTP) {
			return func(yield func(sockdiag.Socket, error) bool) {
				yield(sockdiag.Socket{}, fmt.Errorf("no sctp: %w", errors.ErrUnsupported))
			}
		}
		return real(ctx, q)
	}
	for _, tt := range []struct {
		r    reading
		want string
	}{
		{reading{inet: true}, "tcp mptcp udp udplite raw icmp"},
		{reading{}, "tcp mptcp udp udplite raw icmp unix unixgram seqpacket packet netlink vsock"},
		{reading{kinds: []fivetuple.Network{fivetuple.UDP, fivetuple.SCTP}}, "udp"},
	} {
		read(t, b, tt.r)
		var got []string
		for _, n := range k.queries[len(k.queries)-1].Protocols {
			got = append(got, n.String())
		}
		if got := strings.Join(got, " "); got != tt.want {
			t.Errorf("%+v asks for %s, want %s", tt.r, got, tt.want)
		}
	}
}

func TestHistoryKeepsRatesRoughly(t *testing.T) {
	for _, n := range []uint64{0, 1, 2, 3, 4, 5, 7, 100, 1023, 1 << 20, 1e9, 1 << 40, 1<<63 + 12345} {
		got := unsqueeze(squeeze(n))
		if d := float64(n) - float64(got); got > n || d > float64(n)/4 {
			t.Errorf("%d is kept as %d", n, got)
		}
	}
	k := newKernel(tcp(1, "10.0.0.2:1", 0, 0))
	b := k.book()
	for i := range uint64(70) {
		k.sockets = []sockdiag.Socket{tcp(1, "10.0.0.2:1", i*i*i*100, 0)}
		read(t, b, reading{})
		k.after(time.Second)
	}
	got := b.history.of(nil, 0, b.readings)
	if len(got) != historyLength || !slices.IsSorted(got) || got[0] == 0 {
		t.Errorf("rates that grew are kept as %v", got)
	}
}

func TestSparksReachFromTheLeastToTheMost(t *testing.T) {
	if got, want := spark([]uint64{0, 1, 500, 1000}, false), "_▁▅█"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := spark([]uint64{0, 1, 500, 1000}, true), "_.+#"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestOwnersAreSearchedForRarely(t *testing.T) {
	k := newKernel(tcp(1, "10.0.0.2:1", 0, 0))
	b := k.book()
	read(t, b, reading{})
	due := func(what string, want bool) search {
		t.Helper()
		s, got := b.due(k.now)
		if got != want {
			t.Errorf("%s: a search is due: %t, want %t", what, got, want)
		}
		return s
	}
	s := due("at first", true)
	if b.total.unasked != 1 {
		t.Errorf("%d sockets to be looked for, want 1", b.total.unasked)
	}
	b.learn(answer{of: held(map[uint32]int{1001: 5}), upTo: s.upTo, cost: 300 * time.Millisecond}, k.now)
	if b.total.unasked != 0 || b.total.unowned[table.Hidden] != 0 {
		t.Errorf("after the search: %+v", b.total)
	}
	k.after(time.Second)
	read(t, b, reading{})
	due("nothing new", false)
	k.sockets = append(k.sockets, tcp(2, "10.0.0.2:2", 0, 0))
	read(t, b, reading{})
	due("something new, too soon for what the last one cost", false)
	if b.total.unasked != 1 {
		t.Errorf("%d sockets to be looked for, want 1", b.total.unasked)
	}
	k.after(2 * time.Second)
	due("something new", true)
	b.learn(answer{of: held(map[uint32]int{1001: 5}), upTo: b.serial}, k.now)
	if b.total.unowned[table.Hidden] != 1 {
		t.Errorf("one that was not found: %+v", b.total)
	}
	k.after(ownersStale)
	due("an old answer", true)
	// A connection that is accepted gets its inode then.
	k.sockets[0].Inode = 5555
	b.learn(answer{of: held(nil), upTo: b.serial}, k.now)
	read(t, b, reading{})
	if b.total.unasked != 1 {
		t.Errorf("%d sockets to be looked for, want the one that was accepted", b.total.unasked)
	}
	k.after(time.Second)
	due("an inode that is new", true)
}

func BenchmarkReading100000(b *testing.B) {
	k := newKernel()
	for i := range 100_000 {
		k.sockets = append(k.sockets, tcp(uint64(i+1), fmt.Sprintf("10.%d.%d.2:%d", i%200, i/200%200, 1+i%60000), 0, 0))
	}
	book := k.book()
	o, _, _ := checkSort("")
	if err := book.read(b.Context(), reading{}); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		k.after(time.Second)
		k.queries = nil
		if err := book.read(b.Context(), reading{}); err != nil {
			b.Fatal(err)
		}
		book.page(order{o, true}, 0, 80, 0)
	}
}
