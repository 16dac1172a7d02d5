package unixfile

import (
	"errors"
	"fmt"
	"math"
	"os/user"
	"strconv"
	"strings"
)

// owner is a user and a group by number; -1 leaves what there is, as in chown(2).
type owner struct{ uid, gid int }

var nobody = owner{-1, -1}

// parseOwner reads "user", "user:group" and ":group", by name or number.
func parseOwner(s string) (owner, error) {
	if s == "" {
		return nobody, nil
	}
	o := nobody
	name, group, both := strings.Cut(s, ":")
	var err error
	if group == "" && (both || name == "") {
		err = errors.New("no group after the colon")
	}
	if err == nil && name != "" {
		o.uid, err = idOf(name, "user", lookupUser)
	}
	if err == nil && group != "" {
		o.gid, err = idOf(group, "group", lookupGroup)
	}
	if err != nil {
		return nobody, fmt.Errorf("owner %q: %w: write user, user:group or :group, by name or number", s, err)
	}
	return o, nil
}

// idOf takes a number as it is, which need not be anybody's, and looks up a name.
func idOf(s, what string, lookup func(string) (string, error)) (int, error) {
	text := s
	if strings.Trim(s, "0123456789") != "" {
		var err error
		if text, err = lookup(s); err != nil {
			return -1, err
		}
	}
	id, err := strconv.ParseUint(text, 10, 32)
	if err != nil || id == math.MaxUint32 { // which is -1 to chown(2)
		return -1, fmt.Errorf("%s is not a %s id", text, what)
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
