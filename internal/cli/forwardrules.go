package cli

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/relay"
	"github.com/fivetuple/fivetuple/stream"
)

// rule is one that has been understood.
type rule struct {
	ruleFlags
	relay.Config
}

// readRules reads a file of rules: a line for each, written as the arguments of ft
// forward. A line that ends in a backslash goes on in the next.
func readRules(path string) ([]rule, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	all, err := parseRules(b)
	if err != nil {
		return nil, &codeError{exitUsage, fmt.Errorf("%s: %w", path, err)}
	}
	return all, nil
}

func parseRules(b []byte) (all []rule, err error) {
	lines := bufio.NewScanner(bytes.NewReader(b))
	lines.Buffer(nil, 1<<20)
	text, first := "", 0
	for n := 1; lines.Scan(); n++ {
		if text == "" {
			first = n
		}
		line, more := strings.CutSuffix(lines.Text(), `\`)
		text += line
		if more {
			text += " "
			continue
		}
		r, ok, err := parseRule(text)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", first, err)
		}
		if ok {
			all = append(all, r)
		}
		text = ""
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if text != "" {
		return nil, fmt.Errorf("line %d: it ends in a backslash, and nothing follows", first)
	}
	if len(all) == 0 {
		return nil, errors.New("there is no rule in it: write LISTEN TARGET, as 8080 10.0.0.5:80")
	}
	return all, sameListener(all)
}

// parseRule reads a line. It is false for one without a rule.
func parseRule(line string) (r rule, ok bool, err error) {
	words := strings.Fields(line)
	for i, w := range words {
		if strings.HasPrefix(w, "#") {
			words = words[:i]
			break
		}
		if strings.ContainsAny(w, `"'`) {
			return r, false, fmt.Errorf("%s: no shell reads this, so it needs no quotes", w)
		}
	}
	if len(words) == 0 {
		return r, false, nil
	}
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	flags.Usage = func() {}
	r.register(flags)
	if err := flags.Parse(words); errors.Is(err, pflag.ErrHelp) {
		return r, false, errors.New("--help is for the command line")
	} else if err != nil {
		return r, false, err
	}
	r.Config, err = r.config(flags.Args())
	return r, true, err
}

// sameListener refuses two rules for one port.
func sameListener(all []rule) error {
	for i := range all {
		for j := range i {
			if overlap(all[j].Listen, all[i].Listen) {
				return fmt.Errorf("two rules listen on %s: %s and %s", commonPort(all[i].Listen), all[j].Listen, all[i].Listen)
			}
		}
	}
	return nil
}

func commonPort(e fivetuple.Endpoint) string {
	if e.Network == fivetuple.Unix {
		return e.Path
	}
	return "the same port"
}

// overlap says whether two endpoints surely cannot both be listened on.
func overlap(a, b fivetuple.Endpoint) bool {
	if a.Network == fivetuple.Unix || b.Network == fivetuple.Unix {
		return a.Network == b.Network && a.Path == b.Path
	}
	if !a.Network.IsIP() || a.Network.Protocol() != b.Network.Protocol() || a.Service != b.Service {
		return a == b
	}
	if a.Ports.First == 0 || a.Ports.First > b.Ports.Last || b.Ports.First > a.Ports.Last {
		return false
	}
	place := func(e fivetuple.Endpoint) string {
		if e.Host == "" || e.Host == "localhost" {
			return "127.0.0.1"
		}
		return e.Host
	}
	return place(a) == place(b) || a.Host == fivetuple.AnyHost || b.Host == fivetuple.AnyHost
}

// exposed says whether anybody who reaches this host reaches the rule.
func (r *rule) exposed() bool {
	if !r.Listen.Network.IsIP() || len(r.allow) > 0 || r.tls.ClientCAFile != "" {
		return false
	}
	a, literal := r.Listen.Addr()
	return !(literal && a.IsLoopback() || r.Listen.Host == "" || r.Listen.Host == "localhost")
}

// targetsText names the targets of a rule.
func (r *rule) targetsText() string {
	var all []string
	for _, t := range r.Targets {
		all = append(all, t.String())
	}
	if len(r.Names) > 0 {
		all = append(all, plural(len(r.Names), "server name"))
	}
	return strings.Join(all, ", ")
}

// transparentRouting is what the kernel has to be told so that answers to addresses of
// clients come to this host's sockets (Documentation/networking/tproxy.rst).
const transparentRouting = `answers of the targets go to the clients' addresses, and must come by this host
to the relay. Route them here (on a target: ip route add default via THIS-HOST),
and as root on this host, once:
  ip rule add fwmark 1 lookup 100
  ip route add local default dev lo table 100
  ip -6 rule add fwmark 1 lookup 100
  ip -6 route add local default dev lo table 100
  nft add table inet ft
  nft 'add chain inet ft prerouting { type filter hook prerouting priority mangle; }'
  nft add rule inet ft prerouting socket transparent 1 meta mark set 1`

// bounds are the limits of a rule, and the sources that speak the PROXY protocol.
func (r *rule) bounds() (l stream.Limits, proxies []netip.Prefix, err error) {
	l = r.limits
	if l.Allow, err = parsePrefixes("--allow", r.allow); err != nil {
		return l, nil, err
	}
	if l.Deny, err = parsePrefixes("--deny", r.deny); err != nil {
		return l, nil, err
	}
	proxies, err = parsePrefixes("--accept-proxy", r.acceptProxy)
	return l, proxies, err
}
