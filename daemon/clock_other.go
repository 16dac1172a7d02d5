//go:build !linux

package daemon

func monotonic() (int64, bool) { return 0, false }
