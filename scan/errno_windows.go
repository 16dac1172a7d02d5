package scan

import (
	"syscall"

	"golang.org/x/sys/windows"
)

// judge returns what an error of socket or connect shows about a port.
func judge(e syscall.Errno) (State, string) {
	switch e {
	case windows.WSAECONNREFUSED:
		return Closed, "connection refused"
	case windows.WSAETIMEDOUT:
		return Filtered, "timed out"
	case windows.WSAEHOSTUNREACH:
		return Filtered, "no route to host"
	case windows.WSAEHOSTDOWN:
		return Filtered, "host is down"
	case windows.WSAENETUNREACH:
		return Filtered, "network is unreachable"
	}
	return Failed, e.Error()
}

// isShortage tells the errors that pass when fewer sockets are open.
func isShortage(e syscall.Errno) bool {
	switch e {
	case windows.WSAEMFILE, windows.WSAENOBUFS, windows.WSAEADDRNOTAVAIL:
		return true
	}
	return false
}
