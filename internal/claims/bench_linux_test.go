package claims

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

const leases = 10000

func BenchmarkPut(b *testing.B) {
	board := with(b, public(b), idA, nil)
	if err := board.Reset(many(leases)); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if err := board.Put(i%leases, claim(int64(i))); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOthers(b *testing.B) {
	dir := public(b)
	if err := with(b, dir, idA, nil).Reset(many(leases)); err != nil {
		b.Fatal(err)
	}
	benchmarkOthers(b, dir, leases)
}

// Ten thousand files of one user, each with a claim.
func BenchmarkOthersFlood(b *testing.B) {
	dir := public(b)
	content := make([]byte, 2*unitSize)
	head := header([idSize]byte([]byte(idC)))
	record, err := claim(1).encode()
	if err != nil {
		b.Fatal(err)
	}
	copy(content, head[:])
	copy(content[unitSize:], record[:])
	for i := range 10000 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(prefix, i)), content, 0o644); err != nil {
			b.Fatal(err)
		}
	}
	benchmarkOthers(b, dir, maxFiles)
}

func BenchmarkOpen(b *testing.B) {
	dir := public(b)
	with(b, dir, idA, nil)
	b.ReportAllocs()
	for b.Loop() {
		board, err := Open(dir, idA)
		if err != nil {
			b.Fatal(err)
		}
		board.Close()
	}
}

func benchmarkOthers(b *testing.B, dir string, want int) {
	board := open(b, dir, idB)
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		if _, err := board.Others(func(_ uint32, c Claim) bool { n++; return true }); err != nil || n != want {
			b.Fatalf("got %d claims, %v, want %d", n, err, want)
		}
	}
}
