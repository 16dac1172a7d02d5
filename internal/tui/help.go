package tui

import "strings"

const helpText = `Keys

  arrows, PgUp, PgDn, Home, End   choose a row; Esc: none
  Enter, d     details of the socket; of a group: its sockets
  /            filter as you type: Enter keeps it, Esc goes back
  s, >  and <  sort by the next, the previous column; r reverses
  g            sockets, processes, ports, peers
  k            close the chosen socket, after a question
  p            pause; + and - change the interval
  q, ctrl-c    quit

What is shown

  IN/s, OUT/s  bytes received, and sent and acknowledged, since the last
               reading; K is 1024. Only TCP counts them. "-": not known.
               What opened and closed between two readings is not seen.
  AGE          since it was first seen; "-" if it was there before.
  (...)        why no process is known. A socket that several hold
               counts for the first one in the list of processes.

Any key goes back.`

func (m *model) helpLines() []string {
	var lines []string
	for _, l := range strings.Split(helpText, "\n") {
		if m.height < 26 && l == "" && len(lines) > 2 {
			continue
		}
		lines = append(lines, m.line(plain, l))
	}
	if len(lines) > m.height { // how to go back must be seen
		lines[m.height-1] = lines[len(lines)-1]
	}
	return lines
}
