package datagram

import "syscall"

// controlFunc is a Control function of package net: it runs on a new socket
// before it is bound or connected.
type controlFunc = func(network, address string, c syscall.RawConn) error
