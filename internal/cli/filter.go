package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/filter"
)

// filterHelp is told by every command that takes a filter.
const filterHelp = `A FILTER is written as for tcpdump or ss, or names its target: 8080, 127.0.0.1:80,
unix:///run/a.sock, pid:123, proc:nginx, unit:nginx.service, user:www-data,
cookie:HEX. "tcp and dst port 443", "sport = :22", "state established and not
src 10.0.0.0/8", "rtt > 50ms", "proc:nginx and sendq > 64KiB".`

// parseFilter reads the arguments of a command as one filter. None is nil.
func parseFilter(ctx context.Context, args []string) (*filter.Filter, error) {
	f, err := filter.Parse(ctx, strings.Join(args, " "))
	if err != nil {
		return nil, &codeError{exitUsage, err}
	}
	return f, nil
}

// kindFlags narrow a command to kinds of sockets, by the flags that ss has.
type kindFlags struct{ tcp, udp, unix bool }

func (k *kindFlags) add(c *cobra.Command) {
	c.Flags().BoolVarP(&k.tcp, "tcp", "t", false, "TCP sockets, Multipath TCP too")
	c.Flags().BoolVarP(&k.udp, "udp", "u", false, "UDP sockets, UDP-Lite too")
	c.Flags().BoolVarP(&k.unix, "unix", "x", false, "Unix sockets")
}

// protocols are the kinds chosen, none for all.
func (k kindFlags) protocols() []fivetuple.Network {
	var all []fivetuple.Network
	if k.tcp {
		all = append(all, fivetuple.TCP, fivetuple.MPTCP)
	}
	if k.udp {
		all = append(all, fivetuple.UDP, fivetuple.UDPLite)
	}
	if k.unix {
		all = append(all, fivetuple.Unix, fivetuple.Unixgram, fivetuple.Seqpacket)
	}
	return all
}
