package sockdiag

import "context"

// Get reads one socket again. TCP and UDP are looked up by their ends and the
// Cookie, Unix sockets by Inode and Cookie; the others, and listeners that
// share their address by SO_REUSEPORT, are searched for, by Inode if Cookie is
// 0. The Info is the caller's to keep. The error wraps [fs.ErrNotExist] if the
// socket is gone, or has other ends by now.
func Get(ctx context.Context, s Socket, details Details) (Socket, error) {
	return get(ctx, s, details)
}
