//go:build !unix

package join

import (
	"errors"
	"os"
)

// withoutSignal is f: there is no SIGPIPE here.
func withoutSignal(f *os.File) (*os.File, error) { return f, nil }

func waitReadable(f *os.File) error { return errWait(f) }

func waitWritable(f *os.File) error { return errWait(f) }

func errWait(f *os.File) error {
	return &os.PathError{Op: "wait for", Path: f.Name(), Err: errors.ErrUnsupported}
}
