package join_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"

	"github.com/fivetuple/fivetuple/join"
)

// A request is half-closed, and the answer is read to its end.
func ExampleRun() {
	client, a := net.Pipe()
	b, server := net.Pipe()
	go func() {
		request := make([]byte, 100)
		n, _ := server.Read(request)
		fmt.Fprintf(server, "you said %s", request[:n])
		server.Close()
	}()
	go io.WriteString(client, "hello")
	go io.Copy(io.Discard, client)

	result, err := join.Run(context.Background(), a, b, join.Options{QuitWithB: true})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(result.AToB.Bytes, "bytes there,", result.BToA.Bytes, "back")
	// Output: 5 bytes there, 14 back
}
