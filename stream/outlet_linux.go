package stream

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// outlet is a pipe that a command writes into.
type outlet struct {
	r, w *os.File // w is the command's
	done chan struct{}
}

func newOutlet() (*outlet, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	return &outlet{r, w, make(chan struct{})}, nil
}

// start hands what is written to write, until all who hold the other end have
// closed it, which end is then told, until write fails, or until finish.
func (o *outlet) start(write func([]byte) error, end func()) {
	go func() {
		defer close(o.done)
		defer o.r.Close()
		buf := make([]byte, 32<<10)
		for {
			n, err := o.r.Read(buf)
			if n > 0 && write(buf[:n]) != nil {
				return
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				o.drain(buf, write)
				return
			}
			if err != nil {
				if end != nil {
					end()
				}
				return
			}
		}
	}()
}

// finish is called when the command has ended: it returns when write has had all
// that the pipe held, also if somebody who left the process group still has its
// other end.
func (o *outlet) finish() {
	o.w.Close()
	o.r.SetReadDeadline(past)
	<-o.done
}

// drain hands over what the pipe holds at this moment.
func (o *outlet) drain(buf []byte, write func([]byte) error) {
	raw, err := o.r.SyscallConn()
	if err != nil {
		return
	}
	left := 0
	raw.Control(func(fd uintptr) { left, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	for left > 0 {
		n := 0
		raw.Control(func(fd uintptr) { n, _ = syscall.Read(int(fd), buf[:min(left, len(buf))]) })
		if n <= 0 || write(buf[:n]) != nil {
			return
		}
		left -= n
	}
}
