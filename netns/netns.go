// Package netns lists the network namespaces of the machine and runs functions
// in them. It stands on proc(5), the names of ip-netns(8) and setns(2);
// entering another namespace needs CAP_SYS_ADMIN. On other systems every call
// fails with an error wrapping [errors.ErrUnsupported].
package netns

// Namespace is a network namespace (network_namespaces(7)).
type Namespace struct {
	// ID is its inode number, as ls -l /proc/PID/ns/net shows it.
	ID uint64
	// Name is that of ip-netns(8), "" if it has none.
	Name string
	// PID is the lowest of a process in it, 0 if none is known. Path is where
	// it can be opened: at its name, at another mount, or under /proc/PID.
	PID  int
	Path string
}

// All lists the namespaces that a process is in, as far as the caller may look
// (ptrace(2); root may), and those that a name or a mount keeps, each once, by
// ID. Those that only a descriptor or a socket keeps are not found.
func All() ([]Namespace, error) { return all() }

// Current is the namespace of the calling thread, with that thread's PID.
func Current() (Namespace, error) { return current() }

// Do runs fn in the namespace: on the calling goroutine, locked to its thread,
// which is taken back afterwards. Goroutines that fn starts are not in it. The
// error is that of fn, or says why the namespace cannot be entered or left: it
// wraps [fs.ErrPermission] without CAP_SYS_ADMIN, [fs.ErrNotExist] if the
// namespace is gone. In the current namespace fn runs without any right.
func (n Namespace) Do(fn func() error) error { return n.do(fn) }
