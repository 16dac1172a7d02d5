package fivetuple

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"
)

// AnyHost is the Host of an endpoint that stands for all addresses of the machine.
const AnyHost = "*"

const (
	maxUnixPath  = 107 // sun_path holds 108 bytes, the last a NUL: unix(7)
	maxInterface = 15  // IFNAMSIZ counts the NUL: netdevice(7)
	maxHostName  = 253 // RFC 1035 section 2.3.4, in text form
)

// MustParseEndpoint is [ParseEndpoint] for constants: it panics on an error.
func MustParseEndpoint(s string) Endpoint {
	e, err := ParseEndpoint(s)
	if err != nil {
		panic(err)
	}
	return e
}

// Endpoint is a place to listen on, connect to or send to, as a person writes
// it. It is comparable; [ParseEndpoint] and [Endpoint.String] are inverses.
type Endpoint struct {
	Network Network
	Host    string    // an IP address, a host name, AnyHost, or "" for loopback
	Zone    string    // the interface after "%": an IPv6 zone, or where a group is joined
	Ports   PortRange // the port, or several
	Service string    // the port by name ("https"), until WithPort or ResolveService sets Ports
	Path    string    // of a Unix socket; "@name" is the abstract name space
	CID     uint32    // context id of a vsock; math.MaxUint32 is any
	VPort   uint32    // port of a vsock
}

// PortRange is one or several neighbouring ports, both ends included.
type PortRange struct{ First, Last uint16 }

// Len is the number of ports in the range, at least 1.
func (r PortRange) Len() int { return int(r.Last) - int(r.First) + 1 }

// Contains says whether the port is in the range.
func (r PortRange) Contains(port uint16) bool { return r.First <= port && port <= r.Last }

// String returns "8080" or "8000-8090".
func (r PortRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// ParsePortRange reads "8080" or "8000-8090", each 0 to 65535, ascending.
func ParsePortRange(s string) (PortRange, error) {
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	lo, err := parsePort(first)
	if err != nil {
		return PortRange{}, err
	}
	hi, err := parsePort(last)
	if err != nil {
		return PortRange{}, err
	}
	if hi < lo {
		return PortRange{}, fmt.Errorf("port range %q runs backwards: write %d-%d", s, hi, lo)
	}
	return PortRange{First: lo, Last: hi}, nil
}

func parsePort(s string) (uint16, error) {
	if !isDigits(s) {
		return 0, fmt.Errorf("%q is not a port number", s)
	}
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("port %s is out of range 0-65535", s)
	}
	return uint16(n), nil
}

// ParseEndpoint reads the endpoint grammar shared by every command:
//
//	8080  :8080  *:8080          TCP; loopback, or all addresses with : or *
//	host:8080  [fe80::1%eth0]:80  :https  :8000-8090
//	tcp://  tcp4://  tcp6://  udp://  udp4://  udp6://  tls://
//	udp://239.1.1.1%eth0:5000    a multicast group on an interface
//	unix:///run/a.sock  unix://@name  unixgram://  seqpacket://
//	vsock://CID:PORT             CID a number, "host", "local" or "*"
//	-                            standard input and output
//
// The error says which part is wrong and how to write it.
func ParseEndpoint(s string) (Endpoint, error) {
	e, err := parseEndpoint(s)
	if err != nil {
		return Endpoint{}, fmt.Errorf("endpoint %q: %w", s, err)
	}
	return e, nil
}

func parseEndpoint(s string) (Endpoint, error) {
	if s == "-" {
		return Endpoint{Network: Stdio}, nil
	}
	network, rest := TCP, s
	if scheme, after, ok := strings.Cut(s, "://"); ok {
		var err error
		if network, err = ParseNetwork(scheme); err != nil || network >= Stdio {
			return Endpoint{}, fmt.Errorf("unknown scheme %q: want tcp, tcp4, tcp6, udp, udp4, udp6, tls, unix, unixgram, seqpacket or vsock", scheme)
		}
		rest = after
	}
	if !utf8.ValidString(rest) {
		return Endpoint{}, errors.New("is not UTF-8 text")
	}
	for _, c := range rest {
		if c < ' ' || c == 0x7f {
			return Endpoint{}, fmt.Errorf("contains the control character %q", c)
		}
		if c == ' ' && !network.IsUnix() {
			return Endpoint{}, errors.New("contains a space")
		}
	}
	switch {
	case network.IsUnix():
		return parseUnix(network, rest)
	case network == Vsock:
		return parseVsock(rest)
	}
	return parseIP(network, rest)
}

func parseUnix(network Network, path string) (Endpoint, error) {
	switch {
	case path == "" || path == "@":
		return Endpoint{}, errors.New("names no path: write unix:///run/name.sock or unix://@name")
	case len(path) > maxUnixPath:
		return Endpoint{}, fmt.Errorf("the path is %d bytes long; a Unix socket's holds at most %d (unix(7)): use a shorter directory or an abstract name", len(path), maxUnixPath)
	}
	return Endpoint{Network: network, Path: path}, nil
}

func parseVsock(s string) (Endpoint, error) {
	cid, port, ok := strings.Cut(s, ":")
	if !ok {
		return Endpoint{}, errors.New("write vsock://CID:PORT")
	}
	e := Endpoint{Network: Vsock}
	switch cid { // vsock(7)
	case "", AnyHost:
		e.CID = math.MaxUint32
	case "local":
		e.CID = 1
	case "host":
		e.CID = 2
	default:
		n, err := strconv.ParseUint(cid, 10, 32)
		if err != nil || !isDigits(cid) {
			return Endpoint{}, fmt.Errorf("context id %q is not a number of 32 bits, host, local or *", cid)
		}
		e.CID = uint32(n)
	}
	n, err := strconv.ParseUint(port, 10, 32)
	if err != nil || !isDigits(port) {
		return Endpoint{}, fmt.Errorf("vsock port %q is not a number of 32 bits", port)
	}
	e.VPort = uint32(n)
	return e, nil
}

func parseIP(network Network, s string) (Endpoint, error) {
	e := Endpoint{Network: network}
	host, port, err := splitHostPort(s)
	if err != nil {
		return Endpoint{}, err
	}
	if err := e.setPort(port); err != nil {
		return Endpoint{}, err
	}
	if err := e.setHost(host); err != nil {
		return Endpoint{}, err
	}
	return e, nil
}

// splitHostPort cuts at the last colon. A lone number or range has no host; a
// leading colon means all addresses.
func splitHostPort(s string) (host, port string, err error) {
	if s == "" {
		return "", "", errors.New("is empty: write a port (8080), host:port, or a scheme such as udp://")
	}
	if rest, ok := strings.CutPrefix(s, "["); ok {
		host, after, ok := strings.Cut(rest, "]")
		if !ok {
			return "", "", errors.New("has no closing ]")
		}
		if port, ok = strings.CutPrefix(after, ":"); !ok {
			return "", "", errors.New("has no port after ]: write [address]:port")
		}
		if host == "" {
			return "", "", errors.New("has no address between [ and ]")
		}
		return "[" + host, port, nil
	}
	i := strings.LastIndexByte(s, ':')
	switch {
	case i < 0 && isDigits(strings.ReplaceAll(s, "-", "")) && s[0] != '-':
		return "", s, nil
	case i < 0 && s[0] == '-':
		return "", "", fmt.Errorf("%q is not a port number, 0-65535", s)
	case i < 0 && strings.Contains(s, "/"):
		return "", "", fmt.Errorf("is neither a port nor host:port: a Unix socket is unix://%s", s)
	case i < 0 && strings.Contains(s, "."):
		return "", "", fmt.Errorf("has no port: write %s:PORT", s)
	case i < 0:
		return "", "", fmt.Errorf("has no port: write %s:PORT, or :%s for a service name", s, s)
	case i == 0:
		return AnyHost, s[1:], nil
	case strings.Contains(s[:i], ":"):
		return "", "", errors.New("put an IPv6 address in brackets: [::1]:80")
	}
	return s[:i], s[i+1:], nil
}

func (e *Endpoint) setPort(s string) error {
	if s == "" {
		return errors.New("has no port after the colon")
	}
	if isServiceName(s) {
		e.Service = strings.ToLower(s)
		return nil
	}
	var err error
	e.Ports, err = ParsePortRange(s)
	return err
}

func (e *Endpoint) setHost(s string) error {
	s, bracketed := strings.CutPrefix(s, "[")
	host, zone, hasZone := strings.Cut(s, "%")
	if hasZone && !validZone(zone) {
		return fmt.Errorf("%q is not an interface name of 1 to %d characters", zone, maxInterface)
	}
	e.Host, e.Zone = host, zone
	if host == AnyHost && !bracketed || s == "" {
		return nil
	}
	addr, err := netip.ParseAddr(host)
	switch {
	case err == nil:
		e.Host = addr.String()
		return e.checkFamily(addr)
	case bracketed:
		return fmt.Errorf("%q is not an IPv6 address", host)
	case hasZone:
		return fmt.Errorf("%%%s goes after an IP address or *, not after the name %q", zone, host)
	}
	return checkHostName(host)
}

func (e *Endpoint) checkFamily(addr netip.Addr) error {
	if family := e.Network.family(); family != 0 && addr.Is4() != (family == 4) {
		return fmt.Errorf("%s is not an IPv%d address, which %s needs", addr, family, e.Network)
	}
	return nil
}

func checkHostName(s string) error {
	if len(s) > maxHostName {
		return fmt.Errorf("the host name is %d bytes long; the limit is %d", len(s), maxHostName)
	}
	for _, c := range s {
		if !isAlnum(c) && c != '-' && c != '.' && c != '_' {
			return fmt.Errorf("%q cannot stand in a host name", c)
		}
	}
	if strings.HasPrefix(s, "-") || strings.HasPrefix(s, ".") || strings.Contains(s, "..") {
		return fmt.Errorf("%q is not a host name", s)
	}
	if isDigits(strings.ReplaceAll(s, ".", "")) {
		return fmt.Errorf("%q is neither an IPv4 address (four numbers, 0-255) nor a host name", s)
	}
	return nil
}

func validZone(s string) bool {
	return s != "" && len(s) <= maxInterface && !strings.ContainsAny(s, "%/[] :") && s != "." && s != ".."
}

// isServiceName accepts what the registry of service names holds: letters,
// digits and "-+._*" with at least one letter, a letter or digit at both ends
// (RFC 6335 section 5.1, and the older names).
func isServiceName(s string) bool {
	if s == "" || !isAlnum(rune(s[0])) || !isAlnum(rune(s[len(s)-1])) {
		return false
	}
	letter := false
	for _, c := range s {
		switch {
		case c >= '0' && c <= '9' || strings.ContainsRune("-+._*", c):
		case isAlnum(c):
			letter = true
		default:
			return false
		}
	}
	return letter
}

func isAlnum(c rune) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

func isDigits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

// String writes the endpoint in the grammar of [ParseEndpoint]. TCP is the
// default and carries no scheme.
func (e Endpoint) String() string {
	switch {
	case e.Network == NetworkNone:
		return ""
	case e.Network == Stdio:
		return "-"
	case e.Network.IsUnix():
		return e.Network.String() + "://" + e.Path
	case e.Network == Vsock && e.CID == math.MaxUint32:
		return fmt.Sprintf("vsock://*:%d", e.VPort)
	case e.Network == Vsock:
		return fmt.Sprintf("vsock://%d:%d", e.CID, e.VPort)
	}
	scheme := e.Network.String() + "://"
	if e.Network == TCP {
		scheme = ""
	}
	port := e.Service
	if port == "" {
		port = e.Ports.String()
	}
	host := e.Host
	if e.Zone != "" {
		host += "%" + e.Zone
	}
	switch {
	case host == "" && e.Service != "":
		// Only ":name" can be written without a host; it means all addresses.
		return scheme + "localhost:" + port
	case host == "":
		return scheme + port
	case strings.Contains(host, ":"):
		return scheme + "[" + host + "]:" + port
	}
	return scheme + host + ":" + port
}

// MarshalText implements [encoding.TextMarshaler].
func (e Endpoint) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler]. Empty text is the zero Endpoint.
func (e *Endpoint) UnmarshalText(b []byte) (err error) {
	if len(b) == 0 {
		*e = Endpoint{}
		return nil
	}
	*e, err = ParseEndpoint(string(b))
	return err
}

// WithPort returns the endpoint with this one port.
func (e Endpoint) WithPort(port uint16) Endpoint {
	e.Ports, e.Service = PortRange{First: port, Last: port}, ""
	return e
}

// PortResolver knows port numbers by service name; [net.Resolver] is one.
type PortResolver interface {
	LookupPort(ctx context.Context, network, service string) (int, error)
}

// ResolveService replaces a service name by its port number. Other endpoints
// come back as they are.
func (e Endpoint) ResolveService(ctx context.Context, r PortResolver) (Endpoint, error) {
	if e.Service == "" {
		return e, nil
	}
	p, err := r.LookupPort(ctx, e.Network.Protocol().String(), e.Service)
	if err != nil {
		return e, fmt.Errorf("endpoint %q: %w", e, err)
	}
	return e.WithPort(uint16(p)), nil
}

// Addr returns the endpoint's address if Host is a literal IP address, with
// its zone if it is IPv6.
func (e Endpoint) Addr() (netip.Addr, bool) {
	addr, err := netip.ParseAddr(e.Host)
	if err != nil {
		return netip.Addr{}, false
	}
	if addr.Is6() && e.Zone != "" {
		addr = addr.WithZone(e.Zone)
	}
	return addr, true
}

// ListenArgs returns the network and address that Go's net package takes to
// listen here: loopback where no host was given. It fails for port ranges,
// unresolved service names and networks that net cannot open.
func (e Endpoint) ListenArgs() (network, address string, err error) {
	host := e.Host
	switch {
	case host == AnyHost && e.Network.family() == 4:
		host = "0.0.0.0"
	case host == AnyHost:
		host = ""
	case host == "" && e.Network.family() == 6:
		host = "::1"
	case host == "":
		host = "127.0.0.1"
	}
	return e.netArgs(host)
}

// DialArgs returns the network and address that Go's net package takes to
// connect here: localhost where no host was given. It fails like
// [Endpoint.ListenArgs], and for port 0.
func (e Endpoint) DialArgs() (network, address string, err error) {
	host := e.Host
	if host == "" || host == AnyHost {
		host = "localhost"
	}
	if e.Network.IsIP() && e.Service == "" && e.Ports.Last == 0 {
		return "", "", fmt.Errorf("endpoint %q: port 0 cannot be connected to", e)
	}
	return e.netArgs(host)
}

func (e Endpoint) netArgs(host string) (network, address string, err error) {
	switch e.Network {
	case Unix, Unixgram:
		return e.Network.String(), e.Path, nil
	case Seqpacket:
		return "unixpacket", e.Path, nil
	case Vsock, Stdio, NetworkNone:
		return "", "", fmt.Errorf("endpoint %q cannot be used here", e)
	}
	if e.Service != "" {
		return "", "", fmt.Errorf("endpoint %q: the service name is not resolved", e)
	}
	if e.Ports.Len() != 1 {
		return "", "", fmt.Errorf("endpoint %q names %d ports where one is needed", e, e.Ports.Len())
	}
	network = e.Network.String()
	if e.Network == TLS {
		network = "tcp"
	}
	if a, ok := e.Addr(); ok && a.Is4() && e.Network.family() == 0 {
		network += "4" // "tcp" would listen on 0.0.0.0 with a dual-stack IPv6 socket
	}
	if e.Zone != "" && strings.Contains(host, ":") {
		host += "%" + e.Zone
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return network, host + ":" + strconv.Itoa(int(e.Ports.First)), nil
}
