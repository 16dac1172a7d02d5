package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/service"
)

// passed is a socket that a service manager opened.
type passed struct {
	service.Socket
	used bool
}

// passedTo finds the sockets that a service manager opened for a service, and the
// endpoints that are left to be opened. The files are copies: those of the manager
// stay for a service that takes this one's place.
func (d *Daemon) passedTo(ctx context.Context, s Service) (sockets []service.Socket, left []fivetuple.Endpoint, err error) {
	if len(d.passed) == 0 {
		return nil, []fivetuple.Endpoint{s.Listen.Endpoint}, nil
	}
	for _, asked := range s.ports() {
		e, err := d.resolve(ctx, asked)
		if err != nil {
			closeSockets(sockets)
			return nil, nil, err
		}
		found := false
		for _, p := range d.passed {
			if !sameSocket(p.Endpoint, e) {
				continue
			}
			f, err := duplicate(p.File)
			if err != nil {
				closeSockets(sockets)
				return nil, nil, fmt.Errorf("listen on %s: use the socket that was passed: %w", asked, err)
			}
			p.used, found = true, true
			sockets = append(sockets, service.Socket{Endpoint: asked, File: f})
		}
		if !found {
			left = append(left, asked)
		}
	}
	return sockets, left, nil
}

// sameSocket says whether a socket is at an endpoint whose names are resolved.
func sameSocket(socket, e fivetuple.Endpoint) bool {
	if e.Network == fivetuple.TLS {
		e.Network = fivetuple.TCP
	}
	if e.Network.Protocol() != socket.Network.Protocol() || e.Path != socket.Path {
		return false
	}
	if !e.Network.IsIP() {
		return true
	}
	at, _ := socket.Addr()
	if e.Ports.First != socket.Ports.First || e.Ports.First == 0 {
		return false
	}
	addr, literal := e.Addr()
	switch {
	case literal:
		return at.Unmap() == addr.Unmap()
	case e.Host == fivetuple.AnyHost:
		return at.IsUnspecified()
	}
	return at.IsLoopback()
}

// checkPassed refuses sockets that nobody serves: clients would wait at them.
func (d *Daemon) checkPassed() error {
	var errs []error
	for _, p := range d.passed {
		if !p.used {
			errs = append(errs, fmt.Errorf("the socket of %s was passed, and no service listens there: give one listen: %s, or take it out of the socket unit", p.Endpoint, p.Endpoint))
		}
	}
	return errors.Join(errs...)
}

func (d *Daemon) closePassed() {
	for _, p := range d.passed {
		p.File.Close()
	}
	d.passed = nil
}

func closeSockets(sockets []service.Socket) {
	for _, s := range sockets {
		s.File.Close()
	}
}

// duplicate copies a descriptor, and leaves the mode of the open file as it is.
func duplicate(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var dupErr error
	if err := raw.Control(func(old uintptr) { fd, dupErr = dup(int(old)) }); err != nil {
		return nil, err
	}
	if dupErr != nil {
		return nil, os.NewSyscallError("dup", dupErr)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
