package owner

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// script runs a shell script that calls the test binary as "$FT", which prints
// its caller. It returns the lines that were printed.
func script(t *testing.T, text string, attr *syscall.SysProcAttr, command ...string) []string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "script")
	ok(os.WriteFile(file, []byte(text), 0o755))
	cmd := exec.Command(command[0], append(command[1:], file)...)
	cmd.Env = append(os.Environ(), "FT_TEST_CHILD=caller", "GORACE=atexit_sleep_ms=10",
		"FT="+must(os.Executable()), "DIR="+filepath.Dir(file))
	cmd.SysProcAttr = attr
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v, %s", command, err, &stderr)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

// Every script prints the PID of the expected caller before it makes the call;
// the ":" after a call keep shells from executing it in their place.
func TestCallerOfAShell(t *testing.T) {
	for _, c := range []struct{ name, script string }{
		{"itself", `echo $$; "$FT"; :`},
		{"a subshell", `echo $$; ("$FT"; :); :`},
		{"a command substitution", `echo $$; x=$("$FT"; :); echo "$x"`},
		{"a pipeline", `echo $$; "$FT" | cat; :`},
		{"a pipeline in a command substitution", `echo $$; x=$("$FT" | cat); echo "$x"`},
		{"a function in a pipeline", `f() { "$FT"; }; echo $$; f | cat; :`},
		{"subshells in subshells", `echo $$; ( (x=$( ("$FT"; :) | cat); echo "$x"); :) | cat; :`},
		{"a subshell in the background", `echo $$; ("$FT"; :) & wait`},
		{"a shell in a shell", `"$SH" -c 'echo $$; "$FT"; :'; :`},
		{"a subshell of a shell in a shell", `x=$("$SH" -c 'echo $$; ("$FT"; :); :'; :); echo "$x"`},
		{"a subshell that executes a shell", `(exec "$SH" -c 'echo $$; "$FT"; :'); :`},
		{"a subshell of a subshell that executes a shell", `(exec "$SH" -c 'echo $$; ("$FT"; :); :'); :`},
		{"the same script in itself",
			`if [ -e "$DIR/inner" ]; then echo $$; "$FT"; else : >"$DIR/inner"; "$SH" "$0"; fi; :`},
		{"a subshell whose shell has executed another program", `mkfifo "$DIR/fifo"
			(read _ <"$DIR/fifo"; "$FT"; :) & echo $!
			exec perl -e 'open F, ">", "$ENV{DIR}/fifo"; print F "go\n"; close F; wait'`},
		{"a subshell whose shell has executed a shell", `mkfifo "$DIR/fifo" "$DIR/end"
			(read _ <"$DIR/fifo"; "$FT"; echo end >"$DIR/end") & echo $!
			exec "$SH" -c 'echo go >"$DIR/fifo"; read _ <"$DIR/end"; :'`},
		{"a subshell that it may not look into",
			`(read pid _ </proc/self/stat; echo "$pid"; unshare -U "$FT"; :); :`},
		{"a server's worker", `perl -e '$| = 1; if (!fork) { print "$$\n"; system $ENV{FT}; exit } wait'; :`},
	} {
		for _, shell := range []string{"dash", "bash"} {
			for _, addresses := range []string{"random", "fixed"} {
				t.Run(c.name+"/"+shell+"/"+addresses, func(t *testing.T) {
					t.Setenv("SH", must(exec.LookPath(shell)))
					command := []string{os.Getenv("SH")}
					if addresses == "fixed" {
						command = append([]string{"setarch", "--addr-no-randomize"}, command...)
					}
					lines := script(t, c.script, nil, command...)
					if len(lines) != 2 {
						t.Fatalf("got %q, want two lines", lines)
					}
					want, got := lines[0], strings.Fields(lines[1])
					if len(got) < 4 || got[0] != want || got[1] == "0" || got[2] == "" || got[3] != "<nil>" {
						t.Errorf("got pid, start, command and error %q, want pid %s", got, want)
					}
				})
			}
		}
	}
}

// Otherwise the test above says nothing of "the same script in itself".
func TestRunsOfAScriptAreAlikeAtFixedAddresses(t *testing.T) {
	sh := must(exec.LookPath("dash"))
	t.Setenv("SH", sh)
	const text = `case $(cat "$DIR/depth" 2>/dev/null) in
		1) cmp /proc/$$/auxv /proc/$PPID/auxv && echo alike || echo apart;;
		*) echo 1 >"$DIR/depth"; "$SH" "$0"; :;; esac`
	if got := script(t, text, nil, "setarch", "--addr-no-randomize", sh); got[len(got)-1] != "alike" {
		t.Errorf("got %q, want alike", got)
	}
}

func TestCallerIsTheParent(t *testing.T) {
	_, out := start(t, "caller", nil, nil)
	me := must(ProcessOf(os.Getpid()))
	want := strings.Join([]string{strconv.Itoa(me.PID), strconv.FormatUint(me.Start, 10), me.Command, "<nil>\n"}, " ")
	if got := must(out.ReadString('\n')); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Process 1 adopts the children of those that end, so it counts as a caller only
// if it is a shell, as in a container.
func TestNoCaller(t *testing.T) {
	const mounted = `mount --make-rprivate /; mount -t proc -o hidepid=4 proc /proc; `
	for _, c := range []struct{ name, script, want string }{
		{"its parent is process 1, a shell", mounted + `"$FT"; :`, "1 "},
		{"its parent is process 1, no shell", mounted + `exec perl -e 'system $ENV{"FT"}'`, "process 1, as it is when the caller has ended"},
		{"its shell is process 1", mounted + `("$FT"; :); :`, "1 "},
		{"it is process 1", mounted + `exec "$FT"`, "outside this PID namespace"},
		{"its parent is hidden", mounted + `"$SH" -c 'unshare -U "$FT"; :'; :`, "hidepid): permission denied"},
		{"/proc is another's", `"$FT"; :`, "mount it anew"},
		{"/proc is missing", `mount --make-rprivate /; mount -t tmpfs tmpfs /proc; "$FT"; :`, "is /proc mounted"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("SH", must(exec.LookPath("dash")))
			got := script(t, c.script, apart(syscall.CLONE_NEWPID|syscall.CLONE_NEWNS), "dash")[0]
			if c.want == "1 " {
				if !strings.HasPrefix(got, c.want) || !strings.HasSuffix(got, "<nil>") {
					t.Errorf("got %q, want process 1", got)
				}
			} else if !strings.Contains(got, c.want) || !strings.HasSuffix(got, "name the owner with --owner PID") {
				t.Errorf("got %q, want %q in it and what to do", got, c.want)
			}
		})
	}
}

func TestParentEndsWhileItIsLookedAt(t *testing.T) {
	gone := exec.Command("true")
	ok(gone.Run())
	for _, pids := range [][]int{{os.Getppid(), 1}, {os.Getpid(), os.Getppid()}, {gone.Process.Pid, os.Getppid()}} {
		next := 0
		_, _, err := openParent(func() int { next++; return pids[next-1] })
		if err == nil || !strings.Contains(err.Error(), "has just ended") || errors.Is(err, fs.ErrPermission) {
			t.Errorf("parent %d, then %d: got %v, want that the first has ended", pids[0], pids[1], err)
		}
	}
}

func TestIsShell(t *testing.T) {
	for exe, want := range map[string]bool{
		"/bin/sh": true, "/usr/bin/dash": true, "/bin/bash (deleted)": true, "/usr/bin/zsh-5.9": true,
		"/usr/bin/ksh93": true, "/bin/bsd-csh": true, "/bin/bash-static": true, "busybox": true,
		"/usr/bin/python3.11": false, "/usr/sbin/sshd": false, "/bin/sh/nginx": false, "": false, "/": false,
	} {
		if got := isShell(exe); got != want {
			t.Errorf("%q: got %v, want %v", exe, got, want)
		}
	}
}

func BenchmarkCaller(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Caller(); err != nil {
			b.Fatal(err)
		}
	}
}
