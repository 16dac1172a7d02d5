package activation

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple/sockopt"
)

// notCarried are options that would let others bind the port, or that end with the bind.
var notCarried = []string{"reuseaddr", "reuseport", "v6only", "bindtodevice", "bindtoifindex"}

// carryOptions sets on the socket what the program has set on its own: what is not
// as on a fresh one. It returns what could not be.
func carryOptions(program, held int) (problems []error) {
	changed, err := changedOptions(program)
	if err != nil {
		return []error{fmt.Errorf("carry the program's socket options over: %w", err)}
	}
	for _, s := range changed {
		name := s.Option().Name
		if have, err := sockopt.Get(held, name); err == nil && have == s {
			continue
		}
		if name == "rcvbuf" || name == "sndbuf" { // read back doubled
			if s, err = sockopt.Parse(fmt.Sprintf("%s=%d", name, s.Int()/2)); err != nil {
				problems = append(problems, err)
				continue
			}
		}
		// An option of IPv6 alone has nothing to do on an IPv4 socket.
		if _, err := sockopt.Apply(held, s); err != nil && !errors.Is(err, sockopt.ErrSocket) {
			problems = append(problems, fmt.Errorf("the program's socket option is lost: %w", err))
		}
	}
	return problems
}

// changedOptions come with those of the higher layers first: the type of service
// sets the priority (ip(7)), which may have been set since.
func changedOptions(fd int) ([]sockopt.Setting, error) {
	fresh, err := likeFresh(fd)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fresh)
	defaults, err := sockopt.GetAll(fresh)
	if err != nil {
		return nil, err
	}
	have, err := sockopt.GetAll(fd)
	if err != nil {
		return nil, err
	}
	changed := slices.DeleteFunc(have, func(s sockopt.Setting) bool {
		o := s.Option()
		return o.Access != sockopt.ReadWrite || slices.Contains(notCarried, o.Name) || slices.Contains(defaults, s)
	})
	slices.Reverse(changed)
	return changed, nil
}

// likeFresh opens a socket of the same domain, type and protocol.
func likeFresh(fd int) (int, error) {
	var get [3]int
	for i, option := range []int{unix.SO_DOMAIN, unix.SO_TYPE, unix.SO_PROTOCOL} {
		value, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, option)
		if err != nil {
			return -1, os.NewSyscallError("getsockopt", err)
		}
		get[i] = value
	}
	fresh, err := unix.Socket(get[0], get[1]|unix.SOCK_CLOEXEC, get[2])
	return fresh, os.NewSyscallError("socket", err)
}
