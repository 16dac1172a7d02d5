package activation

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// connFD is where a process that [Exec] starts finds its connection.
const connFD = 3

func supervise(o SuperviseOptions) error {
	kind, err := unix.GetsockoptInt(connFD, unix.SOL_SOCKET, unix.SO_TYPE)
	domain, errDomain := unix.GetsockoptInt(connFD, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil || errDomain != nil || domain != unix.AF_UNIX || kind != unix.SOCK_STREAM && kind != unix.SOCK_SEQPACKET {
		return errors.New("supervise a command: nobody asked for it on descriptor 3; this is not to be run by hand")
	}
	unix.CloseOnExec(connFD)
	if kind == unix.SOCK_STREAM {
		err = becomeCommand()
	} else if session, errSession := unix.Getsid(0); errSession != nil {
		err = os.NewSyscallError("getsid", errSession)
	} else if session != os.Getpid() {
		// The first run is the child of the process that becomes the command, and no
		// session leader, since it was not made one.
		err = detach()
	} else {
		err = superviseDetached(o)
	}
	if err != nil {
		return fmt.Errorf("supervise a command: %w", err)
	}
	return nil
}

// detach runs this program again in a session of its own, out of reach of the
// terminal, and leaves it to the first process.
func detach() error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	// What the command inherited besides is none of the supervisor's, which can
	// outlive it (Linux 5.11; before that it keeps them).
	unix.CloseRange(connFD+1, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	p, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{
		Files: []*os.File{null, null, os.Stderr, os.NewFile(connFD, "command")},
		Sys:   &unix.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return err
	}
	return p.Release()
}

func superviseDetached(o SuperviseOptions) error {
	// SIGPIPE: the command's standard error may be a pipe whose reader has left.
	signal.Ignore(unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGHUP, unix.SIGPIPE,
		unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM)
	if err := os.Chdir("/"); err != nil {
		return err
	}
	// Started by /proc/self/exe, it would be called exe in every list.
	os.WriteFile("/proc/self/comm", []byte(filepath.Base(os.Args[0])), 0)
	s, err := receive()
	if s == nil {
		return err
	}
	s.log = o.Log
	if s.log == nil {
		s.log = func(line string) { fmt.Fprintln(os.Stderr, line) }
	}
	return s.run(o.Ended)
}

// supervisor answers binds, one at a time.
type supervisor struct {
	command int // pidfd, -1 once it has ended
	notify  int // the filter's descriptor, -1 without one
	asks    int // connection to the process that looks for this one, -1 for none
	held    []held
	log     func(string)
	logged  map[string]bool
}

// held is a socket to put in place.
type held struct {
	fd int
	endpoint
}

// endpoint is what a bind asks for, and what a socket has.
type endpoint struct {
	kind int // SOCK_STREAM for TCP, SOCK_DGRAM for UDP
	at   netip.AddrPort
	// only6 is the IPV6_V6ONLY of a socket that is held, which matters to :: only.
	only6 bool
}

// receive takes what the launch sends and answers it. No supervisor and no error
// is a launch that has failed.
func receive() (*supervisor, error) {
	for {
		word, fds, err := receiveMessage(connFD)
		if err != nil || word == "" {
			unix.Close(connFD)
			return nil, err
		}
		s, err := newSupervisor(word, fds)
		if err != nil {
			return nil, err
		}
		answer := readyWord
		if word == superviseWord {
			if err := mayLookInto(s.command); err != nil {
				answer = err.Error()
			}
		}
		if err := unix.Sendto(connFD, []byte(answer), unix.MSG_NOSIGNAL, nil); err != nil {
			return nil, os.NewSyscallError("send", err)
		}
		if answer == readyWord {
			if word != askWord {
				unix.Close(connFD)
			}
			return s, nil
		}
		for _, fd := range fds {
			unix.Close(fd)
		}
	}
}

// receiveMessage returns no text at the end.
func receiveMessage(conn int) (text string, fds []int, err error) {
	message, rights := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4*(maxSockets+2)))
	var nRights int
	n, err := ignoringEINTR(func() (n int, err error) {
		n, nRights, _, _, err = unix.Recvmsg(conn, message, rights, unix.MSG_CMSG_CLOEXEC)
		return n, err
	})
	if err != nil {
		return "", nil, os.NewSyscallError("recvmsg", err)
	}
	messages, err := unix.ParseSocketControlMessage(rights[:nRights])
	if err == nil && len(messages) > 0 {
		fds, err = unix.ParseUnixRights(&messages[0])
	}
	return string(message[:n]), fds, err
}

func newSupervisor(word string, fds []int) (*supervisor, error) {
	s := &supervisor{notify: -1, asks: -1, logged: make(map[string]bool)}
	if len(fds) < 3 && word != watchWord || len(fds) < 2 {
		return nil, fmt.Errorf("%d descriptors are too few", len(fds))
	}
	s.command, fds = fds[0], fds[1:]
	if word != watchWord {
		s.notify, fds = fds[0], fds[1:]
	}
	if word == askWord {
		s.asks = connFD
	}
	for _, fd := range fds {
		h, err := holds(fd)
		if err != nil {
			return nil, err
		}
		s.held = append(s.held, h)
	}
	return s, nil
}

func holds(fd int) (held, error) {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return held{}, os.NewSyscallError("getsockopt", err)
	}
	address, err := unix.Getsockname(fd)
	if err != nil {
		return held{}, os.NewSyscallError("getsockname", err)
	}
	only6, _ := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY) // an error: it is IPv4
	return held{fd, endpoint{kind, addrPort(address), only6 == 1}}, nil
}

// run returns when no process is left that could bind, and Ended has.
func (s *supervisor) run(ended func()) error {
	var after sync.WaitGroup
	defer after.Wait()
	for {
		events := []unix.PollFd{{Fd: int32(s.command), Events: unix.POLLIN}, {Fd: int32(s.notify), Events: unix.POLLIN}}
		_, err := ignoringEINTR(func() (int, error) { return unix.Poll(events, -1) })
		if err != nil {
			return os.NewSyscallError("poll", err)
		}
		if events[0].Revents != 0 {
			s.release()
			after.Go(func() { afterwards(ended) })
		}
		switch {
		case events[1].Revents&unix.POLLIN != 0:
			s.answer()
		case events[1].Revents != 0: // POLLHUP: nobody is under the filter
			unix.Close(s.notify)
			s.notify = -1
		}
		if s.command < 0 && s.notify < 0 {
			return nil
		}
	}
}

// release lets go of the sockets. What the command has left behind may hold them still.
func (s *supervisor) release() {
	for _, h := range s.held {
		unix.Close(h.fd)
	}
	s.held = nil
	unix.Close(s.command)
	s.command = -1
}

// afterwards first leaves the command's standard error, whose reader may wait for its end.
func afterwards(ended func()) {
	if null, err := unix.Open(os.DevNull, unix.O_WRONLY|unix.O_CLOEXEC, 0); err == nil {
		unix.Dup3(null, 2, 0)
		unix.Close(null)
	}
	if ended != nil {
		ended()
	}
}

// answer answers one bind. That its process was killed meanwhile, or left it for a
// signal, is no error: the answer then finds nobody.
func (s *supervisor) answer() {
	var n notification
	if err := ioctl(s.notify, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n)); err != nil {
		return
	}
	answer := response{id: n.id}
	if !s.replace(&n) {
		answer.flags = unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE
	}
	_ = ioctl(s.notify, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&answer))
}

// say tells each thing once.
func (s *supervisor) say(format string, args ...any) {
	const enough = 100
	line := fmt.Sprintf(format, args...)
	if !s.logged[line] && len(s.logged) < enough {
		s.logged[line] = true
		s.log(line)
	}
}
