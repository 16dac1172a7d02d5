// Command gen turns IANA's Service Name and Transport Protocol Port Number Registry into the text that package port embeds:
//
//	go run ./port/internal/gen -in service-names-port-numbers.csv
//
// The input is the CSV file published at https://www.iana.org/assignments/service-names-port-numbers/. The output depends on nothing else.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
)

func main() {
	if err := run(os.Args[1:], os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func run(args []string, stderr io.Writer) error {
	flags := flag.NewFlagSet("gen", flag.ContinueOnError)
	flags.SetOutput(stderr)
	in := flags.String("in", "service-names-port-numbers.csv", "the registry as IANA's CSV `file`")
	out := flags.String("out", "port/iana.txt", "the `file` to write")
	date := flags.String("date", "", "the registry's `date`, if not the latest one in it (YYYY-MM-DD)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return errors.New("only flags are expected, the registry file is -in")
	}

	file, err := os.Open(*in)
	if err != nil {
		return fmt.Errorf("open the registry: %w", err)
	}
	defer file.Close()
	rows, latest, err := read(file)
	if err != nil {
		return fmt.Errorf("%s: %w", *in, err)
	}
	if *date == "" {
		*date = latest
	}
	if *date == "" {
		return fmt.Errorf("%s: no row has a date: say with -date as of when the registry is", *in)
	}

	var text bytes.Buffer
	services, dropped := merge(rows)
	write(&text, services, *date)
	for _, r := range dropped {
		fmt.Fprintf(stderr, "gen: left out %d/%s %q: not a service name\n", r.port, r.protocol, r.name)
	}
	return os.WriteFile(*out, text.Bytes(), 0o644)
}
