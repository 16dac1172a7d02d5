package main

import (
	"fmt"
	"net"
	"os"

	"github.com/panjf2000/gnet/v2"
	"golang.org/x/sys/unix"
)

// servePeer is the echo server of that name: it listens on a port of the
// kernel's choice, says so as ft listen does, and serves until it is killed.
func servePeer(name string) error {
	switch name {
	case "gnet":
		return serveGnet()
	case "net":
		return serveNet()
	}
	return fmt.Errorf("there is no peer %q", name)
}

// serveNet is the plain server of the standard library: a goroutine and a
// buffer for each connection.
func serveNet() error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "listening on tcp", listener.Addr())
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			buffer := make([]byte, 16<<10)
			for {
				n, err := conn.Read(buffer)
				if err != nil {
					return
				}
				if _, err := conn.Write(buffer[:n]); err != nil {
					return
				}
			}
		}()
	}
}

// serveGnet is gnet's own example, on all processors.
func serveGnet() error {
	return gnet.Run(&gnetEcho{}, "tcp://127.0.0.1:0", gnet.WithMulticore(true))
}

type gnetEcho struct{ gnet.BuiltinEventEngine }

func (*gnetEcho) OnBoot(engine gnet.Engine) gnet.Action {
	fd, err := engine.Dup()
	if err == nil {
		defer unix.Close(fd)
		var at unix.Sockaddr
		if at, err = unix.Getsockname(fd); err == nil {
			fmt.Fprintf(os.Stderr, "listening on tcp 127.0.0.1:%d\n", at.(*unix.SockaddrInet4).Port)
			return gnet.None
		}
	}
	fmt.Fprintln(os.Stderr, "gnet:", err)
	return gnet.Shutdown
}

func (*gnetEcho) OnTraffic(c gnet.Conn) gnet.Action {
	if got, err := c.Next(-1); err != nil {
		return gnet.Close
	} else if _, err := c.Write(got); err != nil {
		return gnet.Close
	}
	return gnet.None
}
