package splice

import (
	"strings"
	"time"

	"github.com/fivetuple/fivetuple/relay/upstream"
)

// route is a Route with its defaults.
type route struct{ Route }

func newRoute(r Route) *route {
	orElse := func(d *time.Duration, otherwise time.Duration) {
		if *d <= 0 {
			*d = otherwise
		}
	}
	orElse(&r.HelloTimeout, DefaultHelloTimeout)
	orElse(&r.ConnectTimeout, DefaultConnectTimeout)
	orElse(&r.HalfClosed, DefaultHalfClosed)
	names := make(map[string]*upstream.Pool, len(r.Names))
	for name, pool := range r.Names {
		names[plainName(name)] = pool
	}
	r.Names = names
	return &route{r}
}

// plainName is a name as it is compared: in lower case, without the root's dot.
func plainName(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// named says whether clients go by the name that they greet.
func (r *route) named() bool { return len(r.Names) > 0 }

// match is the one of Names that a server name belongs to: itself, else the
// longest "*." that it is below; "" if there is none.
func (r *route) match(name string) string {
	name = plainName(name)
	if _, ok := r.Names[name]; ok {
		return name
	}
	for {
		_, above, ok := strings.Cut(name, ".")
		if !ok {
			return ""
		}
		if _, ok := r.Names["*."+above]; ok {
			return "*." + above
		}
		name = above
	}
}

// poolNamed is the pool of one of Names, or the one for all others; it may be nil.
func (r *route) poolNamed(name string) *upstream.Pool {
	if pool, ok := r.Names[name]; ok {
		return pool
	}
	return r.Pool
}
