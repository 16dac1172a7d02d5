package inspect

import (
	"slices"

	"github.com/fivetuple/fivetuple/sockopt"
)

// Option is an option of a live socket.
type Option struct {
	sockopt.Setting
	// Default is the value of a new socket of the same kind, made here and now;
	// "" if it has none, or if the option is a report and no setting.
	Default string
	// Changed says that somebody set it, as far as can be told: the value is
	// not Default, and the kernel does not change it by itself.
	Changed bool
}

// adapted are options that the kernel itself changes while a socket is used.
var adapted = []string{"incoming-cpu", "maxseg", "mtu", "mtu6", "quickack", "rcvlowat", "window-clamp"}

// compared joins the options of a socket with those of a new one.
func compared(have, fresh []sockopt.Setting) []Option {
	defaults := map[string]string{}
	for _, s := range fresh {
		defaults[s.Option().Name] = s.Value()
	}
	tuned := sizesTuned(have)
	all := make([]Option, len(have))
	for i, s := range have {
		all[i] = Option{Setting: s}
		o := s.Option()
		if o.Access == sockopt.ReadOnly {
			continue
		}
		var known bool
		all[i].Default, known = defaults[o.Name]
		all[i].Changed = known && all[i].Default != s.Value() &&
			!slices.Contains(adapted, o.Name) && !slices.Contains(tuned, o.Name)
	}
	return all
}

// sizesTuned returns the buffer sizes that nobody has fixed, so that the kernel
// grows and shrinks them (SO_BUF_LOCK, Linux 5.15). Where it is not told, that
// is both.
func sizesTuned(have []sockopt.Setting) []string {
	var tuned []string
	for i, name := range []string{"sndbuf", "rcvbuf"} {
		locked := slices.ContainsFunc(have, func(s sockopt.Setting) bool {
			return s.Option().Name == "buf-lock" && s.Int()&(1<<i) != 0
		})
		if !locked {
			tuned = append(tuned, name)
		}
	}
	return tuned
}

// NotInherited are the options of a TCP listener that the connections it accepts
// do not take over.
func NotInherited() []string {
	return []string{"defer-accept", "fastopen", "incoming-cpu", "priority", "quickack"}
}
