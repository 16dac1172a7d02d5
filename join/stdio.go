package join

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// Stdio is standard input and output, or another file to read and one to write, as an
// end. CloseWrite closes out, which tells a pipe's reader that no more comes; Close
// closes both. It owns the files: use them no more, and let them be two.
//
// What cannot be interrupted, such as reading a terminal or a pipe from the shell, is
// done by a goroutine of its own, which stays behind when Run ends meanwhile. It ends
// with the read or write that it is in. What it reads is kept for the next Read, if
// there is one: see [Keep].
//
// Writing where nobody reads any more is an error and no SIGPIPE, on descriptors 1
// and 2 too.
func Stdio(in, out *os.File) End {
	s := &stdio{in: newInput(in), outFile: out}
	duplicate, err := withoutSignal(out)
	if err != nil {
		s.outErr = fmt.Errorf("write %s: %w", out.Name(), err)
		duplicate = out
	}
	s.duplicate = duplicate
	s.out = newOutput(duplicate)
	return s
}

type stdio struct {
	in        input
	out       output
	outFile   *os.File
	duplicate *os.File // outFile, or one more descriptor of it
	outErr    error
	once      sync.Once // closes out
	closeErr  error
}

func (s *stdio) Read(p []byte) (int, error) { return s.in.Read(p) }

func (s *stdio) Write(p []byte) (int, error) {
	if s.outErr != nil {
		return 0, s.outErr
	}
	return s.out.Write(p)
}

func (s *stdio) CloseWrite() error {
	s.once.Do(func() {
		s.closeErr = s.out.Close()
		if s.duplicate != s.outFile {
			s.closeErr = errors.Join(s.closeErr, s.outFile.Close())
		}
	})
	return s.closeErr
}

func (s *stdio) Close() error {
	return errors.Join(s.CloseWrite(), s.in.Close())
}

func (s *stdio) interrupt() {
	s.in.setInterrupted(true)
	s.out.setInterrupted(true)
}

func (s *stdio) resume() {
	s.in.setInterrupted(false)
	s.out.setInterrupted(false)
}

type input interface {
	io.ReadCloser
	setInterrupted(bool)
}

type output interface {
	io.WriteCloser
	setInterrupted(bool)
}

func newInput(f *os.File) input {
	if f.SetReadDeadline(time.Time{}) == nil {
		return pollable{f}
	}
	return &patientReader{patient: newPatient(f), buf: make([]byte, 256<<10)}
}

func newOutput(f *os.File) output {
	if f.SetWriteDeadline(time.Time{}) == nil {
		return pollable{f}
	}
	return &patientWriter{patient: newPatient(f), buf: make([]byte, 64<<10)}
}

// pollable is a file that the runtime waits for: a pipe or socket that does not block.
type pollable struct{ *os.File }

func (p pollable) setInterrupted(yes bool) {
	var when time.Time
	if yes {
		when = time.Unix(1, 0)
	}
	p.SetDeadline(when)
}
