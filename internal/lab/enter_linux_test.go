package lab

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestNothingIsLeftOfALabThatDies(t *testing.T) {
	for _, tt := range []struct {
		victim func(labProcesses) int
		name   string
		signal syscall.Signal
		code   int // -1: killed by the signal itself
		output string
	}{
		{outer, "outer", syscall.SIGKILL, -1, ""},
		{first, "first", syscall.SIGKILL, 137, ""},
		{tests, "tests", syscall.SIGKILL, 137, ""},
		{outer, "outer", syscall.SIGINT, 130, ""},
		{outer, "outer", syscall.SIGTERM, 143, ""},
		{outer, "outer", syscall.SIGQUIT, 2, "TestStayUntilKilled"}, // what go test sends upon its timeout
	} {
		t.Run(fmt.Sprint(tt.signal, " to ", tt.name), func(t *testing.T) {
			lab, cmd, output := startLab(t)
			if len(lab.all) != 5 {
				t.Fatalf("processes of the lab: got %v, want the three of the binary and two programs", lab.all)
			}
			if err := syscall.Kill(tt.victim(lab), tt.signal); err != nil {
				t.Fatal(err)
			}
			cmd.Wait()
			if got := cmd.ProcessState.ExitCode(); got != tt.code {
				t.Errorf("exit code: got %d, want %d", got, tt.code)
			}
			eventually(t, "no process of the lab is left", func() bool { return len(marked(t, lab.mark)) == 0 })
			if !strings.Contains(output.String(), tt.output) {
				t.Errorf("output: got %s, want %q in it", output, tt.output)
			}
		})
	}
}

// TestStayUntilKilled is run by the test above. It leaves two programs in a host,
// one of them a daemon, and ends by no means of its own.
func TestStayUntilKilled(t *testing.T) {
	if os.Getenv(stayVar) == "" {
		return
	}
	h := NewHost(t, "h")
	h.Start(t, exec.Command("nc", "-lk", "80")).WaitListening(t, "tcp", 80)
	daemon := h.Start(t, exec.Command("sh", "-c", "setsid nc -lk 81 &"))
	daemon.WaitListening(t, "tcp", 81)
	daemon.Wait()
	fmt.Println(staying)
	select {}
}

const (
	stayVar = "FIVETUPLE_LAB_TEST_STAY"
	staying = "ready to be killed"
)

func TestExitCodeAndFlagsPass(t *testing.T) {
	profile := filepath.Join(t.TempDir(), "mem")
	cmd := outside(t, "-test.run=^TestDoIsInTheHost$", "-test.v", "-test.memprofile="+profile)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || stderr.Len() != 0 || !bytes.Contains(out, []byte("--- PASS: TestDoIsInTheHost")) {
		t.Errorf("got %v, stdout %s, stderr %s, want one test passed", err, out, &stderr)
	}
	if strings.Count(string(out), "=== RUN") != 1 {
		t.Errorf("got %s, want one run of one test", out)
	}
	if info, err := os.Stat(profile); err != nil || info.Size() == 0 {
		t.Errorf("profile: got %v, %v, want a file with content", info, err)
	}
	cmd = outside(t, "-test.no-such-flag")
	if cmd.Run(); cmd.ProcessState.ExitCode() != 2 {
		t.Errorf("exit code for a bad flag: got %v, want 2", cmd.ProcessState)
	}
}

func TestStandardInputPasses(t *testing.T) {
	cmd := outside(t, "-test.run=^TestCopyStandardInput$", "-test.v")
	cmd.Env = append(cmd.Env, stayVar+"=1")
	cmd.Stdin = strings.NewReader("from afar")
	if out, err := cmd.Output(); err != nil || !bytes.Contains(out, []byte("from afar")) {
		t.Errorf("got %s, %v, want the standard input in it", out, err)
	}
}

// TestCopyStandardInput is run by the test above.
func TestCopyStandardInput(t *testing.T) {
	if os.Getenv(stayVar) != "" {
		io.Copy(os.Stdout, os.Stdin)
	}
}

// TestOrdinaryUserHasHosts runs tests of this package as nobody, if it can be
// anybody but itself; otherwise this whole run is an ordinary user's.
func TestOrdinaryUserHasHosts(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	cmd := outside(t, "-test.v", "-test.run=^(TestLinkedHostsTalk|TestFilteredPorts|TestSysctlIsTheHostsOwn|TestServerProgramIsReached|TestShapedLinkCarriesAllProtocols|TestShapedLinkLosesTheSamePacketsAgain)$")
	binary, err := os.ReadFile(cmd.Path)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Path = filepath.Join(dir, "lab.test")
	if err := os.WriteFile(cmd.Path, binary, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd.Dir = dir
	cmd.Env = append(cmd.Env, "TMPDIR="+dir, "HOME="+dir, "PATH=/usr/bin:/bin")
	if mapsAll("/proc/self/uid_map") {
		const nobody = 65534
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	out, err := cmd.CombinedOutput()
	if err != nil || bytes.Count(out, []byte("\n--- PASS")) != 6 {
		t.Errorf("got %v and\n%s, want six tests passed", err, out)
	}
}

// outside returns the command that runs this test binary as if in no lab.
func outside(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), outsideVar+"=1")
	return cmd
}

// labProcesses are the processes of a lab inside the lab.
type labProcesses struct {
	mark                string // of their environment
	outer, first, tests int
	all                 []int
}

func outer(p labProcesses) int { return p.outer }
func first(p labProcesses) int { return p.first }
func tests(p labProcesses) int { return p.tests }

// startLab starts a lab in which TestStayUntilKilled stays.
func startLab(t *testing.T) (labProcesses, *exec.Cmd, *output) {
	t.Helper()
	lab := labProcesses{mark: stayVar + "=" + t.Name()}
	cmd := outside(t, "-test.run=^TestStayUntilKilled$")
	cmd.Env = append(cmd.Env, lab.mark)
	out := new(output)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.WaitDelay = time.Second // for survivors that hold the output open
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("output:\n%s", out)
		}
	})
	eventually(t, "the lab is ready", func() bool { return strings.Contains(out.String(), staying) })

	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	lab.all = marked(t, lab.mark)
	for _, pid := range lab.all {
		path, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		switch {
		case path != exe:
		case pid == cmd.Process.Pid:
			lab.outer = pid
		case bytes.HasPrefix(cmdline, []byte(initName)):
			lab.first = pid
		default:
			lab.tests = pid
		}
	}
	return lab, cmd, out
}

// marked lists the processes with the variable in their environment. Zombies have none.
func marked(t *testing.T, variable string) []int {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, path := range paths {
		environ, _ := os.ReadFile(path)
		if bytes.Contains(environ, []byte(variable+"\x00")) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			pids = append(pids, pid)
		}
	}
	return pids
}
