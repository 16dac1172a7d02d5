//go:build !linux

package datagram

import "syscall"

// reportICMP does nothing: the system reports what it reports.
func reportICMP(_, _ string, _ syscall.RawConn) error { return nil }

func (c *Conn) queuedError() *ICMPError { return nil }
