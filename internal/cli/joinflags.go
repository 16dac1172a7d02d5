package cli

import (
	"errors"
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
	maxMessage string
}

// joinFlagNames are the flags of register.
var joinFlagNames = []string{"quit-after", "crlf", "telnet", "hex", "timestamps", "rate", "messages", "max-message"}

func (f *joinFlags) register(c *cobra.Command) {
	fl := c.Flags()
	fl.DurationVarP(&f.quitAfter, "quit-after", "q", 0, "the `duration` that is left once one side has ended (default: no limit; with datagrams 1s)")
	fl.BoolVarP(&f.crlf, "crlf", "C", false, "send line feeds as CR LF")
	fl.BoolVarP(&f.telnet, "telnet", "t", false, "answer telnet negotiation")
	fl.BoolVarP(&f.hex, "hex", "x", false, "show what goes through in hexadecimal, on standard error")
	fl.BoolVar(&f.timestamps, "timestamps", false, "show what goes through with the time, on standard error")
	fl.StringVar(&f.rate, "rate", "", "at most this many `bytes` a second, each way: 1MiB, 500kB")
	fl.StringVar(&f.messages, "messages", "", "how messages stand in standard input and output: line, length (4 bytes, big-endian, before each) or datagram; the `kind`")
	fl.StringVar(&f.maxMessage, "max-message", "", "the longest message, in `bytes`: 128KiB (default 65507)")
}

// options makes the options of package join. quitGiven says that --quit-after was
// given; without it a peer that makes no end of file gets a second.
func (f joinFlags) options(a *app, c *cobra.Command, datagrams bool) (join.Options, error) {
	o := join.Options{QuitAfter: f.quitAfter, CRLF: f.crlf, Telnet: f.telnet}
	switch {
	case a.format != formatTable:
		return o, fmt.Errorf("%s has no results to print as -o %s", c.CommandPath(), a.format)
	case f.quitAfter < 0:
		return o, errors.New("--quit-after must not be negative")
	}
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
	if f.maxMessage != "" {
		size, err := sockopt.ParseBytes(f.maxMessage)
		if err != nil || size <= 0 || size > 1<<30 {
			return o, fmt.Errorf("--max-message: %q is not a size of 1 byte to 1 GiB: 65536, 128KiB", f.maxMessage)
		}
		o.MaxMessage = int(size)
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

// ofOptions makes an error of --opt for another kind of socket one of the command
// line: no other circumstances would help.
func ofOptions(err error) error {
	if errors.Is(err, sockopt.ErrSocket) {
		return &codeError{exitUsage, err}
	}
	return err
}
