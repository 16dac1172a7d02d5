package lease

import (
	"errors"

	"golang.org/x/sys/windows"
)

func isInUse(err error) bool     { return errors.Is(err, windows.WSAEADDRINUSE) }
func isDenied(err error) bool    { return errors.Is(err, windows.WSAEACCES) }
func isNoAddress(err error) bool { return errors.Is(err, windows.WSAEADDRNOTAVAIL) }
