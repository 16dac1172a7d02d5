//go:build !linux

package confine

import (
	"errors"
	"fmt"
	"runtime"
)

func drop(o Options) error { return check(o) }

func check(o Options) error {
	if _, err := parseCapabilities(o.Keep); err != nil {
		return err
	}
	if o.User != "" {
		if _, err := parseUser(o.User); err != nil {
			return err
		}
	}
	return fmt.Errorf("give up rights: not known how on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

func restrict(Rules) (Report, error) {
	return Report{}, fmt.Errorf("confine to some files: %s has no Landlock: %w", runtime.GOOS, errors.ErrUnsupported)
}

// SystemFiles is of Linux.
func SystemFiles() (read, write []string) { return nil, nil }
