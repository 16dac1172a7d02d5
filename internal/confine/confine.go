// Package confine takes from a process what it no longer needs once its sockets
// are open: the rights of root, and the file system.
//
//	err := confine.Drop(confine.Options{User: "nobody", Keep: []string{"net_bind_service"}})
//	read, write := confine.SystemFiles()
//	report, err := confine.Landlock(confine.Rules{Read: append(read, "/etc/fivetuple"), Write: append(write, "/run/fivetuple")})
//
// Drop comes first: it needs rights that Landlock takes. Neither can be undone,
// and both hold for children too. What is open stays open.
//
// Credentials, capabilities and Landlock's rules belong to a thread in Linux, not
// to a process, and a Go program has a dozen threads. Each system call here is
// therefore made on all of them: by [syscall.AllThreadsSyscall], or in a program
// with cgo by libpsx. New threads have what the thread that makes them has.
//
// It stands on capabilities(7), PR_SET_NO_NEW_PRIVS (Linux 3.5, prctl(2)) and
// landlock(7) (Linux 5.13). Elsewhere than on Linux everything here is an error
// that wraps [errors.ErrUnsupported].
package confine

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
)

// Options say what Drop leaves to the process.
type Options struct {
	// User is "user", "user:group", "uid" or "uid:gid"; a user without a group gets
	// the one of passwd(5). Root is refused. "" stays the user that it is.
	User string
	// Keep are capabilities that are kept: net_bind_service to bind ports below 1024
	// later on, net_admin or net_raw to connect from the addresses of clients
	// (IP_TRANSPARENT, ip(7)). Case and a leading "cap_" do not matter. Children do
	// not get them.
	Keep []string
}

// Drop becomes the user, without any supplementary groups: one that the Unix socket
// of a target needs is to be named as the group. It clears all capabilities but
// those to keep, and sets no_new_privs, so that no set-user-ID program gives them
// back. Then it makes sure of it, for every thread.
//
// A process that already is the user keeps its supplementary groups. One that
// changes its user is no longer dumpable (PR_SET_DUMPABLE, prctl(2)): others of the
// same user can neither trace it nor see its descriptors.
//
// After an error the process may have lost some rights and not others: it must end.
func Drop(o Options) error { return drop(o) }

// Check says whether Drop would find a reason to refuse. It changes nothing.
func Check(o Options) error { return check(o) }

// Rules of Landlock say what the process may still do. Paths are those of files
// or of directories with all that is below them, now and later. A path that does
// not exist gets no rule: see [Report.Absent]. A rule for a file holds for that
// file, not for one that is moved into its place: name the directory if it is to be
// read again.
type Rules struct {
	Read    []string // to open and to list
	Write   []string // also to write to; below directories to make and remove files, directories and Unix sockets
	Execute []string // also to run

	// Ports to bind TCP sockets to and to connect them to; nil is any, an empty
	// slice none. 0 is a port of the kernel's choice. (Linux 6.7)
	Bind, Connect []uint16
	// Abstract forbids to connect to abstract Unix sockets (unix(7)) but those that the
	// process has opened since, and before Landlock's ABI 8 at times to these too: each
	// thread has rules of its own there, and is a stranger to the others. (Linux 6.12)
	Abstract bool
	// Signals forbids to send signals to processes outside, and before ABI 8 at times
	// to children too: not for a process that supervises others. (Linux 6.15)
	Signals bool
}

// Report says what Landlock does here.
type Report struct {
	ABI      int      // Landlock's version in this kernel
	Confined []string // what it confines
	Missing  []string // what was asked for and this kernel cannot confine, each with the version that can
	Absent   []string // paths of the rules that do not exist

	allowed []string
}

// Landlock confines the process to the rules, in all its threads, and sets
// no_new_privs. An older kernel confines what it can, which the report says; an
// error wraps [errors.ErrUnsupported] where it has no Landlock at all, and nothing
// has changed then.
//
// Landlock forbids the opening of files. It does not govern: what is open; what
// takes no opening, such as stat(2), chmod(2), readlink(2) and chdir(2); connecting
// to Unix sockets by path; UDP and Multipath TCP. Permissions hold besides.
//
// A forbidden file is EACCES, a forbidden rename or link between directories EXDEV,
// a forbidden port EACCES, a forbidden abstract socket or signal EPERM. The process
// can no longer read what is in /proc of processes outside.
func Landlock(r Rules) (Report, error) { return restrict(r) }

// String is one line: "Landlock (ABI 7) confines files, TCP binds; not UDP (needs …)".
func (r Report) String() string {
	s := fmt.Sprintf("Landlock (ABI %d) confines %s", r.ABI, strings.Join(r.Confined, ", "))
	if len(r.Missing) > 0 {
		s += "; not " + strings.Join(r.Missing, ", ")
	}
	return s
}

// Explain says of an error of package os whether it is the rules that forbid the
// path, which its permissions would not tell. Other errors stay as they are.
func (r Report) Explain(err error) error {
	var denied *fs.PathError
	if !errors.As(err, &denied) || !errors.Is(err, fs.ErrPermission) || len(r.allowed) == 0 {
		return err
	}
	path := resolve(denied.Path)
	for _, root := range r.allowed {
		if path == root || strings.HasPrefix(path, strings.TrimSuffix(root, "/")+"/") {
			return err
		}
	}
	return fmt.Errorf("%w: it is outside of what this process left itself when it started: start it anew to have it use other files", err)
}

// resolve follows symbolic links as far as the path exists: the kernel looks at
// where a path leads.
func resolve(path string) string {
	path, err := filepath.Abs(path)
	if err != nil {
		return path
	}
	if p, err := filepath.EvalSymlinks(path); err == nil {
		return p
	}
	dir, name := filepath.Split(path)
	if dir == path {
		return path
	}
	return filepath.Join(resolve(filepath.Clean(dir)), name)
}
