//go:build !linux

package datagram

import "syscall"

// truncated is MSG_TRUNC of the BSDs, macOS and Solaris; Windows returns an error instead.
const truncated = 0x10

const controlIn, controlOut = 0, 0

func tellDestination(_, _ string, _ syscall.RawConn) error { return nil }

// allowBroadcast leaves it as package net sets it.
func allowBroadcast(bool) controlFunc { return nil }

// isV6Only cannot be asked in one way everywhere.
func isV6Only(syscall.RawConn) bool { return true }

func (c *Conn) readControl(*Packet, []byte) {}

func writeControl([]byte, route) []byte { return nil }
