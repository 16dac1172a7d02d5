//go:build !linux

package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

var errNoHosts = fmt.Errorf("test hosts need Linux network namespaces: %w", errors.ErrUnsupported)

type namespace struct{}

func enter() {}

func newNamespace() (*namespace, error) { return nil, errNoHosts }
func (*namespace) do(func()) error      { return errNoHosts }
func (*namespace) close() error         { return errNoHosts }

func setUp(device string) error                         { return errNoHosts }
func ready(device string) (bool, error)                 { return false, errNoHosts }
func addVeth(name, peerName string, _ *namespace) error { return errNoHosts }
func addAddr(string, netip.Prefix) error                { return errNoHosts }
func addRoute(netip.Prefix, netip.Addr) error           { return errNoHosts }

type alarm struct{}

func newAlarm() (*alarm, error)        { return nil, errNoHosts }
func (*alarm) set(time.Duration) error { return errNoHosts }
func (*alarm) wait() error             { return errNoHosts }
func (*alarm) Close() error            { return errNoHosts }

func newWires(a, b *Host, mtu int) ([2]wire, error) { return [2]wire{}, errNoHosts }
func isDown(error) bool                             { return false }
