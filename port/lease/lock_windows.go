package lease

import (
	"context"
	"time"
)

// fileLock does nothing here: SQLite's own lock keeps processes apart.
type fileLock struct{ path string }

func (l *fileLock) lock(context.Context, time.Duration) error { return nil }
func (l *fileLock) unlock()                                   {}
func (l *fileLock) setDirty(bool) error                       { return nil }
func (l *fileLock) isDirty() bool                             { return false }
func (l *fileLock) close() error                              { return nil }
