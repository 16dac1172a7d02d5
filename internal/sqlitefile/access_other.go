//go:build !unix

package sqlitefile

// SQLite finds out for itself.

func checkReadable(string) error { return nil }

func checkWritable(string) error { return nil }
