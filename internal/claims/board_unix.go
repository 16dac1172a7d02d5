//go:build unix

package claims

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Board is the directory with the claims of all registries, as one of them has
// it open. Several processes of a registry can have it open; they, and the
// goroutines of each, must take turns: the registry's lock is held from Put to
// the decision that follows it.
type Board struct {
	dir   string
	plain string // name of this registry's file, if nobody else took that
	id    [idSize]byte
	uid   uint32

	file     *os.File // nil: there is none
	dev, ino uint64   // of file
	complete bool     // file has all claims
}

// Open opens the directory for a registry, whose id is of at most 32
// hexadecimal digits: random ones that it had from its beginning, as two
// registries of a user with the same id would be one. It creates nothing: see
// [Board.Check].
func Open(dir, id string) (*Board, error) {
	if id == "" || len(id) > idSize || strings.Trim(id, "0123456789abcdef") != "" {
		return nil, fmt.Errorf("id %q of a registry: want 1 to %d hexadecimal digits", id, idSize)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("directory of claims: %w", err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("directory of claims: %s is no directory", dir)
	}
	if info.Mode()&0o022 != 0 && info.Mode()&fs.ModeSticky == 0 {
		return nil, fmt.Errorf("directory of claims: in %s anyone can remove the files of others: chmod +t %[1]s", dir)
	}
	b := &Board{dir: dir, uid: uint32(os.Geteuid())}
	b.plain = fmt.Sprintf("%s%d-%s", prefix, b.uid, id)
	copy(b.id[:], id)
	if err := b.find(); err != nil {
		return nil, fmt.Errorf("directory of claims: %w", err)
	}
	return b, nil
}

// Check returns [ErrMissing] unless all claims of this registry are there. Other
// methods check that themselves; this is for a program that holds leases for
// weeks, since systemd-tmpfiles(8) removes what nobody read or wrote for a month.
func (b *Board) Check() error {
	linked, err := b.linked()
	if linked || err != nil {
		return err
	}
	// Another process of this registry may have put it back.
	if err := b.find(); err != nil {
		return err
	}
	if !b.complete {
		return fmt.Errorf("%s: %w", filepath.Join(b.dir, b.plain), ErrMissing)
	}
	return nil
}

// linked says whether the complete file is still where others see it.
func (b *Board) linked() (bool, error) {
	if !b.complete {
		return false, nil
	}
	var st unix.Stat_t
	err := unix.Lstat(b.file.Name(), &st)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, &fs.PathError{Op: "lstat", Path: b.file.Name(), Err: err}
	}
	return uint64(st.Dev) == b.dev && uint64(st.Ino) == b.ino, nil
}

// Put makes a claim known to all. With [ErrMissing] that is for Reset to do, as
// it is with every other claim of this registry; after other errors it is not
// known whether the others see it. The time it takes does not depend on the
// number of claims.
func (b *Board) Put(slot int, c Claim) error {
	u, err := c.encode()
	if err != nil {
		return err
	}
	return b.write(slot, u)
}

// Clear withdraws a claim. A free slot stays free. Errors are those of Put.
func (b *Board) Clear(slot int) error { return b.write(slot, unit{}) }

func (b *Board) write(slot int, u unit) error {
	if err := checkSlot(slot); err != nil {
		return err
	}
	for {
		// First written, then looked whether that was the right file: so it can
		// not be removed in between.
		before := b.file
		if b.complete {
			if _, err := b.file.WriteAt(u[:], offset(slot)); err != nil {
				return advise(err)
			}
		}
		if err := b.Check(); err != nil || b.file == before {
			return err
		}
	}
}

// Reset replaces all claims of this registry: the first time, after [ErrMissing],
// and when none of the old ones can be valid, such as after a restart of the
// machine. Claims that keep their slot are seen by others all the while.
func (b *Board) Reset(claims iter.Seq2[int, Claim]) error {
	head := header(b.id) // not complete
	image := head[:]
	for slot, c := range claims {
		if err := checkSlot(slot); err != nil {
			return err
		}
		u, err := c.encode()
		if err != nil {
			return err
		}
		if missing := offset(slot+1) - int64(len(image)); missing > 0 {
			image = append(image, make([]byte, missing)...)
		}
		copy(image[offset(slot):], u[:])
	}
	if err := b.Check(); err != nil && !errors.Is(err, ErrMissing) {
		return err
	}
	if b.file == nil {
		if err := b.create(); err != nil {
			return advise(err)
		}
	}
	b.complete = false
	if _, err := b.file.WriteAt(image, 0); err != nil {
		return advise(err)
	}
	if err := b.file.Truncate(int64(len(image))); err != nil {
		return err
	}
	if _, err := b.file.WriteAt([]byte{1}, completeAt); err != nil {
		return advise(err)
	}
	b.complete = true
	return b.Check()
}

func advise(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("make claims known to other registries: %w: delete files there", err)
	case errors.Is(err, unix.EROFS), errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("make claims known to other registries: %w: the directory must let everyone create files", err)
	}
	return fmt.Errorf("make claims known to other registries: %w", err)
}

// Remove deletes this registry's file, and with it all its claims.
func (b *Board) Remove() error {
	if err := b.Check(); err != nil && !errors.Is(err, ErrMissing) {
		return err
	}
	if b.file == nil {
		return nil
	}
	defer b.drop()
	return os.Remove(b.file.Name())
}

// Close closes the board. The claims stay.
func (b *Board) Close() error {
	b.drop()
	return nil
}

func (b *Board) drop() {
	if b.file != nil {
		b.file.Close() // nothing is buffered
	}
	b.file, b.complete = nil, false
}
