//go:build !unix

package tui

import "time"

// processorTime stands for the time that the process has used, which is less.
func processorTime() time.Duration { return time.Duration(time.Now().UnixNano()) }
