package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// scanRaces scans all ports of loopback, where ten listen, against nmap.
// Netcat is no contender: `nc -z` connects to itself on a few ephemeral ports at
// each run and reports them open.
func scanRaces(ft string) ([]race, func(), error) {
	var listeners []int
	done := func() {
		for _, fd := range listeners {
			syscall.Close(fd)
		}
	}
	for range 10 {
		fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err == nil {
			listeners = append(listeners, fd)
			err = syscall.Listen(fd, 128) // on a port of the kernel's choice
		}
		if err != nil {
			done()
			return nil, nil, fmt.Errorf("listen: %w", err)
		}
	}
	return []race{{
		name: "scan", what: "all 65,535 TCP ports of 127.0.0.1, 10 of them open, by connect(2)",
		ours: contender{
			name:  "ft scan",
			run:   printed("", ft, "scan", "127.0.0.1", "-p", "1-65535", "-o", "csv"),
			found: ports(`^127\.0\.0\.1,[^,]*,(\d+),tcp,open`),
		},
		theirs: []contender{{
			name:   "nmap -sT",
			run:    printed("nmap", "nmap", "-sT", "-n", "-Pn", "-p-", "127.0.0.1"),
			found:  ports(`^(\d+)/tcp +open`),
			target: 1,
		}},
	}}, done, nil
}

// printed runs a command, of a Debian package unless that is "". Exit code 1 is
// no error: what was asked for is not there.
func printed(pkg string, args ...string) func(out *os.File) error {
	return func(out *os.File) error {
		cmd := exec.Command(args[0], args[1:]...)
		var stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = out, &stderr
		err := cmd.Run()
		switch {
		case err != nil && cmd.ProcessState == nil:
			return fmt.Errorf("%w: apt-get install %s", err, pkg)
		case err != nil && cmd.ProcessState.ExitCode() != 1:
			return fmt.Errorf("%w: %s", err, stderr.Bytes())
		}
		return nil
	}
}

// ports returns the open ports in what a scanner prints, sorted.
func ports(pattern string) func([]byte) (string, error) {
	re := regexp.MustCompile(pattern)
	return func(printed []byte) (string, error) {
		var open []int
		for lines := bufio.NewScanner(bytes.NewReader(printed)); lines.Scan(); {
			if m := re.FindStringSubmatch(lines.Text()); m != nil {
				n, _ := strconv.Atoi(m[1])
				open = append(open, n)
			}
		}
		slices.Sort(open)
		return strings.Trim(fmt.Sprint(open), "[]"), nil
	}
}
