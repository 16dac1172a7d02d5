//go:build !unix

package claims

import "iter"

// Board does nothing on this system: see the package comment.
type Board struct{}

// Open always succeeds.
func Open(dir, id string) (*Board, error) { return &Board{}, nil }

// Check finds nothing amiss.
func (*Board) Check() error { return nil }

// Put does nothing.
func (*Board) Put(slot int, c Claim) error { return nil }

// Clear does nothing.
func (*Board) Clear(slot int) error { return nil }

// Reset does nothing.
func (*Board) Reset(claims iter.Seq2[int, Claim]) error { return nil }

// Others knows of no other registry.
func (*Board) Others(see func(uid uint32, c Claim) bool) (Skipped, error) { return Skipped{}, nil }

// Sweep does nothing.
func (*Board) Sweep(live func(Claim) bool) error { return nil }

// Remove does nothing.
func (*Board) Remove() error { return nil }

// Close does nothing.
func (*Board) Close() error { return nil }
