package fivetuple

import (
	"encoding/json"
	"net"
	"net/netip"
	"testing"
)

func tuple(local, remote string) Tuple {
	return Tuple{Protocol: TCP, Local: ParseAddress(local), Remote: ParseAddress(remote)}
}

func TestTupleIsAMapKeyAndComparesWithoutAllocating(t *testing.T) {
	a, b := tuple("127.0.0.1:80", "[::1%lo]:4000"), tuple("127.0.0.1:80", "[::1%lo]:4000")
	if m := map[Tuple]int{a: 1}; m[b] != 1 || m[b.Reverse()] != 0 {
		t.Error("equal tuples are not the same key")
	}
	equal := 0
	if n := testing.AllocsPerRun(100, func() {
		if a == b {
			equal++
		}
	}); n != 0 || equal == 0 {
		t.Errorf("comparing allocated %v times, equal %d times", n, equal)
	}
}

func TestTuplePrints(t *testing.T) {
	for _, tt := range []struct {
		in   Tuple
		text string
		json string
	}{
		{tuple("127.0.0.1:80", "127.0.0.1:4000"), "tcp 127.0.0.1:80 > 127.0.0.1:4000", `{"protocol":"tcp","local":"127.0.0.1:80","remote":"127.0.0.1:4000"}`},
		{tuple("[::]:80", ""), "tcp [::]:80", `{"protocol":"tcp","local":"[::]:80"}`},
		{Tuple{Protocol: Unix, Local: Address{Name: "@a"}}, "unix @a", `{"protocol":"unix","local":"@a"}`},
		{Tuple{Protocol: Unix}, "unix unnamed", `{"protocol":"unix","local":""}`},
	} {
		if got := tt.in.String(); got != tt.text {
			t.Errorf("got %q, want %q", got, tt.text)
		}
		b, err := json.Marshal(tt.in)
		if err != nil || string(b) != tt.json {
			t.Errorf("got %s, %v, want %s", b, err, tt.json)
		}
		var back Tuple
		if err := json.Unmarshal(b, &back); err != nil || back != tt.in {
			t.Errorf("%s came back as %+v, %v", b, back, err)
		}
	}
}

func TestTupleOfARealConnectionIsTheReverseOfItsPeers(t *testing.T) {
	ln, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if got, want := TupleOf(TLS, client), TupleOf(TCP6, server).Reverse(); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestAddressOfUnmapsIPv4(t *testing.T) {
	a := &net.TCPAddr{IP: net.ParseIP("127.0.0.1").To16(), Port: 80}
	if got, want := AddressOf(a), (Address{AddrPort: netip.MustParseAddrPort("127.0.0.1:80")}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := AddressOf((*net.UnixAddr)(nil)); !got.IsZero() {
		t.Errorf("a nil Unix address is %+v", got)
	}
	if got := AddressOf(nil); !got.IsZero() {
		t.Errorf("a nil address is %+v", got)
	}
}
