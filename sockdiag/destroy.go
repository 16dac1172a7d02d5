package sockdiag

import "context"

// Destroy closes a TCP or UDP socket, whoever holds it (SOCK_DESTROY): the
// process finds ECONNABORTED, a TCP peer a reset. It closes the socket with the
// ends and the Cookie of s and no other. Listeners, UDP sockets, and
// connections in SYN_RECV and TIME_WAIT, which no process holds, are closed too.
//
// It needs CAP_NET_ADMIN in the network namespace; without, the error wraps
// [fs.ErrPermission]. It wraps [fs.ErrNotExist] if the socket is gone, and
// [errors.ErrUnsupported] if the kernel cannot close it: sockets of other
// protocols, MPTCP included, TCP sockets that are only bound, and all where
// the kernel was built without CONFIG_INET_DIAG_DESTROY.
func Destroy(ctx context.Context, s Socket) error {
	return destroy(ctx, s)
}
