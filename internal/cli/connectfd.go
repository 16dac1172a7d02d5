package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/activation"
	"github.com/fivetuple/fivetuple/ancillary"
)

// takeDescriptors receives the descriptors that a Unix socket passes and uses
// them: for a command, or the first one in the place of the socket.
func (a *app) takeDescriptors(ctx context.Context, p connectPlan, far net.Conn) error {
	files, err := receiveDescriptors(ctx, p, far)
	if err != nil {
		return err
	}
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if p.verbose || len(p.command) == 0 {
		for i, f := range files {
			a.note("descriptor %d: %s", i+1, ancillary.Describe(f))
		}
	}
	if len(p.command) > 0 {
		var passed []activation.Socket
		for _, f := range files {
			passed = append(passed, activation.Socket{Name: "passed", File: f})
		}
		return activation.Pass(activation.Command{Path: p.command[0], Args: p.command[1:], Env: os.Environ()}, passed)
	}
	if len(files) > 1 {
		return errors.New("several descriptors were passed: give a command after --, which gets them all (LISTEN_FDS)")
	}
	return a.useDescriptor(ctx, p, files[0])
}

func receiveDescriptors(ctx context.Context, p connectPlan, far net.Conn) ([]*os.File, error) {
	uc, ok := unixConn(far)
	if !ok {
		return nil, fmt.Errorf("take a descriptor from %s: not a Unix socket", p.far)
	}
	stop := context.AfterFunc(ctx, func() { far.Close() })
	defer stop()
	if uc.LocalAddr().Network() == "unixgram" {
		if _, err := uc.Write([]byte{0}); err != nil { // tells where we are
			return nil, fmt.Errorf("take a descriptor from %s: %w", p.far, err)
		}
	}
	_, files, err := ancillary.ReceiveFiles(uc, make([]byte, 4096))
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, io.EOF):
		return nil, fmt.Errorf("take a descriptor from %s: the peer closed and passed none", p.far)
	case err != nil:
		return nil, fmt.Errorf("take a descriptor from %s: %w", p.far, err)
	case len(files) == 0:
		return nil, fmt.Errorf("take a descriptor from %s: the peer sent bytes without a descriptor", p.far)
	}
	return files, nil
}

// unixConn finds the Unix socket in a connection.
func unixConn(c net.Conn) (*net.UnixConn, bool) {
	switch c := c.(type) {
	case *net.UnixConn:
		return c, true
	case interface{ UnixConn() *net.UnixConn }:
		uc := c.UnixConn()
		return uc, uc != nil
	}
	return nil, false
}

// useDescriptor joins standard input and output to what was passed: a
// connection, the first client of a listening socket, or a file.
func (a *app) useDescriptor(ctx context.Context, p connectPlan, f *os.File) error {
	near, err := a.stdio()
	if err != nil {
		return err
	}
	// Both take any socket; only of a connection does the kernel know a peer.
	if conn, err := net.FileConn(f); err == nil && conn.RemoteAddr() != nil {
		defer conn.Close()
		p.far.Network = networkOf(conn)
		return a.joinEnds(ctx, p, near, conn)
	} else if err == nil {
		conn.Close()
	}
	if ln, err := net.FileListener(f); err == nil {
		defer ln.Close()
		stop := context.AfterFunc(ctx, func() { ln.Close() })
		defer stop()
		conn, err := ln.Accept()
		if err != nil {
			return fmt.Errorf("accept on the socket that was passed: %w", err)
		}
		defer conn.Close()
		a.note("accepted %s", conn.RemoteAddr())
		p.far.Network = networkOf(conn)
		return a.joinEnds(ctx, p, near, conn)
	}
	_, err = io.Copy(a.out, f)
	return err
}

func networkOf(c net.Conn) fivetuple.Network {
	name := c.LocalAddr().Network()
	if name == "unixpacket" {
		return fivetuple.Seqpacket
	}
	n, _ := fivetuple.ParseNetwork(name)
	return n
}
