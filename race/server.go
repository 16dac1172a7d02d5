package main

import (
	"bufio"
	"bytes"
	_ "embed"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

var (
	//go:embed c/echo.c
	echoSource []byte
	//go:embed c/load.c
	loadSource []byte
)

// programs are the ones in C, compiled into a folder of their own.
type programs struct{ folder, echo, load string }

func compile() (*programs, error) {
	folder, err := os.MkdirTemp("", "ft-race-")
	if err != nil {
		return nil, err
	}
	p := &programs{folder: folder, echo: filepath.Join(folder, "echo"), load: filepath.Join(folder, "load")}
	for program, source := range map[string][]byte{p.echo: echoSource, p.load: loadSource} {
		cmd := exec.Command("gcc", "-O2", "-pthread", "-x", "c", "-o", program, "-")
		cmd.Stdin = bytes.NewReader(source)
		if said, err := cmd.CombinedOutput(); err != nil {
			p.remove()
			return nil, fmt.Errorf("gcc: %w (apt-get install gcc libc6-dev): %s", err, said)
		}
	}
	return p, nil
}

func (p *programs) remove() { os.RemoveAll(p.folder) }

// server is a program that listens on a port of the kernel's choice, and says
// on which at its standard error.
type server struct {
	name    string
	command []string
}

// peers are the servers to compare with.
func (p *programs) peers() (gnet, net, c server, err error) {
	self, err := os.Executable()
	return server{"gnet 2.9.5", []string{self, "-serve", "gnet"}},
		server{"net, goroutines", []string{self, "-serve", "net"}},
		server{"C, epoll", []string{p.echo, "127.0.0.1:0"}}, err
}

// running is a server that listens.
type running struct {
	cmd     *exec.Cmd
	address string
}

var listening = regexp.MustCompile(`listening on tcp (127\.0\.0\.1:\d+)`)

// start starts the server, on one processor only unless cpu is "".
func (s server) start(cpu string) (*running, error) {
	cmd := pinned(cpu, s.command)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, err
	}
	r := &running{cmd: cmd}
	watchdog := time.AfterFunc(10*time.Second, func() { cmd.Process.Kill() })
	defer watchdog.Stop()
	var said strings.Builder
	lines := bufio.NewReader(stderr)
	for {
		line, err := lines.ReadString('\n')
		said.WriteString(line)
		if m := listening.FindStringSubmatch(line); m != nil {
			r.address = m[1]
			go io.Copy(io.Discard, lines) // ends with the server
			return r, nil
		}
		if err != nil {
			r.stop()
			return nil, fmt.Errorf("%s does not listen: %s", s.name, strings.TrimSpace(said.String()))
		}
	}
}

func pinned(cpu string, command []string) *exec.Cmd {
	if cpu != "" {
		command = append([]string{"taskset", "-c", cpu}, command...)
	}
	return exec.Command(command[0], command[1:]...)
}

func (r *running) port() string { return r.address[strings.LastIndexByte(r.address, ':')+1:] }

// stop lets the server end its workers, if it is quick.
func (r *running) stop() {
	r.cmd.Process.Signal(syscall.SIGTERM)
	watchdog := time.AfterFunc(2*time.Second, func() { r.cmd.Process.Kill() })
	defer watchdog.Stop()
	r.cmd.Process.Wait()
}

// processes are the server's own and those it started, by their ids.
func (r *running) processes() ([]int, error) {
	self := r.cmd.Process.Pid
	pids := []int{self}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it ended
		}
		// PID (COMMAND) STATE PARENT ...
		fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
		if len(fields) > 1 && fields[1] == strconv.Itoa(self) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// memory is what the processes have of their own in memory, in bytes: RssAnon
// of proc_pid_status(5), which has no pages of files.
func memory(pids []int) (int, error) {
	sum := 0
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return 0, err
		}
		var kB int
		_, value, found := strings.Cut(string(text), "RssAnon:")
		if _, err := fmt.Sscan(value, &kB); !found || err != nil {
			return 0, fmt.Errorf("/proc/%d/status has no RssAnon", pid)
		}
		sum += kB << 10
	}
	return sum, nil
}

// settledMemory waits until the memory stays the same for so long, or for ten times that.
func settledMemory(pids []int, quiet time.Duration) (int, error) {
	const looks = 10
	last, same := -1, 0
	for range 10 * looks {
		now, err := memory(pids)
		if err != nil {
			return 0, err
		}
		if same++; now != last {
			last, same = now, 0
		}
		if same == looks {
			break
		}
		time.Sleep(quiet / looks)
	}
	return last, nil
}
