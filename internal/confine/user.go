package confine

import (
	"errors"
	"fmt"
	"math"
	"os/user"
	"strconv"
	"strings"
)

type identity struct{ uid, gid int }

// parseUser reads "user", "user:group" by name or number.
func parseUser(s string) (identity, error) {
	name, group, grouped := strings.Cut(s, ":")
	if name == "" || grouped && group == "" {
		return identity{}, fmt.Errorf("user %q: write USER or USER:GROUP, by name or number", s)
	}
	uid, gid, err := lookupUser(name)
	if err == nil && grouped {
		gid, err = lookupGroup(group)
	}
	if err == nil && gid == unknown {
		err = fmt.Errorf("no user has the number %s, so its group is not known: write %s:GID", name, name)
	}
	if err == nil && uid == 0 {
		err = errors.New("root gives nothing up: name a user for this service, or nobody")
	}
	if err != nil {
		return identity{}, fmt.Errorf("user %q: %w", s, err)
	}
	return identity{uid, gid}, nil
}

// unknown is no group: -1 to setresgid(2).
const unknown = math.MaxUint32

// lookupUser looks up the user's group too. A number need not be anybody's.
func lookupUser(name string) (uid, gid int, err error) {
	var u *user.User
	if !isNumber(name) {
		if u, err = user.Lookup(name); err != nil {
			return 0, 0, missing(err, "adduser --system --no-create-home "+name)
		}
	} else if u, err = user.LookupId(name); err != nil {
		uid, err = parseID(name)
		return uid, unknown, err
	}
	if uid, err = parseID(u.Uid); err == nil {
		gid, err = parseID(u.Gid)
	}
	return uid, gid, err
}

func lookupGroup(name string) (int, error) {
	if isNumber(name) {
		return parseID(name)
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, missing(err, "addgroup --system "+name)
	}
	return parseID(g.Gid)
}

func missing(err error, command string) error {
	return fmt.Errorf("%w: make it (%s), or give a number", err, command)
}

func isNumber(s string) bool { return strings.Trim(s, "0123456789") == "" }

func parseID(s string) (int, error) {
	id, err := strconv.ParseUint(s, 10, 32)
	if err != nil || id == math.MaxUint32 { // which is -1, no change, to setresuid(2)
		return 0, fmt.Errorf("%s is not a number from 0 to 4294967294", s)
	}
	return int(id), nil
}
