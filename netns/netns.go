// Package netns lists the network namespaces of the machine and runs functions
// in them. It stands on proc(5) and setns(2); entering another namespace needs
// CAP_SYS_ADMIN. On other systems every call fails with an error wrapping
// [errors.ErrUnsupported].
package netns

// Namespace is a network namespace (network_namespaces(7)).
type Namespace struct {
	// ID is its inode number, as ls -l /proc/PID/ns/net shows it.
	ID uint64
	// Name is that of ip-netns(8), "" if it has none.
	Name string
	// PID is a process in it, 0 if none is known; Path is where it can be opened.
	PID  int
	Path string
}
