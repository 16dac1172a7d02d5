package owner

import "time"

// Ancestors returns the parent of a process, its parent, and so on up to process 1. The
// list ends early where a parent is outside the PID namespace, hidden by /proc
// (proc(5), hidepid), or has just ended. The error of a process that does not exist wraps [fs.ErrNotExist].
func Ancestors(pid int) ([]Process, error) { return ancestors(pid) }

// CommandLine returns the arguments of a process, the name of the program first. It is
// the process that says what they are: they hold any bytes. There are none of kernel
// threads and of processes that have ended but are not yet reaped. The error of a process
// that does not exist wraps [fs.ErrNotExist].
func CommandLine(pid int) ([]string, error) { return commandLine(pid) }

// Started is when the process started, to 1/100 s, by the clock as it is set now.
func (p Process) Started() (time.Time, error) { return started(p) }
