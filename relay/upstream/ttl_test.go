package upstream

import (
	"encoding/binary"
	"net"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// question is a query for A records.
func question(id uint16, name string) dnsmessage.Message {
	return dnsmessage.Message{
		Header:    dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
	}
}

// reply answers a question.
func reply(q dnsmessage.Message, records ...record) dnsmessage.Message {
	q.Response = true
	q.Questions = slices.Clone(q.Questions)
	for _, r := range records {
		q.Answers = append(q.Answers, resource(q.Questions[0].Name, r))
	}
	return q
}

func TestSmallestTTL(t *testing.T) {
	q := question(7, "db.test.")
	whole := reply(q, a(90, "10.0.0.1", "10.0.0.2")...)
	change := func(f func(*dnsmessage.Message)) []byte {
		m := reply(q, a(90, "10.0.0.1")...)
		f(&m)
		return pack(m)
	}
	extra := resource(q.Questions[0].Name, record{ttl: 5, addr: "10.0.0.3"})
	text := dnsmessage.Resource{
		Header: dnsmessage.ResourceHeader{Name: q.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 5},
		Body:   &dnsmessage.TXTResource{TXT: []string{"x"}},
	}
	for _, tt := range []struct {
		name   string
		answer []byte
		stream bool
		ttl    uint32
		ok     bool
	}{
		{"an answer", pack(whole), false, 90, true},
		{"a stream's", pack(whole), true, 90, true},
		{"without a record", pack(reply(q)), false, 0, false},
		{"cut in a record", pack(whole)[:len(pack(whole))-3], false, 90, true},
		{"cut in the header", pack(whole)[:11], false, 0, false},
		{"empty", nil, false, 0, false},
		{"a query", change(func(m *dnsmessage.Message) { m.Response = false }), false, 0, false},
		{"of another id", change(func(m *dnsmessage.Message) { m.ID = 8 }), false, 0, false},
		{"to another type", change(func(m *dnsmessage.Message) { m.Questions[0].Type = dnsmessage.TypeAAAA }), false, 0, false},
		{"to another name", change(func(m *dnsmessage.Message) { m.Questions[0].Name = dnsmessage.MustNewName("web.test.") }), false, 0, false},
		{"in other letters", change(func(m *dnsmessage.Message) { m.Questions[0].Name = dnsmessage.MustNewName("Db.TEST.") }), false, 90, true},
		{"without a question", change(func(m *dnsmessage.Message) { m.Questions = nil }), false, 0, false},
		{"truncated", change(func(m *dnsmessage.Message) { m.Truncated = true }), false, 0, false},
		{"truncated, of a stream", change(func(m *dnsmessage.Message) { m.Truncated = true }), true, 90, true},
		{"other sections do not answer", change(func(m *dnsmessage.Message) {
			m.Authorities, m.Additionals = append(m.Authorities, extra), append(m.Additionals, extra)
		}), false, 90, true},
		{"other records do not count", change(func(m *dnsmessage.Message) { m.Answers = append(m.Answers, text) }), false, 90, true},
	} {
		ttl, ok := smallestTTL(pack(q), tt.answer, tt.stream)
		if ttl != tt.ttl || ok != tt.ok {
			t.Errorf("%s: got %d, %v, want %d, %v", tt.name, ttl, ok, tt.ttl, tt.ok)
		}
	}
	if _, ok := smallestTTL(nil, pack(whole), false); ok {
		t.Error("an answer to nothing counts")
	}
}

func framed(message []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(message))), message...)
}

// pieces is a connection from which bytes come one by one.
type pieces struct {
	net.Conn
	all []byte
}

func (p *pieces) Read(b []byte) (int, error) {
	n := copy(b[:min(1, len(b))], p.all)
	p.all = p.all[n:]
	return n, nil
}

func (p *pieces) Write(b []byte) (int, error) { return len(b), nil }

func TestAnswerOfAStreamIsPutTogether(t *testing.T) {
	q := question(7, "db.test.")
	later := framed(pack(reply(q, a(1, "10.0.0.9")...))) // which the resolver does not read
	all := append(framed(pack(reply(q, a(90, "10.0.0.1")...))), later...)
	var l listener
	c := &heardConn{Conn: &pieces{all: all}, listener: &l, stream: true}
	if _, err := c.Write(framed(pack(q))); err != nil {
		t.Fatal(err)
	}
	readAll(c)
	if ttl, ok := l.smallest(); ttl != 90*time.Second || !ok {
		t.Errorf("got %v, %v, want 90 s", ttl, ok)
	}
}

func readAll(c *heardConn) {
	b := make([]byte, 1)
	for n := 1; n > 0; {
		n, _ = c.Read(b)
	}
}

// What is not of the name server the resolver asked may come as well; and a name
// server may send anything.
func FuzzSmallestTTL(f *testing.F) {
	q := question(7, "db.test.")
	for _, m := range []dnsmessage.Message{
		reply(q),
		reply(q, a(90, "10.0.0.1", "10.0.0.2")...),
		reply(q, append([]record{{ttl: 3, alias: "real.test"}}, a(90, "2001:db8::1")...)...),
		reply(q, a(1<<31, "10.0.0.1")...),
	} {
		f.Add(pack(q), pack(m), true)
		f.Add(framed(pack(q)), framed(pack(m)), false)
	}
	f.Add(pack(q), []byte("\x00\x07\x80\x00\x00\x01\xff\xff\x00\x00\x00\x00\x02db\x04test\x00\x00\x01\x00\x01\xc0\x0c\xc0\x0c"), true)
	f.Fuzz(func(t *testing.T, query, message []byte, stream bool) {
		ttl, ok := smallestTTL(query, message, stream)
		if !ok && ttl != 0 || ttl > 1<<31-1 {
			t.Fatalf("got %d, %v", ttl, ok)
		}
		var m dnsmessage.Message
		if ok && m.Unpack(message) == nil {
			found := false
			for _, r := range m.Answers {
				found = found || r.Header.TTL == ttl || ttl == 0 && r.Header.TTL > 1<<31-1
			}
			if !found {
				t.Fatalf("no record has the time to live %d", ttl)
			}
		}
		// The same bytes as a connection brings them.
		var l listener
		c := &heardConn{Conn: &pieces{all: message}, listener: &l, stream: stream, query: query}
		readAll(c)
		if len(c.answer) > 2+1<<16 {
			t.Fatalf("%d bytes are kept", len(c.answer))
		}
	})
}
