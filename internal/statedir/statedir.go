// Package statedir says where the files are that ft keeps from one run to the
// next.
package statedir

import (
	"errors"
	"os"
	"path/filepath"
)

// Path returns the path of a file of this user's: in $STATE_DIRECTORY if a
// service manager gives one (systemd.exec(5)), in /var/lib/fivetuple for root,
// and in the XDG state directory for others
// (https://specifications.freedesktop.org/basedir-spec).
func Path(name string) (string, error) {
	dir, err := dir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, name), nil
}

func dir() (string, error) {
	given := filepath.SplitList(os.Getenv("STATE_DIRECTORY")) // may be several, with colons between them
	switch {
	case len(given) > 0 && given[0] != "":
		return given[0], nil
	case os.Getuid() == 0:
		return "/var/lib/fivetuple", nil
	case os.Getenv("XDG_STATE_HOME") != "":
		return filepath.Join(os.Getenv("XDG_STATE_HOME"), "fivetuple"), nil
	case os.Getenv("HOME") != "":
		return filepath.Join(os.Getenv("HOME"), ".local", "state", "fivetuple"), nil
	}
	return "", errors.New("no state directory: set HOME, XDG_STATE_HOME or STATE_DIRECTORY")
}
