package upstream

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// nameServer answers for a few names. It is reached in memory, where time is a test's
// own, or on the loopback.
type nameServer struct {
	mu       sync.Mutex
	records  map[string][]record // by name with the dot at its end
	rcode    map[dnsmessage.Type]dnsmessage.RCode
	silent   map[dnsmessage.Type]bool // does not answer
	truncate bool                     // over UDP: without the records, but one with a TTL of 1 s
	forge    [][]byte                 // is sent before each answer, with the id and the question of the query
	wrongID  bool                     // in what is forged
	queries  map[dnsmessage.Type]int
}

// record is an A, an AAAA or, if alias is set, a CNAME.
type record struct {
	ttl   uint32
	addr  string
	alias string
}

func newNameServer(name string, records ...record) *nameServer {
	return &nameServer{records: map[string][]record{name + ".": records}, queries: map[dnsmessage.Type]int{}}
}

// a is addresses with one time to live.
func a(ttl uint32, addrs ...string) (list []record) {
	for _, addr := range addrs {
		list = append(list, record{ttl: ttl, addr: addr})
	}
	return list
}

func (n *nameServer) set(name string, records ...record) {
	n.do(func() { n.records[name+"."] = records })
}

func (n *nameServer) do(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
}

// fail has every query answered with an error.
func (n *nameServer) fail(code dnsmessage.RCode) {
	n.do(func() {
		n.rcode = map[dnsmessage.Type]dnsmessage.RCode{dnsmessage.TypeA: code, dnsmessage.TypeAAAA: code}
	})
}

func (n *nameServer) hush(types ...dnsmessage.Type) {
	n.do(func() {
		n.silent = map[dnsmessage.Type]bool{}
		for _, t := range types {
			n.silent[t] = true
		}
	})
}

// asked is how often each type was asked for.
func (n *nameServer) asked(t dnsmessage.Type) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.queries[t]
}

// answers are the messages that answer a query.
func (n *nameServer) answers(query []byte, udp bool) (messages [][]byte) {
	var p dnsmessage.Parser
	h, err := p.Start(query)
	if err != nil {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	records, known := n.records[strings.ToLower(q.Name.String())]
	if known { // and is not made of a search domain of this machine
		n.queries[q.Type]++
	}
	if n.silent[q.Type] {
		return nil
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: h.ID, Response: true, RecursionAvailable: true, RCode: n.rcode[q.Type]},
		Questions: []dnsmessage.Question{q},
	}
	for range n.forge {
		forged := m
		forged.Answers = []dnsmessage.Resource{resource(q.Name, record{ttl: 1, addr: "192.0.2.66"})}
		if n.wrongID {
			forged.ID++
		} else {
			forged.Questions = []dnsmessage.Question{{Name: dnsmessage.MustNewName("other.test."), Type: q.Type, Class: q.Class}}
		}
		messages = append(messages, pack(forged))
	}
	if !known {
		m.RCode = dnsmessage.RCodeNameError
	}
	if m.RCode == dnsmessage.RCodeSuccess {
		name := q.Name
		for _, r := range records {
			one := resource(name, r)
			switch one.Header.Type {
			case dnsmessage.TypeCNAME:
				name = one.Body.(*dnsmessage.CNAMEResource).CNAME
			case q.Type:
			default:
				continue
			}
			m.Answers = append(m.Answers, one)
		}
	}
	if n.truncate && udp {
		m.Truncated = true
		m.Answers = m.Answers[:min(1, len(m.Answers))]
		for i := range m.Answers {
			m.Answers[i].Header.TTL = 1
		}
	}
	return append(messages, pack(m))
}

func resource(name dnsmessage.Name, r record) dnsmessage.Resource {
	h := dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: r.ttl}
	if r.alias != "" {
		h.Type = dnsmessage.TypeCNAME
		return dnsmessage.Resource{Header: h, Body: &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(r.alias + ".")}}
	}
	addr := netip.MustParseAddr(r.addr)
	if addr.Is4() {
		h.Type = dnsmessage.TypeA
		return dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: addr.As4()}}
	}
	h.Type = dnsmessage.TypeAAAA
	return dnsmessage.Resource{Header: h, Body: &dnsmessage.AAAAResource{AAAA: addr.As16()}}
}

func pack(m dnsmessage.Message) []byte {
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

// pipe is the Config.DNS of a server in memory.
func (n *nameServer) pipe(_ context.Context, network, _ string) (net.Conn, error) {
	near, far := net.Pipe()
	udp := strings.HasPrefix(network, "udp")
	go func() {
		defer far.Close()
		n.serve(far, udp)
	}()
	if udp {
		return packetPipe{near, nil}, nil
	}
	return near, nil
}

// packetPipe carries a datagram with each write, as a connected UDP socket does.
type packetPipe struct {
	net.Conn
	packets
}

type packets interface {
	ReadFrom([]byte) (int, net.Addr, error)
	WriteTo([]byte, net.Addr) (int, error)
}

// serve answers what comes on a connection.
func (n *nameServer) serve(conn net.Conn, udp bool) {
	b := make([]byte, 4096)
	for {
		query := b
		if udp {
			size, err := conn.Read(b)
			if err != nil {
				return
			}
			query = b[:size]
		} else {
			if _, err := io.ReadFull(conn, b[:2]); err != nil {
				return
			}
			query = b[2:][:binary.BigEndian.Uint16(b)]
			if _, err := io.ReadFull(conn, query); err != nil {
				return
			}
		}
		for _, m := range n.answers(query, udp) {
			if !udp {
				m = append(binary.BigEndian.AppendUint16(nil, uint16(len(m))), m...)
			}
			if _, err := conn.Write(m); err != nil {
				return
			}
		}
	}
}

// listen serves on the loopback, UDP and TCP, and returns a Config.DNS that leads there.
func (n *nameServer) listen(t *testing.T) dialFunc { return n.listenOn(t, "127.0.0.1:0") }

func (n *nameServer) listenOn(t *testing.T, address string) dialFunc {
	t.Helper()
	ln, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenPacket("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	var workers sync.WaitGroup
	workers.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			workers.Go(func() {
				defer conn.Close()
				n.serve(conn, false)
			})
		}
	})
	workers.Go(func() {
		b := make([]byte, 4096)
		for {
			size, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			for _, m := range n.answers(b[:size], true) {
				pc.WriteTo(m, from)
			}
		}
	})
	t.Cleanup(func() { ln.Close(); pc.Close(); workers.Wait() })
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		to := pc.LocalAddr()
		if strings.HasPrefix(network, "tcp") {
			to = ln.Addr()
		}
		return new(net.Dialer).DialContext(ctx, network, to.String())
	}
}
