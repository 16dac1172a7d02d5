package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// lsRaces lists a table of many sockets, and parts of it.
func lsRaces(ft string, sockets int) ([]race, func(), error) {
	many, err := startHolding(sockets, false)
	if err != nil {
		return nil, nil, err
	}
	few, err := startHolding(100, true)
	if err != nil {
		many.close()
		return nil, nil, err
	}
	port, err := serveThree()
	if err != nil {
		many.close()
		few.close()
		return nil, nil, err
	}
	done := func() { many.close(); few.close() }
	what := fmt.Sprintf("%d TCP sockets held by %d processes: ", sockets, holders)
	start := contender{name: "ft version", run: printed("", ft, "version"), over: 20 * time.Millisecond}
	return []race{
		{
			name: "ls", what: what + "addresses and states",
			ours:   contender{name: "ft ls -a, ndjson", run: printed("", ft, "ls", "-a", "-o", "ndjson", "--columns", "proto,state,local,remote"), found: ftRows},
			theirs: []contender{{name: "ss -Htan", run: printed("iproute2", "ss", "-Htan"), found: ssRows, target: 0.5}},
		},
		{
			name: "ls, table", what: what + "addresses and states",
			ours:   contender{name: "ft ls -at", run: printed("", ft, "ls", "-at", "--columns", "state,recvq,sendq,local,remote"), found: tableRows},
			theirs: []contender{{name: "ss -Htan", run: printed("iproute2", "ss", "-Htan"), found: ssRows, target: 0.5}},
		},
		{
			name: "owners", what: what + "and who holds them",
			ours:   contender{name: "ft ls -a, ndjson", run: printed("", ft, "ls", "-a", "-o", "ndjson", "--columns", "proto,state,local,remote,process"), found: ftOwners},
			theirs: []contender{{name: "ss -Htanp", run: printed("iproute2", "ss", "-Htanp"), found: ssOwners, target: 0.12}},
		},
		{ // these two do not print every descriptor
			name: "processes", what: what + "and which process holds them",
			ours: contender{name: "ft ls -a, ndjson", run: printed("", ft, "ls", "-a", "-o", "ndjson", "--columns", "proto,state,local,remote,process"), found: ftPIDs},
			theirs: []contender{
				{name: "lsof -nP -i", run: printed("lsof", "lsof", "-nP", "-i"), found: lsofPIDs, target: 0.15},
				{name: "netstat -tanp", run: printed("net-tools", "netstat", "-tanp"), found: netstatPIDs},
			},
		},
		{
			name: "who", what: what + "who holds another port, with 3 connections",
			ours:   contender{name: "ft who", run: printed("", ft, "who", ":"+port), found: names(fmt.Sprintf("pid %d", os.Getpid()))},
			theirs: []contender{start},
		},
		{
			name: "one port", what: what + "the sockets of another port, with 3 connections",
			ours:   contender{name: "ft ls sport = :PORT", run: printed("", ft, "ls", "sport = :"+port), found: names(fmt.Sprintf("/%d\n", os.Getpid()))},
			theirs: []contender{start},
		},
		{
			name: "listeners", what: "what listens, among many sockets and among 100",
			ours: contender{name: "among many", run: printed("", ft, "ls"), found: names("tcp ")},
			theirs: []contender{{name: "among 100", found: names("tcp "), target: 1.3, run: func(out *os.File) error {
				return few.within(func() error { return printed("", ft, "ls")(out) })
			}}},
		},
	}, done, nil
}

// serveThree listens, with three connections, until the program ends.
func serveThree() (port string, err error) {
	listener, to, err := listenTCP([4]byte{127, 0, 0, 1})
	for i := 0; i < 3 && err == nil; i++ {
		_, err = connectTCP(listener, to, true)
	}
	if err != nil {
		return "", err
	}
	return strconv.Itoa(to.Port), nil
}

// names finds the text in what was printed.
func names(text string) func([]byte) (string, error) {
	return func(printed []byte) (string, error) {
		if !bytes.Contains(printed, []byte(text)) {
			return "", fmt.Errorf("%q is not in what it printed: %.200q", text, printed)
		}
		return text, nil
	}
}

// digest stands for a set of lines.
func digest(lines []string) (string, error) {
	if len(lines) == 0 {
		return "", fmt.Errorf("nothing was found")
	}
	slices.Sort(lines)
	return fmt.Sprintf("%d sockets, %x", len(lines), sha256.Sum256([]byte(strings.Join(lines, "\n")))), nil
}

type ftRow struct {
	Protocol, State, Local, Remote string
	Owners                         []struct{ PID, FD int }
}

func eachRow(printed []byte, line func(ftRow) []string) (string, error) {
	var lines []string
	for d := json.NewDecoder(bytes.NewReader(printed)); d.More(); {
		var row ftRow
		if err := d.Decode(&row); err != nil {
			return "", err
		}
		if row.Protocol == "tcp" {
			lines = append(lines, line(row)...)
		}
	}
	return digest(lines)
}

func ftRows(printed []byte) (string, error) {
	return eachRow(printed, func(r ftRow) []string { return []string{r.State + " " + r.Local + " " + r.Remote} })
}

func ftOwners(printed []byte) (string, error) {
	return eachRow(printed, func(r ftRow) []string {
		var lines []string
		for _, o := range r.Owners {
			lines = append(lines, fmt.Sprintf("%s %s %s %d %d", r.State, r.Local, r.Remote, o.PID, o.FD))
		}
		return lines
	})
}

func ftPIDs(printed []byte) (string, error) {
	return eachRow(printed, func(r ftRow) []string {
		if len(r.Owners) == 0 {
			return nil
		}
		return []string{fmt.Sprintf("%s %s %s %d", r.State, r.Local, r.Remote, r.Owners[0].PID)}
	})
}

func eachLine(printed []byte, line func(fields []string) []string) (string, error) {
	var lines []string
	for s := bufio.NewScanner(bytes.NewReader(printed)); s.Scan(); {
		lines = append(lines, line(strings.Fields(s.Text()))...)
	}
	return digest(lines)
}

func tableRows(printed []byte) (string, error) {
	return eachLine(printed, func(f []string) []string {
		if f[0] == "STATE" {
			return nil
		}
		return []string{f[0] + " " + f[3] + " " + noPeer(f[4])}
	})
}

// noPeer is "" for the peer of a socket that has none.
func noPeer(s string) string {
	if strings.HasSuffix(s, ":*") {
		return ""
	}
	return s
}

var shortStates = map[string]string{"ESTAB": "ESTABLISHED"}

func state(s string) string {
	s = strings.ReplaceAll(s, "-", "_")
	if long, ok := shortStates[s]; ok {
		return long
	}
	return s
}

func ssRows(printed []byte) (string, error) {
	return eachLine(printed, func(f []string) []string { return []string{state(f[0]) + " " + f[3] + " " + noPeer(f[4])} })
}

var ssHolder = regexp.MustCompile(`pid=(\d+),fd=(\d+)`)

func ssOwners(printed []byte) (string, error) {
	return eachLine(printed, func(f []string) []string {
		var lines []string
		for _, m := range ssHolder.FindAllStringSubmatch(strings.Join(f[5:], " "), -1) {
			lines = append(lines, fmt.Sprintf("%s %s %s %s %s", state(f[0]), f[3], noPeer(f[4]), m[1], m[2]))
		}
		return lines
	})
}

// lsofPIDs reads "COMMAND PID USER FD TYPE DEVICE SIZE/OFF NODE NAME (STATE)",
// with NAME "LOCAL->REMOTE". It cuts descriptors to four places.
func lsofPIDs(printed []byte) (string, error) {
	return eachLine(printed, func(f []string) []string {
		if len(f) < 10 || f[7] != "TCP" {
			return nil
		}
		local, remote, _ := strings.Cut(f[8], "->")
		if port, any := strings.CutPrefix(local, "*:"); any {
			local = "0.0.0.0:" + port
		}
		return []string{fmt.Sprintf("%s %s %s %s", strings.Trim(f[9], "()"), local, remote, f[1])}
	})
}

// netstatPIDs reads "tcp RECV-Q SEND-Q LOCAL REMOTE STATE PID/COMMAND".
func netstatPIDs(printed []byte) (string, error) {
	return eachLine(printed, func(f []string) []string {
		if len(f) < 7 || f[0] != "tcp" || f[6] == "-" {
			return nil
		}
		pid, _, _ := strings.Cut(f[6], "/")
		return []string{fmt.Sprintf("%s %s %s %s", f[5], f[3], noPeer(f[4]), pid)}
	})
}
