package sockdiag

import "net/netip"

// subflows tells the TCP sockets that Multipath TCP sockets consist of. They
// have the inode of their connection; where that has none, not being accepted
// or closed by its process, its first subflow still has the same two ends.
type subflows struct {
	inodes map[uint32]struct{}
	ends   map[ends]struct{}
}

type ends struct{ local, remote netip.AddrPort }

func newSubflows() *subflows {
	return &subflows{inodes: map[uint32]struct{}{}, ends: map[ends]struct{}{}}
}

// add takes note of a Multipath TCP socket.
func (f *subflows) add(s *Socket) {
	if f == nil {
		return
	}
	if s.Inode != 0 {
		f.inodes[s.Inode] = struct{}{}
	}
	if s.Remote.IsValid() {
		f.ends[ends{s.Local, s.Remote}] = struct{}{}
	}
}

// have says whether the TCP socket is a subflow of a socket taken note of.
func (f *subflows) have(s *Socket) bool {
	if f == nil {
		return false
	}
	_, sameInode := f.inodes[s.Inode]
	_, sameEnds := f.ends[ends{s.Local, s.Remote}]
	return sameInode || sameEnds
}
