package ancillary

import (
	"cmp"
	"math"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

func peerCredentials(c syscall.Conn) (Credentials, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return Credentials{}, err
	}
	var cred *unix.Ucred
	var callErr error
	err = raw.Control(func(fd uintptr) {
		cred, callErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := cmp.Or(err, os.NewSyscallError("getsockopt SO_PEERCRED", callErr)); err != nil {
		return Credentials{}, err
	}
	if cred.Uid == math.MaxUint32 && cred.Gid == math.MaxUint32 { // nobody's ids: cred_to_ucred of net/core/sock.c
		return Credentials{}, ErrNoCredentials
	}
	return Credentials{PID: int(cred.Pid), UID: cred.Uid, GID: cred.Gid}, nil
}
