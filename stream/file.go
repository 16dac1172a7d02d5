package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// File makes a handler that sends a regular file from its beginning to each
// connection, and then the end. The file is opened anew by its path for each:
// one renamed into its place is what the next client gets, while those that get
// the old one get all of it. As many bytes are sent as the file had at that
// moment, with whatever is written over them meanwhile; if it becomes shorter or
// cannot be read the connection is reset, so that nobody takes what came for the
// whole. On a Unix socket, which has no reset, only the number of bytes tells.
//
// It is an error if the file cannot be read, or is not a regular one.
func File(path string) (Handler, error) {
	f, _, err := openRegular(path)
	if err != nil {
		return nil, fmt.Errorf("serve file %s: %w", path, err)
	}
	f.Close()
	return HandlerFunc(func(_ context.Context, c *Conn) error {
		err := sendFile(c, path)
		if err == nil {
			return nil
		}
		err = fmt.Errorf("serve file %s: %w", path, err)
		if causeOf(err) == causeFailed { // the file, and not the connection
			c.server.events.Error(c.tuple, err)
		}
		reset(c.raw)
		return err
	}), nil
}

func sendFile(c *Conn, path string) error {
	f, size, err := openRegular(path)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := c.ReadFrom(io.LimitReader(f, size))
	if err == nil && n < size {
		err = fmt.Errorf("it was %d bytes long and ended after %d: it was cut while it was sent", size, n)
	}
	return err
}

// openRegular opens a regular file for reading. It does not wait for a writer
// of a FIFO (O_NONBLOCK, fifo(7)).
func openRegular(path string) (*os.File, int64, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case info.IsDir():
		err = errors.New("is a directory, not a regular file")
	case !info.Mode().IsRegular():
		err = errors.New("is a special file, not a regular file")
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}
