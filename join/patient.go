package join

import (
	"errors"
	"os"
	"sync"
	"syscall"
)

// patient lets somebody stop waiting for a system call that does not return. A
// goroutine makes one call after the other, each when it is asked to, on a buffer
// that is its own until it has answered.
type patient struct {
	f         *os.File
	ask       chan []byte
	answer    chan answer
	asked     bool // and not answered
	running   bool
	done      chan struct{} // closed: no more will be asked
	closed    sync.Once
	mu        sync.Mutex
	interrupt chan struct{} // closed: nobody waits
}

type answer struct {
	n   int
	err error
}

func newPatient(f *os.File) *patient {
	return &patient{
		f: f, ask: make(chan []byte, 1), answer: make(chan answer, 1),
		done: make(chan struct{}), interrupt: make(chan struct{}),
	}
}

func (p *patient) setInterrupted(yes bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.interrupt:
		if !yes {
			p.interrupt = make(chan struct{})
		}
	default:
		if yes {
			close(p.interrupt)
		}
	}
}

func (p *patient) interrupted() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.interrupt
}

// start has the call made on b.
func (p *patient) start(call func([]byte) (int, error), b []byte) {
	if !p.running {
		p.running = true
		go func() {
			for {
				select {
				case b := <-p.ask:
					n, err := call(b)
					p.answer <- answer{n, err}
				case <-p.done:
					return
				}
			}
		}()
	}
	p.asked = true
	p.ask <- b
}

// wait waits for the call, or the interruption.
func (p *patient) wait() (int, error) {
	select {
	case a := <-p.answer:
		p.asked = false
		return a.n, a.err
	case <-p.interrupted():
		return 0, os.ErrDeadlineExceeded
	case <-p.done:
		return 0, os.ErrClosed
	}
}

// Close lets the goroutine end after the call that it is in.
func (p *patient) Close() error {
	p.closed.Do(func() { close(p.done) })
	return p.f.Close()
}

// patientReader reads on after an interruption where it was.
type patientReader struct {
	*patient
	buf  []byte
	rest []byte // of buf, not taken yet
	err  error
}

func (r *patientReader) Read(p []byte) (int, error) {
	if len(r.rest) == 0 && r.err == nil {
		if !r.asked {
			r.start(r.read, r.buf)
		}
		n, err := r.wait()
		if r.asked {
			return 0, err
		}
		r.rest, r.err = r.buf[:n], err
	}
	if len(r.rest) == 0 {
		return 0, r.err
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// read also waits where another process has made the terminal or pipe, which it
// shares, not block.
func (r *patientReader) read(b []byte) (int, error) {
	for {
		n, err := r.f.Read(b)
		if n > 0 || !errors.Is(err, syscall.EAGAIN) {
			return n, err
		}
		if err := waitReadable(r.f); err != nil {
			return 0, err
		}
	}
}

// patientWriter gives what it writes to its goroutine; after an interruption that may
// still be written.
type patientWriter struct {
	*patient
	buf []byte
}

func (w *patientWriter) Write(p []byte) (written int, err error) {
	if w.asked {
		if _, err := w.wait(); err != nil {
			return 0, err
		}
	}
	for written < len(p) && err == nil {
		var n int
		b := w.buf[:copy(w.buf, p[written:])]
		w.start(w.write, b)
		n, err = w.wait()
		written += n
	}
	return written, err
}

func (w *patientWriter) write(b []byte) (written int, err error) {
	for {
		n, err := w.f.Write(b[written:])
		written += n
		if !errors.Is(err, syscall.EAGAIN) {
			return written, err
		}
		if err := waitWritable(w.f); err != nil {
			return written, err
		}
	}
}
