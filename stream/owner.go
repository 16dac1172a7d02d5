package stream

import (
	"errors"
	"fmt"
	"math"
	"os/user"
	"strconv"
	"strings"
)

// ids are who a file shall belong to; -1 leaves what is, as in chown(2).
type ids struct{ uid, gid int }

var noIDs = ids{-1, -1}

// parseOwner reads "user", "user:group" or ":group", by name or number.
func parseOwner(s string) (ids, error) {
	name, group, both := strings.Cut(s, ":")
	who := noIDs
	var err error
	switch {
	case s == "":
		return who, nil
	case name == "" && group == "", both && group == "":
		err = errors.New("no group after the colon")
	}
	if err == nil && name != "" {
		who.uid, err = lookUp(name, "user", func(s string) (string, error) {
			u, err := user.Lookup(s)
			if err != nil {
				return "", err
			}
			return u.Uid, nil
		})
	}
	if err == nil && group != "" {
		who.gid, err = lookUp(group, "group", func(s string) (string, error) {
			g, err := user.LookupGroup(s)
			if err != nil {
				return "", err
			}
			return g.Gid, nil
		})
	}
	if err != nil {
		return noIDs, fmt.Errorf("owner %q: %w: write user, user:group or :group, by name or number", s, err)
	}
	return who, nil
}

// lookUp returns the id of a name. A number need not be anybody's.
func lookUp(s, what string, find func(string) (string, error)) (int, error) {
	id := s
	if strings.Trim(s, "0123456789") != "" {
		var err error
		if id, err = find(s); err != nil {
			return -1, err
		}
	}
	n, err := strconv.ParseUint(id, 10, 32)
	if err != nil || n == math.MaxUint32 { // which is -1 to chown(2)
		return -1, fmt.Errorf("%s is not a %s id", id, what)
	}
	return int(n), nil
}
