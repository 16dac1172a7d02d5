package activation

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

func run(cmd Command, sockets []Socket, o Options) error {
	if err := execute(cmd, sockets, o); err != nil {
		return fmt.Errorf("run %s on its sockets: %w", cmd.Path, err)
	}
	return nil
}

func execute(cmd Command, sockets []Socket, o Options) error {
	l, err := newLaunch(cmd, sockets)
	defer l.close()
	if err != nil {
		return err
	}
	for i, fd := range l.sockets {
		if err := checkListens(fd); err != nil {
			return fmt.Errorf("socket %s: %w", sockets[i].Name, err)
		}
	}
	if l.self, err = unix.PidfdOpen(os.Getpid(), 0); err != nil {
		l.self = -1
		return fmt.Errorf("watch this process: %w: it needs Linux 5.3", os.NewSyscallError("pidfd_open", err))
	}
	if l.supervisor, err = startSupervisor(o.Supervisor); err != nil {
		l.supervisor = -1
		return fmt.Errorf("start its supervisor: %w", err)
	}
	return l.run(o)
}

func pass(cmd Command, files []Socket) error {
	l, err := newLaunch(cmd, files)
	defer l.close()
	if err == nil {
		err = onOwnThread(func() error { return l.exec(nil) })
	}
	return fmt.Errorf("run %s: %w", cmd.Path, err)
}

// newLaunch prepares what both ways to run a command need. It is to be closed,
// after an error too.
func newLaunch(cmd Command, sockets []Socket) (l launch, err error) {
	l.self, l.supervisor = -1, -1
	if l.path, err = exec.LookPath(cmd.Path); err != nil {
		return l, err
	}
	names, err := fdNames(sockets)
	if err != nil {
		return l, err
	}
	l.argv = append([]string{cmd.Path}, cmd.Args...)
	l.env = append(without(cmd.Env, listenVariables), "LISTEN_FDS="+strconv.Itoa(len(sockets)), "LISTEN_FDNAMES="+names)
	for _, s := range sockets {
		if err := l.add(s, firstFD+len(sockets)); err != nil {
			return l, fmt.Errorf("socket %s: %w", s.Name, err)
		}
	}
	return l, nil
}

// maxSockets: SCM_RIGHTS takes 253 descriptors (unix(7)), two are not sockets.
const maxSockets = 250

func fdNames(sockets []Socket) (string, error) {
	if len(sockets) == 0 || len(sockets) > maxSockets {
		return "", fmt.Errorf("%d sockets: want 1 to %d", len(sockets), maxSockets)
	}
	names := make([]string, len(sockets))
	for i, s := range sockets {
		names[i] = s.Name
		if s.Name == "" {
			names[i] = unnamed
		}
		bad := func(r rune) bool { return r < ' ' || r > '~' || r == ':' }
		if len(s.Name) > 255 || strings.ContainsFunc(s.Name, bad) {
			return "", fmt.Errorf("socket name %q: want up to 255 printable ASCII characters but ':'", s.Name)
		}
	}
	return strings.Join(names, ":"), nil
}

// without drops variables from an environment.
func without(env, variables []string) []string {
	return slices.DeleteFunc(slices.Clone(env), func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		return slices.Contains(variables, name)
	})
}

// startSupervisor returns this end of its connection. The process that is waited
// for starts the supervisor and exits, so that the command has no child that it
// knows nothing of.
func startSupervisor(argv []string) (conn int, err error) {
	if len(argv) == 0 {
		return -1, errors.New("no command line for it")
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socketpair", err)
	}
	far := os.NewFile(uintptr(pair[1]), "supervisor")
	defer far.Close()
	c := exec.Command(argv[0], argv[1:]...)
	c.ExtraFiles = []*os.File{far} // descriptor 3
	c.Stderr = os.Stderr
	if err := c.Run(); err != nil {
		unix.Close(pair[0])
		return -1, fmt.Errorf("%s: %w", c, err)
	}
	return pair[0], nil
}

// launch is what the last steps need. Its descriptors are copies, close-on-exec.
type launch struct {
	path       string
	argv, env  []string
	sockets    []int // out of the way of where the command will find them
	self       int   // pidfd
	supervisor int   // SOCK_SEQPACKET connection
}

func (l *launch) close() {
	for _, fd := range append(l.sockets, l.self, l.supervisor) {
		if fd > 0 {
			unix.Close(fd)
		}
	}
}

// add copies a socket to a descriptor from above on.
func (l *launch) add(s Socket, above int) error {
	if s.File == nil {
		return errors.New("no file")
	}
	raw, err := s.File.SyscallConn()
	if err != nil {
		return err
	}
	var fd int
	errControl := raw.Control(func(theirs uintptr) {
		fd, err = unix.FcntlInt(theirs, unix.F_DUPFD_CLOEXEC, above)
	})
	if err := errors.Join(errControl, os.NewSyscallError("fcntl", err)); err != nil {
		return err
	}
	l.sockets = append(l.sockets, fd)
	return nil
}

// checkListens refuses a TCP socket that does not listen.
func checkListens(fd int) error {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return os.NewSyscallError("getsockopt", err)
	}
	listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return os.NewSyscallError("getsockopt", err)
	}
	if kind == unix.SOCK_STREAM && listens == 0 {
		return errors.New("it must listen, or others may take its port")
	}
	return nil
}

// run tries with the filter first. Each try has a thread to itself, which ends with
// it: a filter and a table of descriptors once changed cannot be had back.
func (l *launch) run(o Options) error {
	var c *child
	err := onOwnThread(func() error {
		notify, err := installFilter()
		if err != nil {
			return &unsupervised{err}
		}
		defer unix.Close(notify) // the supervisor's shall be the only one
		err = l.handOver(superviseWord, l.self, notify)
		var refused *unsupervised
		if errors.As(err, &refused) {
			c, err = l.startChild(o.Supervisor, notify)
			return err
		}
		if err != nil {
			return err
		}
		return l.exec(o.Started)
	})
	if c != nil {
		return c.run(o.Started)
	}
	var reason *unsupervised
	if !errors.As(err, &reason) || o.Require {
		return err
	}
	if o.Warn != nil {
		o.Warn(reason.Error())
	}
	return onOwnThread(func() error {
		if err := l.handOver(watchWord, l.self); err != nil {
			return err
		}
		return l.exec(o.Started)
	})
}

// unsupervised is the reason why binds cannot be supervised.
type unsupervised struct{ reason error }

func (u *unsupervised) Error() string   { return fmt.Sprintf("%v: %v", ErrUnsupervised, u.reason) }
func (u *unsupervised) Unwrap() []error { return []error{ErrUnsupervised, u.reason} }

func onOwnThread(fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		done <- fn()
	}()
	return <-done
}

// exec hands this process over to the command, from a thread of its own.
func (l *launch) exec(started func(pid int) error) error {
	if started != nil {
		if err := started(os.Getpid()); err != nil {
			return err
		}
	}
	// The runtime's own descriptors may lie where the command's shall be. From here on
	// this thread has a table of its own; exec drops that of the others.
	if err := unix.Unshare(unix.CLONE_FILES); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	for i, fd := range l.sockets {
		if err := unix.SetNonblock(fd, false); err != nil { // as service managers pass them
			return os.NewSyscallError("fcntl", err)
		}
		if err := unix.Dup3(fd, firstFD+i, 0); err != nil {
			return os.NewSyscallError("dup3", err)
		}
	}
	return os.NewSyscallError("exec", syscall.Exec(l.path, l.argv, append(l.env, "LISTEN_PID="+strconv.Itoa(os.Getpid()))))
}

// handOver gives the supervisor the command's pidfd, the filter's descriptor if
// there is one, and the sockets. It returns once the supervisor is ready to answer.
func (l *launch) handOver(word string, fds ...int) error {
	if err := unix.Sendmsg(l.supervisor, []byte(word), unix.UnixRights(append(fds, l.sockets...)...), nil, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("talk to its supervisor: %w", os.NewSyscallError("sendmsg", err))
	}
	answer := make([]byte, maxMessage)
	n, err := ignoringEINTR(func() (int, error) { return unix.Read(l.supervisor, answer) })
	switch {
	case err != nil:
		return fmt.Errorf("talk to its supervisor: %w", os.NewSyscallError("read", err))
	case n == 0:
		return errors.New("its supervisor ended before it was ready")
	case string(answer[:n]) != readyWord:
		return &unsupervised{errors.New(string(answer[:n]))}
	}
	return nil
}

// The messages of a launch to its supervisor. With each come the command's pidfd,
// the filter's descriptor but with watchWord, and the sockets.
const (
	superviseWord = "supervise"
	// askWord is to supervise, and to ask the launch for what it needs to see.
	askWord = "ask"
	// watchWord is to wait for the command's end, without a filter.
	watchWord = "watch"
)

// The answer is readyWord, or why the supervisor may not look into the command. It
// then waits for another message.
const (
	readyWord  = "ready"
	maxMessage = 1024 // bytes
)

func ignoringEINTR(fn func() (int, error)) (n int, err error) {
	for {
		if n, err = fn(); err != unix.EINTR {
			return n, err
		}
	}
}
