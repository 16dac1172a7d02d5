package owner

import (
	"strings"
	"syscall"
	"testing"
)

func TestViewNamesBootAndNamespaces(t *testing.T) {
	mine := strings.Split(must(View()), "/")
	if len(mine) != 3 || len(mine[0]) != 36 || mine[1] == "0" || strings.Trim(mine[1]+mine[2], "0123456789") != "" {
		t.Fatalf("got %q, want BOOT/PID/TIME", mine)
	}
	const mounted = `mount --make-rprivate /; mount -t proc proc /proc; `
	for _, c := range []struct {
		name, script string
		namespaces   uintptr
		same         [3]bool
	}{
		{"the same", `"$FT"`, 0, [3]bool{true, true, true}},
		{"another /proc", mounted + `"$FT"`, syscall.CLONE_NEWPID | syscall.CLONE_NEWNS, [3]bool{true, false, true}},
		{"another time", `unshare --time --fork "$FT"`, 0, [3]bool{true, true, false}},
	} {
		t.Run(c.name, func(t *testing.T) {
			line := script(t, `export FT_TEST_CHILD=view; `+c.script, apart(c.namespaces), "dash")[0]
			got, done := strings.CutSuffix(line, " <nil>")
			parts := strings.Split(got, "/")
			if !done || len(parts) != 3 {
				t.Fatalf("got %q, want BOOT/PID/TIME and no error", line)
			}
			if same := [3]bool{parts[0] == mine[0], parts[1] == mine[1], parts[2] == mine[2]}; same != c.same {
				t.Errorf("got %q here and %q there: equal %v, want %v", mine, parts, same, c.same)
			}
		})
	}
}

func TestNoView(t *testing.T) {
	for _, c := range []struct{ name, script, want string }{
		{"/proc is another's", `"$FT"; :`, "mount it anew"},
		{"/proc is missing", `mount -t tmpfs tmpfs /proc; "$FT"`, "is /proc mounted"},
		{"the boot is hidden", `mount -t proc -o subset=pid proc /proc; "$FT"`, "boot_id: no such file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := script(t, `export FT_TEST_CHILD=view; mount --make-rprivate /; `+c.script,
				apart(syscall.CLONE_NEWPID|syscall.CLONE_NEWNS), "dash")[0]
			if !strings.HasPrefix(got, "find out") || !strings.Contains(got, c.want) {
				t.Errorf("got %q, want no view and %q in the error", got, c.want)
			}
		})
	}
}

func TestProcShowsThePIDsOfThisProcess(t *testing.T) {
	for _, c := range []struct {
		status string
		want   bool
	}{
		{"Pid:\t7\nNSpid:\t7\n", true},
		{"Pid:\t7\nNSpid:\t7\t7\n", false}, // by chance the same in the outer namespace
		{"Pid:\t9\nNSpid:\t9\t7\n", false},
		{"Pid:\t7\nUid:\t0\n", true},
		{"Pid:\t9\nUid:\t0\n", false},
		{"", false},
	} {
		if got := shows([]byte(c.status), 7); got != c.want {
			t.Errorf("%q: got %v, want %v", c.status, got, c.want)
		}
	}
}

func TestNamespaceThatTheKernelLacks(t *testing.T) {
	if got, err := namespace("tomorrow"); got != "0" || err != nil {
		t.Errorf("got %q, %v, want 0", got, err)
	}
}

func BenchmarkView(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := View(); err != nil {
			b.Fatal(err)
		}
	}
}
