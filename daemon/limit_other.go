//go:build !unix

package daemon

// descriptorLimit is a guess where there is no limit to ask for.
func descriptorLimit() int { return 16384 }
