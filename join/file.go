package join

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// FileOptions are for one file that is sent or received.
type FileOptions struct {
	Rate int64 // bytes per second; 0 unlimited
	// Progress is called after each piece, in the same goroutine, with the bytes so
	// far and their total, or -1 where that is not known. nil: not at all.
	Progress func(done, total int64)
}

// FileResult is what was sent or received, also where an error came with it.
type FileResult struct {
	Bytes  int64
	SHA256 string // of these bytes, in hex
	Took   time.Duration
}

// SendFile writes the file to w, from its start to its end, and leaves w open. Where
// it is a regular file that became shorter meanwhile, the error says so. The end of
// ctx interrupts a write by w's SetDeadline; a w without one is written to its next
// piece of 256 KiB.
func SendFile(ctx context.Context, w io.Writer, path string, o FileOptions) (FileResult, error) {
	f, err := os.Open(path)
	if err != nil {
		return FileResult{}, fmt.Errorf("send file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return FileResult{}, fmt.Errorf("send file: %w", err)
	}
	if info.IsDir() {
		return FileResult{}, fmt.Errorf("send file %s: is a directory: pack it first, with tar", path)
	}
	total := int64(-1)
	if info.Mode().IsRegular() {
		total = info.Size()
	}
	t := newTransfer(ctx, o, total)
	defer t.interruptible(f)() // it may be a named pipe
	err = t.copy(w, f, w)
	if err == nil && t.done < total {
		err = fmt.Errorf("the file had %d bytes at first and %d at last", total, t.done)
	}
	if err != nil {
		err = fmt.Errorf("send file %s, after %d bytes: %w", path, t.done, err)
	}
	return t.result(), err
}

// ReceiveFile makes the file of what r gives until its end of file. Until then the
// bytes are in a temporary file beside it, .ft-receive-*, that others cannot read;
// then they are synced to the disk and take the name, with the permissions of the
// file that had it before, else 0644 less the umask. On any error, the peer's reset,
// a full disk and the end of ctx among them, the temporary file is removed and what
// was there before is untouched; only a killed process leaves one behind.
//
// A symbolic link is followed. What is there and is no regular file is an error.
// Over plain TCP an end of file that comes too soon looks like any other: compare the
// sum. The end of ctx interrupts a read by r's SetDeadline; a r without one is read
// until it returns.
func ReceiveFile(ctx context.Context, r io.Reader, path string, o FileOptions) (FileResult, error) {
	t := newTransfer(ctx, o, -1)
	if err := t.receive(r, path); err != nil {
		return t.result(), fmt.Errorf("receive file %s, after %d bytes: %w", path, t.done, explain(err))
	}
	return t.result(), nil
}

func explain(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: make room or choose another directory; nothing is left there", err)
	}
	return err
}

// transfer is one file on its way.
type transfer struct {
	ctx   context.Context
	o     FileOptions
	total int64
	done  int64
	sum   hash.Hash
	start time.Time
}

func newTransfer(ctx context.Context, o FileOptions, total int64) *transfer {
	return &transfer{ctx: ctx, o: o, total: total, sum: sha256.New(), start: time.Now()}
}

func (t *transfer) result() FileResult {
	return FileResult{Bytes: t.done, SHA256: hex.EncodeToString(t.sum.Sum(nil)), Took: time.Since(t.start)}
}

// copy passes on all of r. The peer is r or w: the end of ctx interrupts it.
func (t *transfer) copy(w io.Writer, r io.Reader, peer any) (err error) {
	defer t.interruptible(peer)()
	defer func() {
		if err != nil && t.ctx.Err() != nil {
			err = context.Cause(t.ctx)
		}
	}()
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	piece := *buf
	pace := newPacer(t.o.Rate, nil, t.ctx.Done())
	if pace != nil {
		piece = piece[:min(len(piece), pace.piece)]
	}
	for t.ctx.Err() == nil {
		n, readErr := r.Read(piece)
		if n > 0 {
			if pace != nil {
				pace.wait(n)
			}
			if err := t.write(w, piece[:n]); err != nil {
				return err
			}
		}
		switch {
		case readErr == io.EOF:
			return nil
		case readErr != nil:
			return readErr
		}
	}
	return context.Cause(t.ctx)
}

func (t *transfer) write(w io.Writer, b []byte) error {
	n, err := w.Write(b)
	n = max(n, 0)
	t.sum.Write(b[:n])
	t.done += int64(n)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	if t.o.Progress != nil {
		t.o.Progress(t.done, t.total)
	}
	return err
}

// interruptible makes the end of ctx end what the peer is in; the function returned
// ends that again.
func (t *transfer) interruptible(peer any) func() {
	interrupt, resume := func() {}, func() {}
	switch p := peer.(type) {
	case *stdio:
		interrupt, resume = p.interrupt, p.resume
	case *Kept:
		return t.interruptible(p.End)
	case deadliner:
		interrupt = func() { p.SetDeadline(time.Unix(1, 0)) }
		resume = func() { p.SetDeadline(time.Time{}) }
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(t.ctx, func() {
		defer close(interrupted)
		interrupt()
	})
	return func() {
		if !stop() {
			<-interrupted
			resume()
		}
	}
}

func (t *transfer) receive(r io.Reader, path string) error {
	target, mode, err := landing(path)
	if err != nil {
		return err
	}
	directory := filepath.Dir(target)
	if mode == 0 {
		if mode, err = newFileMode(directory); err != nil {
			return err
		}
	}
	temporary, err := os.CreateTemp(directory, ".ft-receive-*") // O_EXCL, 0600
	if err != nil {
		return err
	}
	defer os.Remove(temporary.Name())
	defer temporary.Close()
	if err := t.copy(temporary, r, r); err != nil {
		return err
	}
	if err := errors.Join(temporary.Chmod(mode), temporary.Sync(), temporary.Close()); err != nil {
		return err
	}
	if _, _, err := landing(path); err != nil {
		return err // something came there meanwhile
	}
	if err := os.Rename(temporary.Name(), target); err != nil {
		return err
	}
	return syncDirectory(directory)
}

// landing is the file that the path stands for, links followed, and the permissions
// that it has, none if it is to be made.
func landing(path string) (target string, mode fs.FileMode, err error) {
	info, err := os.Lstat(path)
	if err == nil && info.Mode()&fs.ModeSymlink != 0 {
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return "", 0, fmt.Errorf("a symbolic link that leads nowhere: %w", err)
		}
		info, err = os.Lstat(path)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return path, 0, nil
	case err != nil:
		return "", 0, err
	case info.IsDir():
		return "", 0, errors.New("is a directory: name a file in it")
	case !info.Mode().IsRegular():
		return "", 0, fmt.Errorf("is no regular file (%v): to write into it, write to standard output and redirect that", info.Mode().Type())
	}
	return path, info.Mode().Perm(), nil
}

// newFileMode is what 0644 comes to in the directory. The umask cannot be read but by
// setting it, for the whole process; the file system can be asked for a file's.
func newFileMode(directory string) (fs.FileMode, error) {
	for range 10 {
		name := filepath.Join(directory, fmt.Sprintf(".ft-receive-mode-%d-%d", os.Getpid(), time.Now().UnixNano()))
		f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		info, err := f.Stat()
		f.Close()
		os.Remove(name)
		if err != nil {
			return 0, err
		}
		return info.Mode().Perm(), nil
	}
	return 0, fmt.Errorf("no free name for a temporary file in %s", directory)
}

// syncDirectory makes the new name last. Some file systems and systems cannot; what
// the file holds is on the disk already.
func syncDirectory(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer d.Close()
	if err := d.Sync(); errors.Is(err, syscall.EIO) {
		return fmt.Errorf("the file is complete, its name may not outlast a crash: %w", err)
	}
	return nil
}
