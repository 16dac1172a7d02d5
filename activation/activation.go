// Package activation runs a command on sockets that are bound for it, so that
// between the choice of a port and the command's use of it nobody else can get it.
//
//	file, err := activation.Open(fivetuple.TCP, netip.MustParseAddrPort("127.0.0.1:50000"))
//	...
//	err = activation.Exec(activation.Command{Path: "python3", Args: []string{"-m", "http.server", "50000"}, Env: os.Environ()},
//		[]activation.Socket{{Name: "web", File: file}},
//		activation.Options{Supervisor: []string{"/proc/self/exe", "port", "supervise"}})
//
// The command may take its sockets in two ways:
//
//   - as sd_listen_fds(3) says: descriptors from 3 on, LISTEN_FDS, LISTEN_PID and
//     LISTEN_FDNAMES. [Inherited] is that way in Go.
//   - by binding the port itself, as any server does. A seccomp filter (seccomp_unotify(2))
//     shows each bind(2) of the command and of what it starts to a supervisor, which
//     puts the socket that is held in the place of the program's own and lets bind
//     succeed. Every other bind goes on as if nothing were there.
//
// The command takes over the process that calls [Exec]: pid, parent and terminal
// stay, so signals, job control and exit codes are its own. The supervisor is a
// process beside it, no child of it. It ends when the last process under the
// filter does; meanwhile it must live, since without it bind fails with ENOSYS.
//
// The supervisor needs the right to look into the command's processes as a debugger
// (ptrace(2)). Where only their ancestors have it, as users without CAP_SYS_PTRACE
// under Yama's kernel.yama.ptrace_scope of 1, the calling process stays as the
// command's parent and looks for the supervisor:
//
//   - The command is in its process group, and has all its signals but those that
//     stop and continue. In the foreground of a terminal it passes on no SIGINT,
//     SIGQUIT and SIGWINCH, which the terminal sends to the whole group. A signal
//     that another sends to the group comes twice.
//   - It ends as the command does, with its exit code or by the same signal, but
//     dumps no core. What the command left behind, or leaves while it runs, it reaps.
//   - Once it has ended, be it killed, all binds go on unchanged. While it is stopped
//     they wait. A command that alone stops itself does not stop it.
//
// What a program that binds for itself may notice:
//
//   - The port is open to clients before the program listens; they wait for it. To
//     one that tries the port with connect(2) it looks taken.
//   - Each bind to the port gives the same socket: to the workers of a server that
//     meant to have one each (SO_REUSEPORT), and upon a bind after a close. The
//     blocking mode (O_NONBLOCK) is that of the last bind.
//   - Bound to all addresses (0.0.0.0, ::), or to the other of 127.0.0.1 and ::1,
//     it has the address that is held, which is reported. A TCP socket may then be
//     of the other family, and so the addresses of its connections.
//   - Of what was done to its own socket before, it keeps O_NONBLOCK, close-on-exec
//     and the options that package sockopt can read and set, but SO_REUSEADDR,
//     SO_REUSEPORT, IPV6_V6ONLY and the binding to a device, which would open the
//     port to others. Lost are packet filters, multicast memberships, an epoll(7)
//     registration, and copies of the descriptor, which stay unbound.
//   - A program that stops listening by shutdown(2), or that sets SO_REUSEADDR or
//     SO_REUSEPORT on the socket after the bind, opens the port to others itself.
//   - Descriptors from 3 on are open in what the command starts, as with systemd: a
//     daemon that outlives the command keeps the port, unless it closes them.
//
// It needs Linux 5.9 on amd64 or arm64, and that right at least for a parent: a
// kernel.yama.ptrace_scope over 1 and some containers deny it, and there is none to
// a setuid program. Binds through io_uring(7) or by 32-bit programs are not
// seen. Where it cannot be, [Exec] warns and the sockets are passed the first way
// only. Without CAP_SYS_ADMIN the filter also needs PR_SET_NO_NEW_PRIVS, under
// which the command cannot gain privileges: sudo(8) and ping(8) may fail.
// On systems other than Linux every call fails with an error wrapping
// [errors.ErrUnsupported].
package activation

import (
	"errors"
	"net/netip"
	"os"

	"github.com/fivetuple/fivetuple"
)

// ErrUnsupervised is wrapped by the error of an [Exec] that requires supervision
// and cannot have it.
var ErrUnsupervised = errors.New("programs that bind the port themselves will find it in use; only those that take LISTEN_FDS work")

// Socket is a TCP socket that listens or a UDP socket that is bound.
type Socket struct {
	// Name is what the command knows it by, in LISTEN_FDNAMES: up to 255
	// printable ASCII characters but ':'. Several may have the same. Empty, it is
	// "unknown", as sd_listen_fds_with_names(3) has it.
	Name string
	File *os.File
}

// Command is a program and how to start it.
type Command struct {
	Path string   // looked up in PATH if it has no slash
	Args []string // without the program's name
	Env  []string // complete; LISTEN_* in it are replaced
}

// Options are those of [Exec]. Supervisor must be set.
type Options struct {
	// Supervisor is a command line that runs [Supervise], and nothing before it
	// that has side effects: it is run up to three times. It gets the caller's
	// environment, directory and standard error.
	Supervisor []string
	// Started is called with the pid that the command will have, before it runs. It
	// is this process's own or that of a child, which then has not yet the command's
	// name. After an error the command is not run and Exec returns the error.
	Started func(pid int) error
	// Require makes Exec fail where binds cannot be supervised. By default the
	// command is then run all the same, and Warn is called.
	Require bool
	// Warn is told what the command will have to do without. nil drops it.
	Warn func(string)
}

// SuperviseOptions are those of [Supervise]. The zero value will do.
type SuperviseOptions struct {
	// Ended is called once the command has ended, however it did, and the
	// supervisor has closed the sockets.
	Ended func()
	// Log is told what a person should know, one line each: that a program was
	// given another address than it asked for. nil writes it to standard error,
	// which is open until the command has ended.
	Log func(string)
}

// Open binds a socket for [Exec]. protocol is TCP or UDP, or one of these with an
// address family; the port is not 0. Nobody else can bind there while it is open:
// a TCP socket listens when Open returns, a UDP socket has no SO_REUSEADDR. An
// error wraps that of the kernel, such as EADDRINUSE or EACCES.
//
// A TCP socket is bound beside old connections in TIME_WAIT, and is not of
// Multipath TCP. "::" is all IPv4 addresses too, unless protocol is TCP6 or UDP6.
// A UDP socket on one IPv4 address is an IPv6 socket where that can be, bound to
// the mapped address (RFC 4291 section 2.5.5.2), until a program binds it as IPv4:
// in that direction only a socket can change its family.
func Open(protocol fivetuple.Network, at netip.AddrPort) (*os.File, error) {
	return open(protocol, at)
}

// Exec runs the command in the place of the calling process, or as its child as
// told above, and returns only if it cannot be started; the process is then as
// before. The supervisor may hold the sockets nevertheless until the process that
// was to run the command, this one or its child, is gone, and calls its Ended then.
//
// While the command is a child other goroutines run on, and all children of this
// process are waited for.
func Exec(cmd Command, sockets []Socket, o Options) error { return run(cmd, sockets, o) }

// Pass runs the command in the place of the calling process, with open files of
// any kind passed as sd_listen_fds(3) says and nothing else: binds are the
// command's own affair. It returns only if the command cannot be started.
func Pass(cmd Command, files []Socket) error { return pass(cmd, files) }

// Supervise is the supervisor's main function: it returns when the command and all
// that it started under the filter have ended, or at once in the first of its runs.
// It takes descriptor 3, ignores the signals by which terminals and service
// managers end processes, and changes to the root directory. In a third run it is
// the child that becomes the command. Only a process that [Exec] started can call it.
func Supervise(o SuperviseOptions) error { return supervise(o) }

// Inherited returns the sockets that were passed to this process as
// sd_listen_fds(3) says, none if there are none. They are close-on-exec and the
// environment is cleared of them, so that a second call returns none and what this
// process starts does not take them for its own. The sockets may be of any kind.
func Inherited() ([]Socket, error) { return inherited() }
