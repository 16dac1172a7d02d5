package cli

import (
	"context"
	"os"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple/service"
)

// firstReadable waits until a client waits at one of the sockets.
func firstReadable(ctx context.Context, sockets []service.Socket) error {
	woken, wake, err := os.Pipe()
	if err != nil {
		return err
	}
	defer woken.Close()
	stop := context.AfterFunc(ctx, func() { wake.Close() })
	defer stop()
	fds := []unix.PollFd{{Fd: int32(woken.Fd()), Events: unix.POLLIN}}
	for _, s := range sockets {
		fds = append(fds, unix.PollFd{Fd: int32(s.File.Fd()), Events: unix.POLLIN})
	}
	for {
		_, err := unix.Poll(fds, -1)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			return nil
		case err != unix.EINTR:
			return os.NewSyscallError("poll", err)
		}
	}
}
