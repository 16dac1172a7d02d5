package cli

import (
	"strings"
	"testing"

	"github.com/fivetuple/fivetuple/doctor"
)

// examinedFindings has each level, a check with several subjects, and a name that
// no terminal should obey.
func examinedFindings() []doctor.Finding {
	all := []doctor.Finding{
		{Check: "descriptors_process", Group: "descriptors", Level: doctor.OK, Value: "soft limit 65536, hard limit 65536"},
		{Check: "listen_backlog", Group: "backlog", Level: doctor.Warning, Value: "a backlog of 128 at most",
			Effect: "listen(2) cuts a longer backlog silently: when 129 connections wait for accept(2), more are dropped.", Fix: "sysctl -w net.core.somaxconn=4096"},
	}
	for range 7 {
		all = append(all, doctor.Finding{Check: "close_wait", Group: "connections", Level: doctor.Problem, Subject: "\"\x1b[31m\" (pid 7)",
			Value: "2000 connections in CLOSE_WAIT", Effect: "They do not time out.", Fix: "close them"})
	}
	return append(all,
		doctor.Finding{Check: "cap_net_admin", Group: "rights", Level: doctor.Note, Value: "not in effect", Effect: "None.", Fix: `setcap cap_net_admin+ep "$(command -v ft)"`},
		doctor.Finding{Check: "cap_net_raw", Group: "rights", Level: doctor.Note, Value: "not in effect", Effect: "None.", Fix: `setcap cap_net_raw+ep "$(command -v ft)"`},
		doctor.Finding{Check: "tcp_memory", Group: "buffers", Level: doctor.Unknown, Value: "net.ipv4.tcp_mem is not there"},
	)
}

const problemLines = `  problem  close_wait of "\x1b[31m" (pid 7): 2000 connections in CLOSE_WAIT
           They do not time out.
           fix: close them
`

func TestDoctorShowsWhatIsNotInOrderAndCountsChecks(t *testing.T) {
	want := `backlog
  warning  listen_backlog: a backlog of 128 at most
           listen(2) cuts a longer backlog silently: when 129 connections wait
           for accept(2), more are dropped.
           fix: sysctl -w net.core.somaxconn=4096

connections
` + strings.Repeat(problemLines, 5) + `           and 2 more: ft doctor --all

rights
  note     cap_net_admin: not in effect
           None.
           fix: setcap cap_net_admin+ep "$(command -v ft)"
  note     cap_net_raw: not in effect
           None.
           fix: setcap cap_net_raw+ep "$(command -v ft)"

buffers
  unknown  tcp_memory: net.ipv4.tcp_mem is not there

6 checks: 1 fine, 2 notes, 1 warning, 1 problem, 1 unknown

sysctl -w, as root, lasts until the machine restarts. To keep a setting write
NAME = VALUE to a file such as /etc/sysctl.d/90-sockets.conf.

setcap, as root, replaces what it set before. To give the program all of these:
  setcap cap_net_admin,cap_net_raw+ep "$(command -v ft)"
`
	var out strings.Builder
	a := &app{out: &out, format: formatTable}
	if err := a.printFindings(examinedFindings(), false); err != answerIsNo {
		t.Errorf("got error %v, want the answer no: there is a problem", err)
	}
	if out.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", out.String(), want)
	}
	for line := range strings.Lines(out.String()) {
		if len(strings.TrimSuffix(line, "\n")) > helpWidth {
			t.Errorf("longer than %d columns: %s", helpWidth, line)
		}
	}
}

func TestDoctorAllShowsEveryFinding(t *testing.T) {
	var out strings.Builder
	a := &app{out: &out, format: formatTable}
	a.printFindings(examinedFindings(), true)
	got := out.String()
	if n := strings.Count(got, problemLines); n != 7 || strings.Contains(got, "more: ft") || !strings.Contains(got, "  ok       descriptors_process: soft limit 65536") {
		t.Errorf("got %d of 7 problems:\n%s", n, got)
	}
}

func TestDoctorWithoutAProblemIsDone(t *testing.T) {
	var out strings.Builder
	a := &app{out: &out, format: formatTable}
	if err := a.printFindings(examinedFindings()[:2], false); err != nil {
		t.Errorf("a warning: got error %v", err)
	}
	out.Reset()
	if err := a.printFindings(examinedFindings()[:1], false); err != nil || out.String() != "1 check: 1 fine\n" {
		t.Errorf("all is well: got %q, %v", out.String(), err)
	}
}

func TestDoctorPrintsTheSameRowsForPrograms(t *testing.T) {
	for format, want := range map[string]string{
		formatNDJSON: `{"check":"listen_backlog","group":"backlog","level":"warning","subject":"","value":"v","effect":"e","fix":"f"}` + "\n",
		formatJSON: "{\n  \"schema\": 1,\n  \"findings\": [\n    " +
			`{"check":"listen_backlog","group":"backlog","level":"warning","subject":"","value":"v","effect":"e","fix":"f"}` + "\n  ]\n}\n",
		formatCSV:  "level,group,check,subject,value,effect,fix\nwarning,backlog,listen_backlog,,v,e,f\n",
		formatWide: "LEVEL    GROUP    CHECK           SUBJECT  VALUE  EFFECT  FIX\nwarning  backlog  listen_backlog  -        v      e       f\n",
	} {
		var out strings.Builder
		a := &app{out: &out, format: format}
		findings := []doctor.Finding{
			{Check: "a", Group: "b", Value: "fine"},
			{Check: "listen_backlog", Group: "backlog", Level: doctor.Warning, Value: "v", Effect: "e", Fix: "f"},
		}
		if err := a.printFindings(findings, false); err != nil || out.String() != want {
			t.Errorf("%s, %v: got\n%s\nwant\n%s", format, err, out.String(), want)
		}
	}
}

func TestDoctorCountsACheckOnceByItsWorstFinding(t *testing.T) {
	var findings []doctor.Finding
	for i := range 7 {
		level := doctor.Warning
		if i == 6 {
			level = doctor.Note
		}
		findings = append(findings, doctor.Finding{Check: "close_wait", Group: "connections", Level: level, Value: "v"})
	}
	var out strings.Builder
	a := &app{out: &out, format: formatTable}
	a.printFindings(findings, false)
	if want := "           and 2 more: ft doctor --all\n\n1 check: 0 fine, 1 warning\n"; !strings.HasSuffix(out.String(), want) {
		t.Errorf("got:\n%s\nwant it to end:\n%s", out.String(), want)
	}
}
