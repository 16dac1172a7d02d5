package port

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// ErrUnknown is returned by LookupPort for a name that no port has.
var ErrUnknown = errors.New("unknown service")

// LookupPort returns the port that a name or a decimal number stands for, like the method of [net.Resolver] and in its place. The network is
// "tcp", "udp", "sctp" or "dccp", where a 4 or 6 at its end is ignored; "" and "ip" mean the first of these that knows the name.
//
// Of several ports that the services file gives to a name the first counts, as with getservbyname(3). Of several that IANA gives it none
// is better than the others, and the error lists them. Errors wrap [ErrUnknown] if the name is in neither.
func (n *Names) LookupPort(ctx context.Context, network, service string) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("look up port %s/%s: %w", service, network, err)
	}
	port, err := n.resolve(network, service)
	if err != nil {
		return 0, fmt.Errorf("look up port %s/%s: %w", service, network, err)
	}
	return int(port), nil
}

func (n *Names) resolve(network, service string) (uint16, error) {
	protocols, err := protocolsOf(network)
	if err != nil {
		return 0, err
	}
	if strings.Trim(service, "0123456789") == "" && service != "" {
		port, err := strconv.ParseUint(service, 10, 16)
		if err != nil {
			return 0, errors.New("port out of range 0-65535")
		}
		return uint16(port), nil
	}
	for _, protocol := range protocols {
		if ports := n.inFile(service, protocol); ports != nil {
			return ports[0], nil
		}
		switch found := LookupName(service, protocol); len(found) {
		case 0:
		case 1:
			return found[0].Port, nil
		default:
			return 0, fmt.Errorf("the name has %d %s ports (%s): write the number", len(found), protocol, listed(found))
		}
	}
	return 0, fmt.Errorf("%w: write the number, or name it in the services file", ErrUnknown)
}

func protocolsOf(network string) ([]string, error) {
	if network == "" || network == "ip" {
		return Protocols(), nil
	}
	protocol := strings.TrimRight(network, "46")
	if len(network)-len(protocol) > 1 || !isProtocol(protocol) {
		return nil, errors.New("the network has no ports: use tcp, udp, sctp or dccp")
	}
	return []string{protocol}, nil
}

// listed writes up to four ports out; more are always a range in the registry (x11: 6000-6063).
func listed(services []Service) string {
	var ports []string
	for _, s := range services {
		ports = append(ports, strconv.Itoa(int(s.Port)))
	}
	if len(ports) > 4 {
		return ports[0] + "-" + ports[len(ports)-1]
	}
	return strings.Join(ports, ", ")
}
