package cli

import (
	"cmp"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/fivetuple/fivetuple/sockopt"
)

// showOptions prints options in full, one below the other.
func showOptions(w io.Writer, options []optionRow) error {
	var b strings.Builder
	for i, o := range options {
		if i > 0 {
			b.WriteByte('\n')
		}
		o.show(&b)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (o optionRow) show(b *strings.Builder) {
	fmt.Fprintf(b, "%s (%s)\n%s\n\n", o.Name, o.Constant, wrap(o.Doc, "  "))
	line := func(what, text string) {
		if text != "" {
			fmt.Fprintf(b, "  %-11s%s\n", what, strings.TrimLeft(wrap(text, strings.Repeat(" ", 13)), " "))
		}
	}
	line("aliases", strings.Join(o.Aliases, ", "))
	line("written", o.written())
	line("values", strings.Join(valueNames(o.Option), ", "))
	line("default", o.Default)
	line("sockets", o.Sockets.String())
	line("level", o.LevelName())
	line("access", accessWords[o.Access])
	line("privilege", o.Privilege)
	line("with it", twinWords(o.Twin))
	line("since", "Linux "+o.Since)
	line("manual", o.Man)
	if example := exampleOf(o.Option); example != "" {
		line("example", "--opt "+example)
	}
}

var accessWords = map[sockopt.Access]string{
	sockopt.ReadWrite: "set and read",
	sockopt.ReadOnly:  "read only",
	sockopt.WriteOnly: "set only, it cannot be read back",
}

func twinWords(twin string) string {
	if twin == "" {
		return ""
	}
	return "on an IPv6 socket " + twin + " is set, too"
}

// written says how values of the option are written, with unit and range.
func (o optionRow) written() string {
	text := kindWords[o.Kind]
	if o.Kind == sockopt.Int && len(o.Values) > 0 {
		text = "a number, or one of the values"
	}
	if o.Kind == sockopt.Duration {
		text += ", or a number of " + o.Unit
	}
	if o.Unit == "bytes/s" {
		text = "a rate in bytes or bits a second: 64KiB, 1MB, 100Mbit"
	}
	if o.Kind == sockopt.Int && (o.Min != 0 || o.Max != 0) {
		text += fmt.Sprintf(", %d to %d", o.Min, o.Max)
	}
	return text
}

var kindWords = map[sockopt.Kind]string{
	sockopt.Bool:      "on or off; the name alone means on",
	sockopt.Int:       "a number",
	sockopt.Flags:     "values joined by +, or a number",
	sockopt.Bytes:     "a size: 4096, 64KiB, 1MB",
	sockopt.Duration:  "a duration: 30s, 1m30s, 250ms",
	sockopt.String:    "text",
	sockopt.Hex:       "bytes in hexadecimal",
	sockopt.Linger:    "off, or a duration in whole seconds; 0 resets the connection",
	sockopt.KeepAlive: "on, off, or IDLE[/INTERVAL[/COUNT]]",
	sockopt.Interface: "the name or the index of a network interface",
	sockopt.PortRange: "LOW-HIGH, or off",
	sockopt.Group:     "GROUP or GROUP%INTERFACE, an address and an interface",
	sockopt.Report:    "not at all, it can only be read",
}

// exampleOf returns a setting that could be given to --opt, "" if the option
// cannot be set.
func exampleOf(o sockopt.Option) string {
	switch {
	case o.Access == sockopt.ReadOnly:
		return ""
	case o.Kind == sockopt.Bool:
		return o.Name
	}
	value := cmp.Or(exampleValues[o.Name], exampleKinds[o.Kind])
	switch {
	case value != "":
	case len(o.Values) > 0:
		value = o.Values[len(o.Values)-1].Name
	default:
		value = strconv.FormatInt(max(1, o.Min), 10)
	}
	return o.Name + "=" + value
}

var exampleKinds = map[sockopt.Kind]string{
	sockopt.Bytes:     "64KiB",
	sockopt.Duration:  "5s",
	sockopt.Linger:    "5s",
	sockopt.Hex:       "01000000",
	sockopt.KeepAlive: "30s/10s/3",
	sockopt.Interface: "eth0",
	sockopt.PortRange: "40000-41000",
	sockopt.Group:     "239.1.1.1%eth0",
}

// exampleValues are those of options that want another value than the kind's.
var exampleValues = map[string]string{
	"addr-preferences":   "public",
	"bindtodevice":       "eth0",
	"block-source":       "192.0.2.1@239.1.1.1%eth0",
	"busy-poll":          "50us",
	"congestion":         "cubic",
	"delack-max":         "40ms",
	"fastopen":           "256",
	"fastopen-key":       "000102030405060708090a0b0c0d0e0f",
	"hops":               "64",
	"join-source":        "192.0.2.1@232.1.1.1%eth0",
	"keepalive-count":    "3",
	"keepalive-idle":     "30s",
	"keepalive-interval": "10s",
	"leave-source":       "192.0.2.1@232.1.1.1%eth0",
	"max-pacing-rate":    "100Mbit",
	"maxseg":             "1400",
	"minhops":            "255",
	"minttl":             "255",
	"mtu-discover":       "do",
	"mtu-discover6":      "do",
	"mtu6":               "1400",
	"multicast-hops":     "8",
	"multicast-ttl":      "8",
	"rcvlowat":           "4KiB",
	"rto-min":            "20ms",
	"segment":            "1400",
	"syncnt":             "3",
	"tclass":             "af41",
	"timestamping":       "rx-software",
	"tos":                "af41",
	"ttl":                "64",
	"tx-delay":           "10ms",
	"udp-encap":          "espinudp",
	"ulp":                "tls",
	"unblock-source":     "192.0.2.1@239.1.1.1%eth0",
}
