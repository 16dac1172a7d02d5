package port

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// Whatever is in the file: no panic, every name of it finds its port and nothing that contradicts the port's own entry, and a good line
// counts whatever stands before it.
func FuzzParse(f *testing.F) {
	f.Add("http 80/tcp www # WorldWideWeb HTTP\nhttps\t443/udp\n")
	f.Add("a 1/tcp a A\nb 1/tcp a\r\na 2/TCP #\n#\n")
	f.Add("x 65536/tcp\nx 0/udp\nx 5/\nx /tcp\n 7/sctp\ny 7/dccp/tcp")
	f.Add("frontend 443/tcp\nhttps 444/tcp\nK 9/udp k \xff\x00")
	f.Fuzz(func(t *testing.T, text string) {
		n := parse(text)
		for key, s := range n.ports {
			if s.Port != key.port || s.Protocol != key.protocol || key.port == 0 || !isProtocol(key.protocol) || s.Name == "" {
				t.Errorf("%+v is entered as %+v", s, key)
			}
			if got := n.LookupName(s.Name, s.Protocol); !contains(got, s) {
				t.Errorf("LookupName(%q, %q) = %+v, want %+v in it", s.Name, s.Protocol, got, s)
			}
		}
		for key, ports := range n.names {
			for _, s := range n.LookupName(key.name, key.protocol) {
				if got, ok := n.Lookup(s.Port, s.Protocol); !ok || !reflect.DeepEqual(got, s) {
					t.Errorf("name %q finds %+v, its port %+v, %v", key.name, s, got, ok)
				}
			}
			if len(n.LookupName(key.name, key.protocol)) != len(ports) {
				t.Errorf("name %q finds other ports than %v", key.name, ports)
			}
		}
		n = parse(text + "\nfuzz-probe 61616/dccp\n")
		if got := n.LookupName("FUZZ-probe", "dccp"); len(got) == 0 {
			t.Error("the line after the text was not read")
		}
	})
}

func contains(services []Service, s Service) bool {
	for _, other := range services {
		if reflect.DeepEqual(other, s) {
			return true
		}
	}
	return false
}

func BenchmarkName(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		Name(443, "tcp")
	}
}

func BenchmarkLookup(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		Lookup(443, "tcp")
	}
}

func BenchmarkLookupName(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		LookupName("https", "")
	}
}

func BenchmarkNamesLookupName(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		(*Names)(nil).LookupName("https", "")
	}
}

func BenchmarkWellKnown(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		WellKnown("tcp")
	}
}

// A services file of about 350 lines, as Debian's.
func BenchmarkParse(b *testing.B) {
	var text strings.Builder
	for e := range entries(1) {
		if e.port > 200 {
			break
		}
		for _, p := range e.protocols() {
			fmt.Fprintf(&text, "%s\t%d/%s\t# %s\n", e.primary(), e.port, p, e.description)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		parse(text.String())
	}
}
