package lease

import "io/fs"

func checkOurs(fs.FileInfo) error { return nil }

// fileID is the same for all files: there are no claims here.
func fileID(fs.FileInfo) string { return "?" }
