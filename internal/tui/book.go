package tui

import (
	"context"
	"errors"
	"iter"
	"slices"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/filter"
	"github.com/fivetuple/fivetuple/netns"
	"github.com/fivetuple/fivetuple/sockdiag"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/table"
)

// book is what is known of the sockets: it is read again and again from the
// kernel's table, and finds each socket again by its cookie. One goroutine at a
// time uses it.
type book struct {
	dump func(context.Context, sockdiag.Query) iter.Seq2[sockdiag.Socket, error]
	now  func() time.Time
	here netns.Namespace

	begun    time.Time
	readings uint32
	serial   uint64 // of the latest socket that came
	slots    []slot
	free     []int32
	byCookie map[uint64]int32
	byID     map[table.ID]int32 // those without a cookie
	odd      map[int32]sockdiag.Socket

	listable    []fivetuple.Network // what this kernel can list; nil before the first reading
	congestions []string            // [0] is ""
	history     history
	owners      owners

	total summary // of the sockets that match
	row   table.Row
	info  sockopt.TCPInfo
	sorter
}

// summary counts the sockets that match the filter.
type summary struct {
	sockets int
	states  [16]int
	in, out uint64 // bytes per second
	unasked int    // their owners have not been looked for yet
	unowned [table.Elsewhere + 1]int
}

func newBook() *book {
	b := &book{
		dump:        sockdiag.Dump,
		now:         time.Now,
		byCookie:    map[uint64]int32{},
		byID:        map[table.ID]int32{},
		odd:         map[int32]sockdiag.Socket{},
		congestions: []string{""},
	}
	b.here, _ = netns.Current() // unknown: rows have no namespace to show
	return b
}

func (b *book) close() { b.owners.close() }

// reading says what to read.
type reading struct {
	filter  *filter.Filter
	kinds   []fivetuple.Network // none for all
	inet    bool                // leave out what is not IP, unless the filter asks for it
	details sockdiag.Details
	narrow  bool // let the kernel leave out what the filter does not match
	owners  bool // the filter needs them
}

// query plans what to ask of the kernel, which can list these kinds of sockets.
func (r *reading) query(listable []fivetuple.Network) sockdiag.Query {
	q := sockdiag.Query{Details: r.details | sockdiag.WithInfo}
	match := r.filter.Sockets()
	for f, d := range map[filter.Field]sockdiag.Details{
		filter.FieldDrops:  sockdiag.WithMemory,
		filter.FieldMark:   sockdiag.WithMark,
		filter.FieldCgroup: sockdiag.WithCgroup, filter.FieldUnit: sockdiag.WithCgroup, filter.FieldContainer: sockdiag.WithCgroup,
	} {
		if r.filter.Uses(f) {
			q.Details |= d
		}
	}
	for _, n := range listable {
		chosen := len(r.kinds) == 0 || slices.Contains(r.kinds, n)
		if match.Protocols != nil {
			chosen = chosen && slices.Contains(match.Protocols, n)
		} else if r.inet {
			chosen = chosen && n.IsInet()
		}
		if chosen && !match.Never {
			q.Protocols = append(q.Protocols, n)
		}
	}
	if r.narrow {
		q.States, q.Program = sockdiag.States(match.States), match.Program
	}
	return q
}

// kinds are the kinds of sockets there are.
var kinds = []fivetuple.Network{
	fivetuple.TCP, fivetuple.MPTCP, fivetuple.UDP, fivetuple.UDPLite, fivetuple.SCTP, fivetuple.Raw, fivetuple.ICMP,
	fivetuple.Unix, fivetuple.Unixgram, fivetuple.Seqpacket, fivetuple.Packet, fivetuple.Netlink, fivetuple.Vsock,
}

// list finds out which kinds of sockets the kernel can list: to ask for others
// would be an error. Without TCP there is nothing to see.
func (b *book) list(ctx context.Context) error {
	for _, n := range kinds {
		var err error
		for _, err = range b.dump(ctx, sockdiag.Query{Protocols: []fivetuple.Network{n}, States: sockdiag.StatesOf(fivetuple.StateListen)}) {
			break
		}
		if err == nil || errors.Is(err, sockdiag.ErrInterrupted) {
			b.listable = append(b.listable, n)
		} else if n == fivetuple.TCP || !errors.Is(err, errors.ErrUnsupported) {
			b.listable = nil
			return err
		}
	}
	return nil
}

// readTries is how often an interrupted dump is made at once. If all are cut, a
// socket that was not among them stays for another reading.
const readTries = 3

// read brings the book up to date.
func (b *book) read(ctx context.Context, r reading) error {
	if b.begun.IsZero() {
		b.begun = b.now()
	}
	if b.listable == nil {
		if err := b.list(ctx); err != nil {
			return err
		}
	}
	b.readings++
	q := r.query(b.listable)
	var err error
	for range readTries {
		if len(q.Protocols) == 0 {
			break // no protocols would mean all
		}
		if err = b.readOnce(ctx, r, q); !errors.Is(err, sockdiag.ErrInterrupted) {
			break
		}
	}
	if err != nil && !errors.Is(err, sockdiag.ErrInterrupted) {
		return err
	}
	stays := b.readings
	if err != nil {
		stays--
	}
	b.sweep(stays)
	b.count()
	return nil
}

func (b *book) readOnce(ctx context.Context, r reading, q sockdiag.Query) error {
	at := b.elapsed()
	n := 0
	for s, err := range b.dump(ctx, q) {
		if err != nil {
			return err
		}
		if n++; n%256 == 0 { // a long dump takes a good part of a second
			at = b.elapsed()
		}
		i := b.enter(&s, at)
		p := &b.slots[i]
		b.row.Socket = s
		b.watched(p, &b.row)
		if b.row.Owners = nil; r.owners {
			b.own(p, &b.row, r.filter)
		}
		p.set(matched, r.filter.Match(&b.row))
	}
	return nil
}

func (b *book) elapsed() int64 { return max(1, int64(b.now().Sub(b.begun))) }

// enter finds the socket's slot, or makes one, and brings it up to date.
func (b *book) enter(s *sockdiag.Socket, at int64) int32 {
	i, known := b.find(s)
	if !known {
		i = b.add(s, at)
	}
	p := &b.slots[i]
	in, out, had, last := p.in, p.out, known && p.is(hasInfo), p.at
	if s.Inode != p.inode {
		p.asked = b.serial
		if known { // it was accepted: nobody was asked for this inode
			b.serial++
			p.asked = b.serial
		}
	}
	again := p.seen == b.readings // after an interruption
	p.pack(s)
	p.congestion = b.algorithm(s.Congestion)
	if p.is(odd) {
		b.odd[i] = b.kept(s)
	}
	p.seen = b.readings
	if again {
		return i
	}
	p.at = at
	b.rate(p, had, in, out, last)
	b.history.put(i, b.readings, p.rateIn+p.rateOut)
	return i
}

// kept is a socket to be kept: Info is the dump's.
func (b *book) kept(s *sockdiag.Socket) sockdiag.Socket {
	k := *s
	k.Info = nil
	return k
}

// rate compares the bytes with those of the last reading. Fewer than then would
// be another socket.
func (b *book) rate(p *slot, had bool, in, out uint64, last int64) {
	known := had && p.is(hasInfo) && p.state != fivetuple.StateListen && p.in >= in && p.out >= out && p.at > last
	p.set(rateKnown, known)
	p.rateIn, p.rateOut = 0, 0
	if known {
		seconds := float64(p.at-last) / 1e9
		p.rateIn, p.rateOut = uint64(float64(p.in-in)/seconds+0.5), uint64(float64(p.out-out)/seconds+0.5)
	}
}

func (b *book) find(s *sockdiag.Socket) (int32, bool) {
	if s.Cookie != 0 {
		i, ok := b.byCookie[s.Cookie]
		return i, ok
	}
	i, ok := b.byID[b.id(s)]
	return i, ok
}

func (b *book) id(s *sockdiag.Socket) table.ID {
	b.row.Socket = *s
	b.row.Namespace = &b.here
	return b.row.ID()
}

func (b *book) add(s *sockdiag.Socket, at int64) int32 {
	i := int32(len(b.slots))
	if n := len(b.free); n > 0 {
		i, b.free = b.free[n-1], b.free[:n-1]
	} else {
		b.slots = append(b.slots, slot{})
		b.history.grow(len(b.slots))
	}
	b.serial++
	b.slots[i] = slot{serial: b.serial, asked: b.serial, flags: inUse, inode: s.Inode}
	if b.readings > 1 {
		b.slots[i].opened = at
	}
	b.history.clear(i)
	if s.Cookie != 0 {
		b.byCookie[s.Cookie] = i
	} else {
		b.byID[b.id(s)] = i
	}
	return i
}

// sweep gives back the slots of sockets that were last seen before a reading.
func (b *book) sweep(reading uint32) {
	for i := range b.slots {
		p := &b.slots[i]
		if !p.is(inUse) || p.seen >= reading {
			continue
		}
		if p.cookie != 0 {
			delete(b.byCookie, p.cookie)
		} else {
			b.unpack(int32(i), &b.row, &b.info)
			delete(b.byID, b.row.ID())
		}
		delete(b.odd, int32(i))
		p.flags = 0
		b.free = append(b.free, int32(i))
	}
}

func (b *book) algorithm(name string) uint16 {
	if name == b.congestions[0] {
		return 0
	}
	i := slices.Index(b.congestions, name)
	if i < 0 {
		i = len(b.congestions)
		b.congestions = append(b.congestions, name)
	}
	return uint16(i)
}

// count sums up the sockets that match.
func (b *book) count() {
	b.total = summary{}
	t := &b.total
	for i := range b.slots {
		p := &b.slots[i]
		if !p.is(matched) {
			continue
		}
		t.sockets++
		t.states[p.state&15]++
		t.in += p.rateIn
		t.out += p.rateOut
		if u, known := b.owners.unowned(b, p); known {
			t.unowned[u]++
		} else {
			t.unasked++
		}
	}
}
