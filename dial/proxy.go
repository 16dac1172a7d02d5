package dial

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"syscall"
	"time"

	"github.com/fivetuple/fivetuple"
)

// dialProxy connects to the proxy, and has it connect to the endpoint.
func (d Dialer) dialProxy(ctx context.Context, e fivetuple.Endpoint) (connection, error) {
	at, ask, err := parseProxy(d.Proxy)
	if err != nil {
		return connection{}, err
	}
	t, err := proxyTarget(e)
	if err != nil {
		return connection{}, err
	}
	name := d.Proxy.Scheme + "://" + d.Proxy.Host
	if at, err = at.ResolveService(ctx, d.resolver()); err != nil {
		return connection{}, fmt.Errorf("proxy %s: %w", name, err)
	}
	conn, err := d.dialDirect(ctx, at)
	if err != nil {
		return connection{}, fmt.Errorf("proxy %s: %w", name, err)
	}
	err = within(ctx, conn, func() error { return ask(conn, t, d.Proxy.User) })
	if err != nil {
		conn.Close()
		return connection{}, fmt.Errorf("proxy %s: %w", name, d.cut(ctx, "the proxy has not answered", err))
	}
	return conn, nil
}

// target is where a proxy shall connect to.
type target struct {
	host string // a name or a literal address
	port uint16
}

// String returns host:port, an IPv6 address in brackets.
func (t target) String() string { return net.JoinHostPort(t.host, strconv.Itoa(int(t.port))) }

// isAddr says whether the host of a target is an address.
func (t target) isAddr() (netip.Addr, bool) {
	a, err := netip.ParseAddr(t.host)
	return a, err == nil
}

// proxyTarget is the endpoint as a proxy can be told of it.
func proxyTarget(e fivetuple.Endpoint) (target, error) {
	_, literal := e.Addr()
	switch {
	case e.Zone != "":
		return target{}, fmt.Errorf("%%%s is an interface of this machine and means nothing to a proxy", e.Zone)
	case !literal && (e.Network == fivetuple.TCP4 || e.Network == fivetuple.TCP6):
		return target{}, fmt.Errorf("the proxy resolves the name and chooses the family: write tcp://, not %s://", e.Network)
	}
	return target{hostOf(e), e.Ports.First}, nil
}

// asker asks the proxy at the other end of a new connection to connect to a target.
// It reads no byte of what the target says.
type asker func(rw io.ReadWriter, t target, user *url.Userinfo) error

// parseProxy returns where a proxy is and how it is asked. Without a port that is
// 1080 for SOCKS5 and 80 for HTTP.
func parseProxy(u *url.URL) (fivetuple.Endpoint, asker, error) {
	ask, port := asker(nil), ""
	switch u.Scheme {
	case "socks5", "socks5h": // with h, curl's way to say that the proxy resolves names
		ask, port = askSOCKS5, "1080"
	case "http":
		ask, port = askHTTP, "80"
	default:
		return fivetuple.Endpoint{}, nil, fmt.Errorf("proxy %s: want socks5://[user:password@]host:port or http://[user:password@]host:port", u.Redacted())
	}
	if u.Hostname() == "" || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		return fivetuple.Endpoint{}, nil, fmt.Errorf("proxy %s: want %s://[user:password@]host:port and nothing more", u.Redacted(), u.Scheme)
	}
	if u.Port() != "" {
		port = u.Port()
	}
	e, err := fivetuple.ParseEndpoint(net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return e, nil, fmt.Errorf("proxy %s: %w", u.Redacted(), err)
	}
	return e, ask, nil
}

// within runs fn, whose reads and writes on conn fail when ctx ends.
func within(ctx context.Context, conn net.Conn, fn func() error) error {
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	err := fn()
	if !stop() && err == nil {
		err = ctx.Err() // the deadline is set, or is about to be
	}
	return err
}

// hungUp names the end of file while a proxy should answer.
func hungUp(err error, speaks string) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) {
		return fmt.Errorf("it closed the connection before it had answered: does it speak %s? (%w)", speaks, err)
	}
	return err
}
