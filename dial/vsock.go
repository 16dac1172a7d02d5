package dial

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/vsock"
)

// dialVsock connects to a port of another context.
func (d Dialer) dialVsock(ctx context.Context, e fivetuple.Endpoint) (connection, error) {
	if e.CID == vsock.Any || e.VPort == vsock.Any {
		return connection{}, errors.New("* is for listening: name the context and the port")
	}
	var c connection
	var err error
	config := vsock.Config{Control: control(d.Options, &c.granted)}
	if c.Conn, err = config.Dial(ctx, e.CID, e.VPort); err != nil {
		return connection{}, d.cut(ctx, noContext(e.CID), explainVsock(err, e.CID))
	}
	return c, nil
}

// explainVsock is for what connecting to a port of a context met.
func explainVsock(err error, cid uint32) error {
	_, err = strip(err)
	switch {
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.ECONNREFUSED):
		return withAdvice(err, "nobody listens there")
	case errors.Is(err, syscall.ENODEV) && cid == vsock.Local:
		return withAdvice(err, "this kernel has no vsock loopback: load the module vsock_loopback")
	case errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EADDRNOTAVAIL):
		return withAdvice(err, "this kernel has no way to context %d: it is no running virtual machine, or a module is missing (on a host vhost_vsock, in a guest vmw_vsock_virtio_transport)", cid)
	case errors.Is(err, syscall.ETIMEDOUT):
		return withAdvice(err, "%s", noContext(cid))
	case errors.Is(err, syscall.EAFNOSUPPORT):
		return withAdvice(err, "this kernel has no vsock: load the module vsock")
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return explainFiles(err)
	}
	return err
}

func noContext(cid uint32) string {
	if cid == vsock.Local {
		return "no answer from context 1, which is this machine only with the module vsock_loopback"
	}
	return fmt.Sprintf("no answer from context %d: is there such a virtual machine?", cid)
}
