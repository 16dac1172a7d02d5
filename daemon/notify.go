package daemon

import (
	"fmt"
	"net"
	"os"
	"strings"
)

// The states that [Notify] tells of.
const (
	Ready     = "READY=1"
	Reloading = "RELOADING=1"
	Stopping  = "STOPPING=1"
)

// Notify tells the service manager, if there is one that wants to know
// ($NOTIFY_SOCKET, sd_notify(3)), how things stand: Ready, Reloading or Stopping, or
// another assignment of sd_notify(3). Ready also says which process is the main one, since
// it may have taken over from another.
func Notify(state string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	lines := []string{state}
	switch state {
	case Ready:
		lines = append(lines, fmt.Sprintf("MAINPID=%d", os.Getpid()))
	case Reloading:
		if now, ok := monotonic(); ok { // Type=notify-reload wants it
			lines = append(lines, fmt.Sprintf("MONOTONIC_USEC=%d", now))
		}
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Net: "unixgram", Name: path})
	if err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	defer c.Close()
	if _, err := c.Write([]byte(strings.Join(lines, "\n"))); err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	return nil
}
