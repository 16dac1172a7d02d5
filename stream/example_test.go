package stream_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/stream"
)

// An echo server within limits, whose counters say what went through it.
func Example() {
	ctx := context.Background()
	ep, _ := fivetuple.ParseEndpoint("127.0.0.1:0")
	ln, err := stream.ListenConfig{}.Listen(ctx, ep)
	if err != nil {
		fmt.Println(err)
		return
	}
	var counters stats.Counters
	srv := &stream.Server{Service: "echo", Handler: stream.Echo(), Sink: &counters,
		Limits: stream.Limits{MaxConns: 10_000, IdleTimeout: time.Minute}}
	go srv.Serve(ln)

	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Fprint(c, "hello")
	c.(*net.TCPConn).CloseWrite()
	b, _ := io.ReadAll(c)
	fmt.Printf("%s\n", b)
	c.Close()
	srv.Shutdown(ctx)
	for _, s := range counters.Snapshot() {
		fmt.Println(s.Service, s.BytesIn, "bytes in,", s.BytesOut, "out")
	}
	// Output:
	// hello
	// echo 5 bytes in, 5 out
}
