package join

import (
	"context"
	"io"
	"net"
	"testing"
)

// BenchmarkCopy moves bytes from one connection to another.
func BenchmarkCopy(b *testing.B) {
	ways := map[string]func(a, b net.Conn){
		"Run": func(a, b net.Conn) { Run(context.Background(), a, b, Options{}) },
		"io.Copy": func(a, b net.Conn) {
			io.Copy(b, a)
			b.Close()
			a.Close()
		},
		"io.CopyBuffer": func(a, b net.Conn) {
			io.CopyBuffer(struct{ io.Writer }{b}, struct{ io.Reader }{a}, make([]byte, 256<<10))
			b.Close()
			a.Close()
		},
	}
	for _, kind := range []struct {
		name string
		pair pair
	}{{"tcp", tcpPair}, {"unix", unixPair}} {
		for name, way := range ways {
			b.Run(kind.name+"/"+name, func(b *testing.B) { copyThrough(b, kind.pair, way) })
		}
	}
}

func copyThrough(b *testing.B, kind pair, way func(a, b net.Conn)) {
	a, peerA := kind(b)
	c, peerB := kind(b)
	done := make(chan struct{})
	go func() {
		defer close(done)
		way(a, c)
	}()
	received := make(chan int64)
	go func() {
		n, _ := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{peerB}, make([]byte, 1<<20))
		peerB.Close()
		received <- n
	}()
	piece := make([]byte, 1<<20)
	b.SetBytes(int64(len(piece)))
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if _, err := peerA.Write(piece); err != nil {
			b.Fatal(err)
		}
	}
	closeWrite(b, peerA)
	if n := <-received; n != int64(b.N)<<20 {
		b.Errorf("%d bytes came, want %d", n, b.N<<20)
	}
	b.StopTimer()
	<-done
}
