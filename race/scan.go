package main

import (
	"bufio"
	"bytes"
	"fmt"
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
func scanRaces(ft string) ([]race, error) {
	for range 10 {
		fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err == nil {
			err = syscall.Listen(fd, 128) // on a port of the kernel's choice, until the program ends
		}
		if err != nil {
			return nil, fmt.Errorf("listen: %w", err)
		}
	}
	return []race{{
		name: "scan", what: "all 65,535 TCP ports of 127.0.0.1, 10 of them open, by connect(2)",
		ours: contender{"ft scan", func() (string, error) {
			return ports(exec.Command(ft, "scan", "127.0.0.1", "-p", "1-65535", "-o", "csv"), `^127\.0\.0\.1,[^,]*,(\d+),tcp,open`)
		}},
		theirs: []contender{
			{"nmap -sT", func() (string, error) {
				return ports(exec.Command("nmap", "-sT", "-n", "-Pn", "-p-", "127.0.0.1"), `^(\d+)/tcp +open`)
			}},
		},
		target: 1,
	}}, nil
}

// ports runs a command and returns the open ports in what it prints, sorted.
func ports(cmd *exec.Cmd, pattern string) (string, error) {
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		return "", fmt.Errorf("%w: apt-get install nmap", err)
	}
	if err != nil && cmd.ProcessState.ExitCode() > 1 {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	re := regexp.MustCompile(pattern)
	var open []int
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		if m := re.FindStringSubmatch(lines.Text()); m != nil {
			n, _ := strconv.Atoi(m[1])
			open = append(open, n)
		}
	}
	slices.Sort(open)
	return strings.Trim(fmt.Sprint(open), "[]"), nil
}
