package splice

import (
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
	names := make(upstream.Names, len(r.Names))
	for name, pool := range r.Names {
		names[upstream.PlainName(name)] = pool
	}
	r.Names = names
	return &route{r}
}

// named says whether clients go by the name that they greet.
func (r *route) named() bool { return len(r.Names) > 0 }

// poolNamed is the pool of one of Names, or the one for all others; it may be nil.
func (r *route) poolNamed(name string) *upstream.Pool {
	if pool, ok := r.Names[name]; ok {
		return pool
	}
	return r.Pool
}
