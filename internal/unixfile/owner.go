package unixfile

import (
	"fmt"
	"os/user"
	"strconv"
	"strings"
)

// owner is a user and a group by number; -1 leaves what there is, as in chown(2).
type owner struct{ uid, gid int }

// parseOwner reads "user", "user:group" and ":group".
func parseOwner(s string) (o owner, err error) {
	o = owner{-1, -1}
	if s == "" {
		return o, nil
	}
	name, group, both := strings.Cut(s, ":")
	if name != "" {
		if o.uid, err = idOf(name, lookupUser); err != nil {
			return o, fmt.Errorf("owner %q: %w", s, err)
		}
	}
	if both || name == "" {
		if group == "" {
			return o, fmt.Errorf("owner %q: no group after the colon: write user, user:group or :group", s)
		}
		if o.gid, err = idOf(group, lookupGroup); err != nil {
			return o, fmt.Errorf("owner %q: %w", s, err)
		}
	}
	return o, nil
}

// idOf takes a number as it is and looks up a name. The greatest number of 32
// bits is none: chown(2) takes it for "leave it".
func idOf(s string, lookup func(string) (string, error)) (int, error) {
	id, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		text, err := lookup(s)
		if err != nil {
			return -1, err
		}
		if id, err = strconv.ParseUint(text, 10, 32); err != nil {
			return -1, fmt.Errorf("%s has no number here: %w", s, err)
		}
	}
	if id == 1<<32-1 {
		return -1, fmt.Errorf("%s is no user or group", s)
	}
	return int(id), nil
}

func lookupUser(name string) (string, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return "", err
	}
	return u.Uid, nil
}

func lookupGroup(name string) (string, error) {
	g, err := user.LookupGroup(name)
	if err != nil {
		return "", err
	}
	return g.Gid, nil
}

// String is the owner by numbers, as parseOwner reads it.
func (o owner) String() string {
	switch {
	case o.gid < 0:
		return strconv.Itoa(o.uid)
	case o.uid < 0:
		return ":" + strconv.Itoa(o.gid)
	}
	return strconv.Itoa(o.uid) + ":" + strconv.Itoa(o.gid)
}
