package sockdiag

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
)

// dump calls each with the sockets that match, until it returns false. The
// Socket is overwritten for the next call.
func dump(ctx context.Context, q Query, each func(*Socket) bool) error {
	wanted, err := q.kinds()
	if err != nil {
		return err
	}
	c, err := dial()
	if err != nil {
		return err
	}
	defer c.close()
	requests := q.requests(wanted)
	if i := slices.IndexFunc(requests, func(r request) bool { return r.aside }); i >= 0 && len(requests) > 1 {
		stop, err := requests[i].start(ctx)
		if err != nil {
			return err
		}
		defer stop()
		requests = append(slices.Delete(slices.Clone(requests), i, i+1), requests[i]) // by when it is there
	}
	var s Socket
	var missing error // of a kind that the kernel cannot list
	listed := false
	for _, r := range requests {
		more, err := r.dump(ctx, c, &s, each)
		switch {
		case errors.Is(err, errors.ErrUnsupported):
			missing = fmt.Errorf("list %s sockets: %w", r.what, err)
			continue
		case err != nil:
			return fmt.Errorf("list %s sockets: %w", r.what, err)
		case !more:
			return nil
		}
		listed = true
	}
	if !listed {
		return missing
	}
	return nil
}

// request is one dump: the kernel lists one family and protocol at a time.
type request struct {
	what   string // "tcp", for errors
	module string // the kernel module that answers
	kind   uint16 // of the netlink message
	body   []byte
	decode func(*Socket, []byte) (keep bool, err error)
	aside  bool // takes long and gives little, so it is made beside the others
	answer *answer
	// proc reads what the kernel shows without the module, nil if nothing.
	proc func(s *Socket, each func(*Socket) bool) (more bool, err error)
}

func (q Query) requests(wanted kinds) []request {
	d := &decoder{details: q.Details, zones: zoneNames{}}
	if wanted.has(fivetuple.TCP) && wanted.has(fivetuple.MPTCP) {
		d.subflows = newSubflows()
	}
	all := q.inetRequests(wanted, d)
	if q.LocalPort != 0 || q.RemotePort != 0 {
		return all
	}
	if wanted.has(fivetuple.Raw) {
		all = append(all, q.rawRequests(d)...)
	}
	if wanted.has(fivetuple.ICMP) {
		all = append(all, q.icmpRequests(d)...)
	}
	if wanted.has(fivetuple.Unix) || wanted.has(fivetuple.Unixgram) || wanted.has(fivetuple.Seqpacket) {
		all = append(all, q.unixRequest(wanted))
	}
	if wanted.has(fivetuple.Packet) {
		all = append(all, q.packetRequest(d))
	}
	if wanted.has(fivetuple.Netlink) {
		all = append(all, q.netlinkRequest(d))
	}
	if wanted.has(fivetuple.Vsock) {
		all = append(all, q.vsockRequest())
	}
	return all
}

func (r request) dump(ctx context.Context, c *conn, s *Socket, each func(*Socket) bool) (more bool, err error) {
	err = unix.ENOENT
	if r.answer != nil {
		more, err = r.takeAnswer(s, each)
	} else if r.body != nil {
		more, err = c.dump(ctx, r.kind, r.body, func(body []byte) (bool, error) {
			keep, err := r.decode(s, body)
			if err != nil || !keep {
				return true, err
			}
			return each(s), nil
		})
	}
	if errors.Is(err, unix.ENOENT) && r.proc != nil {
		return r.proc(s, each)
	}
	return more, r.explain(err)
}

// answer is that of a request made beside others.
type answer struct {
	bodies [][]byte
	err    error
	ready  chan struct{} // closed when the others are set
}

// start makes the request on a socket of its own. stop waits for the end.
func (r *request) start(ctx context.Context) (stop func(), err error) {
	c, err := dial() // here: the goroutine may be in another network namespace
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	a := &answer{ready: make(chan struct{})}
	r.answer = a
	go func() {
		defer close(a.ready)
		defer c.close()
		_, a.err = c.dump(ctx, r.kind, r.body, func(body []byte) (bool, error) {
			a.bodies = append(a.bodies, slices.Clone(body))
			return true, nil
		})
	}()
	return func() { cancel(); <-a.ready }, nil
}

func (r request) takeAnswer(s *Socket, each func(*Socket) bool) (more bool, err error) {
	<-r.answer.ready
	for _, body := range r.answer.bodies {
		keep, err := r.decode(s, body)
		if err != nil {
			return false, err
		}
		if keep && !each(s) {
			return false, nil
		}
	}
	return true, r.answer.err
}

// explain says what the errors of a request mean. ENOENT: nobody answers for
// the family and protocol.
func (r request) explain(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("the kernel module %s is not there (try modprobe %s): %w: %w", r.module, r.module, err, errors.ErrUnsupported)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("the kernel refuses the request; it may be too old for the filter: %w", err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("a filter of marks needs CAP_NET_ADMIN: %w", err)
	}
	return err
}
