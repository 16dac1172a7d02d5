//go:build !unix

package env

import "context"

// lock does nothing: there is no flock(2).
func lock(context.Context) (unlock func(), err error) { return func() {}, nil }
