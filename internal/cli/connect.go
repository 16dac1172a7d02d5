package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/printable"
	"github.com/fivetuple/fivetuple/join"
	"github.com/fivetuple/fivetuple/secure"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/stats"
)

type connectFlags struct {
	joinFlags
	timeout     time.Duration
	idle        time.Duration
	source      string
	iface       string
	proxy       string
	tls         secure.Client
	retry       int
	reconnect   bool
	zero        bool
	verbose     bool
	unconnected bool
	sendFile    string
	recvFile    string
	takeFD      bool
	options     sockopt.Settings
}

func (a *app) connect() *cobra.Command {
	var f connectFlags
	c := &cobra.Command{
		Use:   "connect [flags] ENDPOINT [ENDPOINT] [-- COMMAND [ARG...]]",
		Short: "Connect standard input and output to a socket, or two sockets",
		Long: `connect joins standard input and output to a socket, or two endpoints with each
other. At the end of standard input the peer gets end of file, and the rest of
its answer is still read; --quit-after bounds that. A name with several
addresses is tried as RFC 8305 says, and if none works each tells why.

tls://host:443 verifies the certificate. A socket that keeps messages (udp,
unixgram, seqpacket) gets one for each read of standard input, or as --messages
says. Exit code 3 if the connection fails or is reset.`,
		Example: `  ft connect example.org:80 --crlf            talk to a server by hand
  ft connect tls://example.org:443 -v         and show the certificates
  ft connect -z db:5432 --timeout 2s          is it up?`,
		Args: cobra.MinimumNArgs(0),
		RunE: func(c *cobra.Command, args []string) error {
			p, err := f.plan(a, c, args)
			if err != nil {
				return &codeError{exitUsage, err}
			}
			return ofOptions(a.runConnect(c.Context(), p))
		},
	}
	fl := c.Flags()
	fl.DurationVar(&f.timeout, "timeout", 10*time.Second, "how long connecting may take, with names and TLS; 0 has no bound")
	fl.DurationVar(&f.idle, "idle", 0, "end when nothing moved for this `duration`: 30s, 5m")
	fl.StringVar(&f.source, "source", "", "local `ADDR`, :PORT or ADDR:PORT to connect from")
	fl.StringVar(&f.iface, "interface", "", "`interface` to connect through")
	fl.StringVar(&f.proxy, "proxy", "", "connect through the proxy at this `URL`: socks5://[USER:PW@]HOST:PORT or http://...")
	fl.StringVar(&f.tls.CAFile, "cafile", "", "authorities to trust instead of the system's, a PEM `file`")
	fl.StringVar(&f.tls.CertFile, "cert", "", "client certificate, a PEM `file`")
	fl.StringVar(&f.tls.KeyFile, "key", "", "its private key, a PEM `file`; default: the file of --cert")
	fl.StringVar(&f.tls.ServerName, "sni", "", "server `name` to ask for and to verify, instead of the host")
	fl.StringSliceVar(&f.tls.ALPN, "alpn", nil, "application `protocols` to offer: h2,http/1.1")
	fl.StringVar(&f.tls.Pin, "pin", "", "trust just the certificate with this `fingerprint`: sha256:HEX")
	fl.BoolVar(&f.tls.Insecure, "insecure", false, "do not verify the server's certificate")
	fl.IntVar(&f.retry, "retry", 0, "try `N` more times to connect, a second apart and then less and less often")
	fl.BoolVar(&f.reconnect, "reconnect", false, "connect again when the connection is lost, until standard input ends")
	fl.BoolVarP(&f.zero, "zero", "z", false, "only test: exit code 0 if a connection can be made, 1 if the other side does not take it")
	fl.BoolVarP(&f.verbose, "verbose", "v", false, "tell of the connection, of options granted, and totals")
	fl.BoolVar(&f.unconnected, "unconnected", false, "UDP: receive from all, not only from the endpoint")
	fl.StringVar(&f.sendFile, "send-file", "", "send a `file`, with its checksum on standard error")
	fl.StringVar(&f.recvFile, "recv-file", "", "receive a `file`, with its checksum; it is there when it is whole")
	fl.BoolVar(&f.takeFD, "take-fd", false, "take a descriptor that a Unix socket passes, and use that: a socket, a file, or for COMMAND")
	f.joinFlags.register(c)
	optFlag(c, &f.options)
	return c
}

// connectPlan is a command line that has been understood.
type connectPlan struct {
	connectFlags
	near, far fivetuple.Endpoint // near is standard input and output, unless two are given
	source    netip.AddrPort
	proxy     *url.URL
	command   []string
	join      join.Options
}

func (f connectFlags) plan(a *app, c *cobra.Command, args []string) (connectPlan, error) {
	p := connectPlan{connectFlags: f, near: fivetuple.Endpoint{Network: fivetuple.Stdio}}
	if at := c.ArgsLenAtDash(); at >= 0 {
		args, p.command = args[:at], args[at:]
	}
	var ends []fivetuple.Endpoint
	for _, s := range args {
		e, err := fivetuple.ParseEndpoint(s)
		if err != nil {
			return p, err
		}
		ends = append(ends, e)
	}
	switch len(ends) {
	case 1:
		p.far = ends[0]
	case 2:
		p.near, p.far = ends[0], ends[1]
	default:
		return p, fmt.Errorf("connect takes one endpoint, or two to join, not %d: see `ft connect --help`", len(ends))
	}
	if p.far.Network == fivetuple.Stdio { // a far end has an address
		p.near, p.far = p.far, p.near
	}
	if p.far.Network == fivetuple.Stdio {
		return p, errors.New("- is standard input and output; name another endpoint to join it with")
	}
	if err := p.check(c); err != nil {
		return p, err
	}
	var err error
	if p.source, err = parseSource("--source", f.source); err != nil {
		return p, err
	}
	if f.proxy != "" {
		if p.proxy, err = url.Parse(f.proxy); err != nil || p.proxy.Host == "" || p.proxy.Scheme != "socks5" && p.proxy.Scheme != "http" {
			return p, fmt.Errorf("--proxy: %q is not socks5://HOST:PORT or http://HOST:PORT", f.proxy)
		}
	}
	p.join, err = f.joinFlags.options(a, c, p.near.Network.IsDatagram() || p.far.Network.IsDatagram())
	p.join.Idle = f.idle
	// A person would wait for nothing once the peer has ended.
	p.join.QuitWithB = p.near.Network == fivetuple.Stdio && isTerminal(a.in)
	return p, err
}

// parseSource reads ADDR, :PORT or ADDR:PORT, given by a flag.
func parseSource(flag, s string) (netip.AddrPort, error) {
	if s == "" {
		return netip.AddrPort{}, nil
	}
	if addr, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(addr, 0), nil
	}
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap, nil
	}
	if s[0] == ':' {
		if ports, err := fivetuple.ParsePortRange(s[1:]); err == nil && ports.Len() == 1 {
			return netip.AddrPortFrom(netip.Addr{}, ports.First), nil
		}
	}
	return netip.AddrPort{}, fmt.Errorf("%s: %q is not ADDR, :PORT or ADDR:PORT ([v6]:PORT)", flag, s)
}

func (a *app) runConnect(ctx context.Context, p connectPlan) error {
	outliveReaders()
	if p.zero {
		return a.testConnect(ctx, p)
	}
	if err := p.checkFile(); err != nil {
		return err
	}
	far, err := a.dialRetrying(ctx, p, p.far)
	if err != nil {
		return err
	}
	defer far.Close()
	switch {
	case p.takeFD:
		return a.takeDescriptors(ctx, p, far)
	case p.sendFile != "":
		return a.sendFile(ctx, p, far)
	case p.recvFile != "":
		return a.receiveFile(ctx, p, far)
	case p.reconnect:
		return a.joinReconnecting(ctx, p, far)
	}
	near, err := a.nearEnd(ctx, p)
	if err != nil {
		return err
	}
	defer near.Close()
	return a.joinEnds(ctx, p, near, far)
}

// testConnect tells by its exit code whether a connection can be made.
func (a *app) testConnect(ctx context.Context, p connectPlan) error {
	began := time.Now()
	conn, err := a.dialRetrying(ctx, p, p.far)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case isAnswer(err):
		return &codeError{exitNo, err}
	case err != nil:
		return err
	}
	conn.Close()
	if p.verbose {
		a.note("%s is open, %s", p.far, stats.FormatDuration(time.Since(began)))
	}
	return nil
}

// isAnswer says whether an error of connecting tells of the other side: that nobody
// listens there, answers, or speaks TLS. What this host lacks, a name, a right, an
// address, is no answer.
func isAnswer(err error) bool {
	var handshake *secure.HandshakeError
	return errors.As(err, &handshake) || !isOfFile(err) && slices.ContainsFunc([]error{
		syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EHOSTUNREACH, syscall.EHOSTDOWN, syscall.ETIMEDOUT,
		syscall.ENOENT, context.DeadlineExceeded, io.EOF, io.ErrUnexpectedEOF,
	}, func(e error) bool { return errors.Is(err, e) })
}

// joinEnds joins two ends to their end, and says how it ended.
func (a *app) joinEnds(ctx context.Context, p connectPlan, near, far join.End) error {
	_, err := a.join(ctx, p, near, far)
	return err
}

func (a *app) join(ctx context.Context, p connectPlan, near, far join.End) (join.Result, error) {
	o := p.join
	o.RecordsA, o.RecordsB = keepsRecords(p.near.Network), keepsRecords(p.far.Network)
	began := time.Now()
	result, err := join.Run(ctx, near, far, o)
	if p.verbose {
		a.note("sent %s, received %s in %s", stats.FormatBytes(result.AToB.Bytes), stats.FormatBytes(result.BToA.Bytes), stats.FormatDuration(time.Since(began)))
	}
	if ctx.Err() != nil {
		return result, nil // interrupted: that is how one ends it
	}
	if c, ok := far.(net.Conn); ok && p.far.Network == fivetuple.TLS {
		err = secure.Explain(err) // a client's certificate is refused only now
		if secure.Truncated(c) {
			a.warn("%s ended the connection without the end of TLS: what came may be cut short", p.far)
		}
	}
	return result, explainEnd(err)
}

// explainEnd says what EPIPE means of a socket; that of a file, whose reader has
// had enough, needs no word.
func explainEnd(err error) error {
	var op *net.OpError
	if errors.Is(err, syscall.EPIPE) && errors.As(err, &op) {
		return fmt.Errorf("write %s %s: the peer has closed the connection and takes no more", op.Net, op.Addr)
	}
	return err
}

// isOfFile says whether an error is one of standard input or output, and not of a
// socket.
func isOfFile(err error) bool {
	var file *fs.PathError
	return errors.As(err, &file)
}

func keepsRecords(n fivetuple.Network) bool { return n.IsDatagram() || n == fivetuple.Seqpacket }

// note tells the user of what goes on, on standard error.
func (a *app) note(format string, args ...any) {
	for line := range strings.Lines(fmt.Sprintf(format, args...)) {
		fmt.Fprintln(a.err, printable.Escape(strings.TrimSuffix(line, "\n")))
	}
}
