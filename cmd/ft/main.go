// Command ft does everything a port and a socket can do: see `ft --help`.
package main

import (
	"os"

	"github.com/fivetuple/fivetuple/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
