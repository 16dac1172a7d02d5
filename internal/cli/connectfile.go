package cli

import (
	"context"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/fivetuple/fivetuple/join"
	"github.com/fivetuple/fivetuple/stats"
)

// sendFile sends a file, end of file, and prints what the peer answers.
func (a *app) sendFile(ctx context.Context, p connectPlan, far net.Conn) error {
	o, stop := a.fileOptions(p, "sent")
	result, err := join.SendFile(ctx, far, p.sendFile, o)
	stop()
	if err != nil {
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

// receiveFile writes what the peer sends to a file that is there once it is whole.
func (a *app) receiveFile(ctx context.Context, p connectPlan, far net.Conn) error {
	if hc, ok := far.(interface{ CloseWrite() error }); ok {
		hc.CloseWrite() // there is nothing to say
	}
	o, stop := a.fileOptions(p, "received")
	result, err := join.ReceiveFile(ctx, far, p.recvFile, o)
	stop()
	if err != nil {
		return err
	}
	a.noteFile("received", p.recvFile, result)
	return nil
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
