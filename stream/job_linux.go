package stream

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple/internal/quota"
)

// job is a running command and its process group.
type job struct {
	cmd    *exec.Cmd
	grace  time.Duration
	exited chan struct{} // closed when the command has ended, though it is still to be reaped
}

// startJob starts a command in a process group of its own. Whether it succeeds
// or not it closes the files that are the command's alone.
func startJob(cmd *exec.Cmd, grace time.Duration, files ...*os.File) (*job, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err := cmd.Start()
	for _, f := range files {
		f.Close()
	}
	if err != nil {
		return nil, err
	}
	j := &job{cmd: cmd, grace: grace, exited: make(chan struct{})}
	go func() {
		// WNOWAIT: as long as it is not reaped, no other process or group gets its number.
		for errors.Is(unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil), unix.EINTR) {
		}
		close(j.exited)
	}()
	return j, nil
}

// end ends all processes of the group, reaps the command, and returns what it
// came to if it had ended by itself.
func (j *job) end() error {
	byItself := j.hasExited()
	j.signal(unix.SIGHUP)
	j.signal(unix.SIGCONT) // a stopped process hears nothing else
	late := time.Now().Add(j.grace + time.Second)
	kill := time.AfterFunc(j.grace, func() { j.signal(unix.SIGKILL) })
	defer kill.Stop()
	<-j.exited
	err := j.cmd.Wait()
	for pause := (quota.Backoff{Min: time.Millisecond, Max: 50 * time.Millisecond}); j.others() && time.Now().Before(late); {
		time.Sleep(pause.Next())
	}
	if !byItself {
		return nil
	}
	return err
}

func (j *job) hasExited() bool {
	select {
	case <-j.exited:
		return true
	default:
		return false
	}
}

// others says whether there are processes in the group, without the command,
// which is reaped. If this is the system's first process it reaps them as well.
func (j *job) others() bool {
	for {
		pid, err := unix.Wait4(-j.cmd.Process.Pid, nil, unix.WNOHANG, nil)
		if pid <= 0 && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return !errors.Is(unix.Kill(-j.cmd.Process.Pid, 0), unix.ESRCH)
}

func (j *job) signal(s syscall.Signal) { unix.Kill(-j.cmd.Process.Pid, s) }

// past is a deadline that ends what waits at once.
var past = time.Unix(1, 0)
