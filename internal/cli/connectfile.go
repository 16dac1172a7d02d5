package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/fivetuple/fivetuple/join"
	"github.com/fivetuple/fivetuple/secure"
	"github.com/fivetuple/fivetuple/stats"
)

// sendFile sends a file, end of file, and prints what the peer answers.
func (a *app) sendFile(ctx context.Context, p connectPlan, far net.Conn) error {
	o, stop := a.fileOptions(p, "sent")
	result, err := join.SendFile(ctx, far, p.sendFile, o)
	stop()
	if errors.Is(err, syscall.EPIPE) { // of the socket: nobody's output was closed
		err = fmt.Errorf("send %s to %s: the peer closed the connection before it had all", p.sendFile, p.far)
	}
	if err != nil {
		abort(far)
		return err
	}
	if hc, ok := far.(interface{ CloseWrite() error }); ok {
		if err := hc.CloseWrite(); err != nil {
			return fmt.Errorf("send %s to %s: %w", p.sendFile, p.far, err)
		}
	}
	closeAfter := context.AfterFunc(ctx, func() { far.Close() })
	defer closeAfter()
	// The peer closes once it has everything; a reset before is an error.
	if _, err := io.Copy(a.out, far); ctx.Err() != nil {
		return ctx.Err()
	} else if err != nil {
		return fmt.Errorf("send %s to %s: the end was not confirmed: %w", p.sendFile, p.far, err)
	}
	a.noteFile("sent", p.sendFile, result)
	return nil
}

// checkFile finds out before anything is connected what the peer would take for an
// empty file, or would send in vain.
func (p *connectPlan) checkFile() error {
	switch {
	case p.sendFile != "":
		return canSend(p.sendFile)
	case p.recvFile != "":
		return canReceive(p.recvFile)
	}
	return nil
}

func canSend(path string) error {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return fmt.Errorf("send file: %w", err)
	case info.IsDir():
		return fmt.Errorf("send file %s: is a directory: pack it first, with tar", path)
	case !info.Mode().IsRegular(): // opening a named pipe has effects
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("send file: %w", err)
	}
	return f.Close()
}

func canReceive(path string) error {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return fmt.Errorf("receive file %s: is a directory: name a file in it", path)
	}
	if _, err := os.Stat(filepath.Dir(path)); err != nil {
		return fmt.Errorf("receive file %s: %w", path, err)
	}
	return nil
}

// abort resets a TCP connection, so that nobody takes what came for the whole.
func abort(c net.Conn) {
	c = secure.NetConn(c)
	if tc, ok := c.(*net.TCPConn); ok {
		tc.SetLinger(0)
	}
	c.Close()
}

// receiveFile writes what the peer sends to a file that is there once it is whole.
// The peer gets no end of file before: nc and ncat that listen would leave with the
// rest unsent.
func (a *app) receiveFile(ctx context.Context, p connectPlan, far net.Conn) error {
	o, stop := a.fileOptions(p, "received")
	result, err := join.ReceiveFile(ctx, wholeOnly{far}, p.recvFile, o)
	stop()
	if err != nil {
		return err
	}
	a.noteFile("received", p.recvFile, result)
	return nil
}

// wholeOnly takes the end of a TLS connection without close_notify for no end of
// file: anybody on the way can make one.
type wholeOnly struct{ net.Conn }

func (c wholeOnly) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err == io.EOF && secure.Truncated(c.Conn) {
		err = errors.New("the peer ended the connection without the end of TLS, so the file may be cut short: to take it anyway, write standard output to a file")
	}
	return n, err
}

func (a *app) noteFile(done, path string, r join.FileResult) {
	a.note("%s %s: %d bytes in %s, %s/s, sha256 %s", done, path, r.Bytes, stats.FormatDuration(r.Took),
		stats.FormatBytes(uint64(float64(r.Bytes)/max(r.Took.Seconds(), 1e-9))), r.SHA256)
}

// fileOptions are the options of a transfer, with progress on a terminal.
func (a *app) fileOptions(p connectPlan, verb string) (join.FileOptions, func()) {
	var seen progressCount
	stop := a.progress(func(took time.Duration) string { return seen.line(verb, took) })
	return join.FileOptions{Rate: p.join.Rate, Progress: seen.set}, stop
}
