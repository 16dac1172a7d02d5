package filter

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fivetuple/fivetuple/port"
)

// lookups finds what names stand for.
type lookups struct {
	ctx    context.Context
	host   func(ctx context.Context, name string) ([]netip.Addr, error)
	cgroup func(path string) uint64 // 0 for none
	ports  *port.Names              // read when the first name is met
}

const hostPatience = 5 * time.Second

func lookupHost(ctx context.Context, name string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, hostPatience)
	defer cancel()
	return net.DefaultResolver.LookupNetIP(ctx, "ip", name)
}

// hosts resolves a name; each address counts once.
func (l *lookups) hosts(name string, at int) ([]value, *fault) {
	if !isHostName(name) {
		return nil, faultAt(at, "%q is neither an IP address nor a host name", name)
	}
	addrs, err := l.host(l.ctx, name)
	if err != nil || len(addrs) == 0 {
		if err == nil {
			err = errors.New("no such host")
		}
		f := faultAt(at, "look up host %q: %v", name, err)
		f.err = err
		return nil, f
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	var all []value
	for _, a := range addrs {
		if v := addressValue(a); !slices.Contains(all, v) {
			all = append(all, v)
		}
	}
	return all, nil
}

func isHostName(s string) bool {
	for _, c := range s {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '.', c == '_', c > 0x7f:
		default:
			return false
		}
	}
	return s != "" && len(s) < 254 && s[0] != '-' && s[0] != '.' && strings.Trim(s, "0123456789.") != ""
}

// service finds the port of a service. Without a network it is that of the
// first of TCP, UDP, SCTP and DCCP that knows the name.
func (l *lookups) service(name, network string, at int) (value, *fault) {
	if l.ports == nil {
		l.ports, _ = port.System() // without the file there is the registry
		if l.ports == nil {
			l.ports = new(port.Names)
		}
	}
	n, err := l.ports.LookupPort(l.ctx, network, name)
	switch {
	case errors.Is(err, port.ErrUnknown):
		return value{}, faultAt(at, "%q is not a port (0-65535), a range (8000-8090) or a known service%s", name, suggest(name, commonServices))
	case err != nil:
		return value{}, faultAt(at, "%v", err)
	}
	return value{low: uint64(n), high: uint64(n)}, nil
}

// commonServices are proposed for names that are nearly theirs.
var commonServices = []string{"http", "https", "ssh", "domain", "smtp", "imap", "imaps", "pop3", "ntp", "ldap", "ldaps", "ftp",
	"mysql", "postgresql", "redis", "mdns", "snmp", "syslog", "nfs", "telnet", "sip", "bgp", "amqp"}

func (l *lookups) user(t token) (value, *fault) {
	uid, err := strconv.ParseUint(t.text, 10, 32)
	if err == nil {
		return value{low: uid, high: uid}, nil
	}
	u, err := user.Lookup(t.text)
	if err != nil {
		f := faultAt(t.at, "unknown user %q: want a name or uid that \"getent passwd\" shows", t.text)
		if _, isUnknown := errors.AsType[user.UnknownUserError](err); !isUnknown {
			f = faultAt(t.at, "look up user %q: %v", t.text, err)
			f.err = err
		}
		return value{}, f
	}
	if uid, err = strconv.ParseUint(u.Uid, 10, 32); err != nil {
		return value{}, faultAt(t.at, "user %q has the id %q, which is not a number", t.text, u.Uid)
	}
	return value{low: uid, high: uid}, nil
}
