package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/fivetuple/fivetuple/join"
	"github.com/fivetuple/fivetuple/sockopt"
)

// joinFlags say how standard input and output, or two endpoints, are joined.
type joinFlags struct {
	quitAfter  time.Duration
	crlf       bool
	telnet     bool
	hex        bool
	timestamps bool
	rate       string
	messages   string
	maxMessage int
}

// joinFlagNames are the flags of register.
var joinFlagNames = []string{"quit-after", "crlf", "telnet", "hex", "timestamps", "rate", "messages"}

func (f *joinFlags) register(c *cobra.Command) {
	fl := c.Flags()
	fl.DurationVarP(&f.quitAfter, "quit-after", "q", 0, "how `long` the rest may take once one side has ended; default no limit, 1s for datagrams")
	fl.BoolVarP(&f.crlf, "crlf", "C", false, "send line feeds as CR LF")
	fl.BoolVarP(&f.telnet, "telnet", "t", false, "answer telnet negotiation")
	fl.BoolVarP(&f.hex, "hex", "x", false, "show what goes through in hexadecimal, on standard error")
	fl.BoolVar(&f.timestamps, "timestamps", false, "show what goes through with the time, on standard error")
	fl.StringVar(&f.rate, "rate", "", "at most so many bytes a second, each way: `1MiB`")
	fl.StringVar(&f.messages, "messages", "", "how messages stand in standard input and output: `line`, length (4 bytes, big-endian, before each) or datagram")
}

// options makes the options of package join. quitGiven says that --quit-after was
// given; without it a peer that makes no end of file gets a second.
func (f joinFlags) options(a *app, c *cobra.Command, datagrams bool) (join.Options, error) {
	o := join.Options{QuitAfter: f.quitAfter, CRLF: f.crlf, Telnet: f.telnet}
	if !c.Flags().Changed("quit-after") && datagrams {
		o.QuitAfter = time.Second
	}
	if c.Flags().Changed("quit-after") && f.quitAfter == 0 {
		o.QuitAfter = -1
	}
	if f.rate != "" {
		rate, err := sockopt.ParseBytes(f.rate)
		if err != nil || rate <= 0 {
			return o, fmt.Errorf("--rate: %q is not a number of bytes a second: 1MiB, 500kB, 100", f.rate)
		}
		o.Rate = rate
	}
	switch f.messages {
	case "":
	case "line", "lines":
		o.Messages = join.Lines
	case "length", "lengths":
		o.Messages = join.Lengths
	case "datagram", "datagrams":
		o.Messages = join.Datagrams
	default:
		return o, fmt.Errorf("--messages: %q is none of line, length, datagram", f.messages)
	}
	if f.hex || f.timestamps {
		o.Dump = &join.Dump{W: a.err, Hex: f.hex, Timestamps: f.timestamps}
	}
	return o, nil
}
