package activation

import (
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// child is the process that becomes the command where only an ancestor may look
// into it. This process stays, as the eyes of the supervisor.
type child struct {
	*launch
	pid, pidfd int
	conn       *os.File // takes what to execute, and returns why that failed
	signals    chan os.Signal
}

// order is what the child is told to execute. Its sockets follow connFD.
type order struct {
	Path      string
	Argv, Env []string
	Sockets   int
}

// failure is what it answers, if it can.
type failure struct {
	Call  string
	Errno syscall.Errno
}

// startChild starts it from the calling thread, whose filter it inherits. The error
// is *unsupervised where not even its parent may look into it.
func (l *launch) startChild(supervisor []string, notify int) (*child, error) {
	// Before there is a child, so that no signal falls in between.
	c := &child{launch: l, signals: make(chan os.Signal, 64)}
	signal.Notify(c.signals, forwarded()...)
	if err := c.start(supervisor); err != nil {
		c.stopSignals()
		return nil, &unsupervised{fmt.Errorf("start the command as a child: %w", err)}
	}
	err := mayLookInto(c.pidfd)
	if err == nil || errors.Is(err, unix.ESRCH) { // ended, as by a signal: run will see
		err = l.handOver(askWord, c.pidfd, notify)
	} else {
		err = &unsupervised{err}
	}
	if err != nil {
		c.abandon()
		return nil, err
	}
	return c, nil
}

func (c *child) start(supervisor []string) error {
	path, err := exec.LookPath(supervisor[0])
	if err != nil {
		return err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	defer unix.Close(pair[1])
	c.conn = os.NewFile(uintptr(pair[0]), "command")
	files := []uintptr{0, 1, 2, uintptr(pair[1])}
	for _, fd := range c.sockets {
		files = append(files, uintptr(fd))
	}
	c.pid, _, err = syscall.StartProcess(path, supervisor, &syscall.ProcAttr{
		Env: os.Environ(), Files: files, Sys: &syscall.SysProcAttr{PidFD: &c.pidfd},
	})
	if err != nil {
		c.conn.Close()
	}
	return err
}

// abandon ends the child, which has not been told what to execute.
func (c *child) abandon() {
	c.conn.Close()
	ignoringEINTR(func() (int, error) { return unix.Wait4(c.pid, nil, 0, nil) })
	unix.Close(c.pidfd)
	c.stopSignals()
}

// stopSignals gives this process the signals that the child has not had.
func (c *child) stopSignals() {
	signal.Stop(c.signals)
	for len(c.signals) > 0 {
		_ = unix.Kill(os.Getpid(), (<-c.signals).(syscall.Signal))
	}
}

// run ends this process as the command ends. It returns only if the command could
// not be started.
func (c *child) run(started func(pid int) error) error {
	early, err := c.launchCommand(started)
	if err != nil {
		_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
		c.abandon()
		return err
	}
	go answerLooks(c.supervisor)
	go c.forward(early)
	for {
		var status unix.WaitStatus
		pid, err := ignoringEINTR(func() (int, error) { return unix.Wait4(-1, &status, 0, nil) })
		switch {
		case err != nil:
			return os.NewSyscallError("wait4", err)
		case pid != c.pid: // what the command has left behind
		case status.Signaled():
			endBy(status.Signal())
		default:
			os.Exit(status.ExitStatus())
		}
	}
}

// launchCommand returns once the child executes the command, with the signals that
// came before.
func (c *child) launchCommand(started func(pid int) error) (early []os.Signal, err error) {
	// What the command leaves behind stays a descendant, to be looked into.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, os.NewSyscallError("prctl", err)
	}
	if _, err := c.conn.Read(make([]byte, 1)); err != nil {
		return nil, nil // it has ended
	}
	if started != nil {
		if err := started(c.pid); err != nil {
			return nil, err
		}
	}
	for len(c.signals) > 0 {
		early = append(early, <-c.signals)
	}
	_ = gob.NewEncoder(c.conn).Encode(order{c.path, c.argv, c.env, len(c.sockets)})
	var f failure
	if gob.NewDecoder(c.conn).Decode(&f) == nil {
		return nil, os.NewSyscallError(f.Call, f.Errno)
	}
	return early, nil // the child's end was closed by exec
}

// forwarded are the signals for the command. SIGURG is of the Go runtime. Those that
// stop a process and let it go on are for each by itself. What this process was told
// to ignore it ignores, as does the command.
func forwarded() (signals []os.Signal) {
	own := []syscall.Signal{unix.SIGKILL, unix.SIGSTOP, unix.SIGCHLD, unix.SIGURG, unix.SIGTSTP, unix.SIGCONT, unix.SIGTTIN, unix.SIGTTOU}
	for s := syscall.Signal(1); s <= 64; s++ {
		if !slices.Contains(own, s) && !signal.Ignored(s) {
			signals = append(signals, s)
		}
	}
	return signals
}

// forward passes signals on. The early ones came before the child was the command:
// whether or not it had them too, the command has not.
func (c *child) forward(early []os.Signal) {
	for _, s := range early {
		c.signal(s)
	}
	for s := range c.signals {
		switch s {
		case unix.SIGINT, unix.SIGQUIT, unix.SIGWINCH:
			if inForeground() {
				continue // the terminal has sent it to the whole process group
			}
		}
		c.signal(s)
	}
}

func (c *child) signal(s os.Signal) {
	_ = unix.PidfdSendSignal(c.pidfd, s.(syscall.Signal), nil, 0) // it may have ended, or be another user's
}

// inForeground says whether the terminal's keys send signals to this process group.
func inForeground() bool {
	tty, err := unix.Open("/dev/tty", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(tty)
	group, err := unix.IoctlGetInt(tty, unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// endBy ends this process by a signal, so that whoever waits for it sees how the
// command ended; as timeout(1) does, without a core of its own.
func endBy(s syscall.Signal) {
	runtime.LockOSThread()
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, &unix.Sigset_t{}, nil)
	byDefault(s)
	_ = unix.Tgkill(os.Getpid(), unix.Gettid(), s)
	os.Exit(128 + int(s)) // a process 1 is not killed (pid_namespaces(7))
}

// byDefault leaves a signal to the kernel, as package signal does not: to the runtime.
func byDefault(s syscall.Signal) {
	var action [4]uint64 // struct sigaction of the kernel; SIG_DFL is 0
	unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(s), uintptr(unsafe.Pointer(&action)), 0, unsafe.Sizeof(uint64(0)), 0, 0)
}

// becomeCommand is the child's main function. It returns if it was abandoned, or
// after it has told its parent why it could not.
func becomeCommand() error {
	creator, err := unix.GetsockoptUcred(connFD, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil || int(creator.Pid) != os.Getppid() {
		return fmt.Errorf("its parent has ended, or has not asked for it: %w", os.ErrPermission)
	}
	// Until it is the command a signal ends this process, as it would have ended that,
	// whatever its main function has made of signals.
	for _, s := range forwarded() {
		byDefault(s.(syscall.Signal))
	}
	conn := os.NewFile(connFD, "launch")
	if _, err := conn.Write([]byte{0}); err != nil {
		return err
	}
	var o order
	switch err := gob.NewDecoder(conn).Decode(&o); {
	case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET):
		return nil
	case err != nil:
		return err
	}
	l := launch{path: o.Path, argv: o.Argv, env: o.Env}
	for i := range o.Sockets {
		unix.CloseOnExec(connFD + 1 + i)
		l.sockets = append(l.sockets, connFD+1+i)
	}
	err = onOwnThread(func() error { return l.exec(nil) })
	var f failure
	if call, ok := err.(*os.SyscallError); ok {
		f.Call, f.Errno = call.Syscall, call.Err.(syscall.Errno)
	}
	return gob.NewEncoder(conn).Encode(f)
}
