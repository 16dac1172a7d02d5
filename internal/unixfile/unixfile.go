// Package unixfile makes and removes the files that Unix sockets are bound to.
// A file is born with its permissions, stands in for a stale one only when
// nobody listens there, and goes when its socket does.
//
// It stands on bind(2), which makes the file (unix(7)), on flock(2) for the
// lock between processes that find the same stale file, and on O_PATH of
// open(2), so that owner and mode are those of the file that was made even if
// others can write to its directory. Elsewhere than on Linux there is no lock,
// and the permissions are set after bind.
package unixfile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// Config says who may use a socket's file.
type Config struct {
	// Mode is its permissions. Default 0600. The umask does not count.
	Mode fs.FileMode
	// Owner is "user", "user:group" or ":group", each a name or a number; ""
	// leaves the file to this process's user.
	Owner string
}

// Control is a Control function of package net; it may be nil.
type Control = func(network, address string, c syscall.RawConn) error

// Bind has bind make a socket of Go's network ("unix", "unixgram",
// "unixpacket") bound to the path, and returns it with its file. bind must run
// the Control function on the socket before it binds it; closing the socket
// must leave the file alone. A name that begins with "@" is of the abstract
// name space: it has no file (nil), and no mode and owner either.
//
// A socket file that nobody listens on is replaced; if somebody does the error
// wraps [syscall.EADDRINUSE], if something else is there [fs.ErrExist]. A lock
// on the directory makes one of several processes that do this at once the
// first. After an error there is neither socket nor file.
func Bind[S io.Closer](ctx context.Context, network, path string, c Config, bind func(Control) (S, error)) (s S, f *File, err error) {
	var none S
	if strings.HasPrefix(path, "@") {
		if c != (Config{}) {
			return none, nil, errors.New("a mode or an owner goes with a path; a name in the abstract name space is open to all on this host")
		}
		s, err = bind(nil)
		return s, nil, bare(err)
	}
	owner, err := parseOwner(c.Owner)
	if err != nil {
		return none, nil, err
	}
	mode := cmp.Or(c.Mode.Perm(), 0o600)
	unlock, err := makeRoom(ctx, network, path)
	if err != nil {
		return none, nil, err
	}
	defer unlock()
	born := mode
	if owner != nobody {
		born = 0 // until it is the owner's
	}
	if s, err = bind(modeBeforeBind(born)); err != nil {
		return none, nil, explain(bare(err), path)
	}
	info, err := settle(path, born, mode, owner)
	if err != nil {
		(&File{path: path, info: info}).Remove()
		s.Close()
		return none, nil, err
	}
	return s, &File{path: path, info: info}, nil
}

// File is the file of a bound socket. A nil File stands for none.
type File struct {
	path   string
	info   fs.FileInfo
	remove sync.Once // a later file may get the same inode number
}

// Of returns the file of a socket that somebody has bound to the path. It is nil
// where no socket's file is seen, as for an abstract name.
func Of(path string) *File {
	if strings.HasPrefix(path, "@") {
		return nil
	}
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Type() != fs.ModeSocket {
		return nil
	}
	return &File{path: path, info: info}
}

// Remove removes the file, unless another has taken its place. Do so before
// the socket is closed: then nobody finds the file and no socket. What comes
// after the first call does nothing.
func (f *File) Remove() {
	if f == nil || f.info == nil {
		return
	}
	f.remove.Do(func() {
		if now, err := os.Lstat(f.path); err == nil && os.SameFile(now, f.info) {
			os.Remove(f.path)
		}
	})
}

// makeRoom locks the directory of path, until unlock, and removes a stale file:
// a socket that another process has bound and does not listen on yet would look
// stale too. Where there is no file a directory that cannot be locked will do.
func makeRoom(ctx context.Context, network, path string) (unlock func(), err error) {
	unlock, err = lockDirOf(ctx, path)
	if err != nil {
		if _, there := os.Lstat(path); there == nil {
			return nil, err
		}
		return func() {}, nil
	}
	if err := removeStale(ctx, network, path); err != nil {
		unlock()
		return nil, err
	}
	return unlock, nil
}

// removeStale removes the socket file of a process that is gone.
func removeStale(ctx context.Context, network, path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%w: the path is a %s, not a socket: choose another", fs.ErrExist, describe(info.Mode()))
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, path)
	switch {
	case err == nil:
		conn.Close()
		return inUse(nil)
	case errors.Is(err, syscall.ECONNREFUSED):
		return os.Remove(path)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%w: a socket of another user is there: remove it, or choose another path", bare(err))
	}
	// EPROTOTYPE: a live socket of another type. EAGAIN: a full backlog. EPERM:
	// a datagram socket that is connected to another.
	return inUse(bare(err))
}

func inUse(why error) error {
	if why == nil {
		return fmt.Errorf("%w: somebody listens there: stop it, or choose another path", syscall.EADDRINUSE)
	}
	return fmt.Errorf("%w (%w): somebody has a socket there: stop it, or choose another path", syscall.EADDRINUSE, why)
}

func describe(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "directory"
	case m.IsRegular():
		return "file"
	case m.Type() == fs.ModeSymlink:
		return "symbolic link"
	}
	return "special file"
}

// bare drops what package net adds to an error of the system: the caller names
// the endpoint.
func bare(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// explain says of an error of bind(2) what to do.
func explain(err error, path string) error {
	switch dir := filepath.Dir(path); {
	case errors.Is(err, syscall.ENOENT):
		return fmt.Errorf("%w: make the directory %s first", err, dir)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%w: this user may not make files in %s", err, dir)
	}
	return err
}
