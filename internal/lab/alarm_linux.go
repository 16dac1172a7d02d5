package lab

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// alarm is a timer exact to some 0.1 ms, where a [time.Timer] of a process that
// is otherwise idle goes off up to 1 ms late: timerfd_create(2).
type alarm struct {
	*os.File
	fd int // of the file
}

func newAlarm() (*alarm, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make a timer: %w", err)
	}
	return &alarm{os.NewFile(uintptr(fd), "timerfd"), fd}, nil
}

// set makes it go off once, after d above 0. It is not for use after Close.
func (a *alarm) set(d time.Duration) error {
	return unix.TimerfdSettime(a.fd, 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}, nil)
}

// wait waits until it goes off; the error is that it was closed.
func (a *alarm) wait() error {
	var times [8]byte
	_, err := a.Read(times[:])
	return err
}
