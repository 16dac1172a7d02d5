//go:build !linux

package datagram

import "syscall"

// truncated is MSG_TRUNC of the BSDs, macOS and Solaris; Windows returns an error instead.
const truncated = 0x10

const controlIn, controlOut = 0, 0

func tellDestination(_, _ string, _ syscall.RawConn) error { return nil }

func (c *Conn) readControl(*Packet, []byte) {}

func writeControl([]byte, route) []byte { return nil }
