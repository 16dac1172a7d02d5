package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/ancillary"
	"github.com/fivetuple/fivetuple/secure"
	"github.com/fivetuple/fivetuple/service"
	"github.com/fivetuple/fivetuple/stream"
)

// Explanation is what a daemon relays at this moment.
type Explanation struct {
	Schema   int               `json:"schema"`
	PID      int               `json:"pid"`
	Services []service.Relayed `json:"services"` // those of the kind forward, by name
}

// Explain returns what the daemon relays.
func (d *Daemon) Explain() Explanation {
	e := Explanation{Schema: 1, PID: os.Getpid(), Services: []service.Relayed{}}
	for _, r := range d.all() {
		if r.forwards {
			e.Services = append(e.Services, r.service.Relayed())
		}
	}
	return e
}

// answerTimeout is how long one who asks may take.
const answerTimeout = 10 * time.Second

// ControlSocket answers questions about a daemon.
type ControlSocket struct {
	server *stream.Server
	served sync.WaitGroup
}

// ServeControl answers whoever connects to the socket NAME-PID.sock in a directory
// with the [Explanation] of the moment, in JSON, and closes: processes of the same
// user, and root (SO_PEERCRED, unix(7)). Sockets there that processes left behind which
// are gone are removed.
func (d *Daemon) ServeControl(ctx context.Context, dir, name string) (*ControlSocket, error) {
	for _, path := range leftBehind(ctx, dir) {
		os.Remove(path)
	}
	e := fivetuple.Endpoint{Network: fivetuple.Unix, Path: filepath.Join(dir, fmt.Sprintf("%s-%d.sock", name, os.Getpid()))}
	ln, err := stream.ListenConfig{Mode: 0o600}.Listen(ctx, e)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	s := &ControlSocket{server: &stream.Server{Handler: stream.HandlerFunc(d.answer), Limits: stream.Limits{MaxConns: 16, IdleTimeout: answerTimeout}}}
	s.served.Go(func() { s.server.Serve(ln) })
	return s, nil
}

// answer writes the explanation to one who may have it.
func (d *Daemon) answer(_ context.Context, c *stream.Conn) error {
	uc, ok := secure.NetConn(c).(*net.UnixConn)
	if !ok {
		return errors.New("not a Unix socket")
	}
	peer, err := ancillary.PeerCredentials(uc)
	if err != nil {
		return err
	}
	if err := mayAsk(peer, os.Geteuid()); err != nil {
		return err
	}
	b, err := json.Marshal(d.Explain())
	if err != nil {
		return err
	}
	c.SetWriteDeadline(time.Now().Add(answerTimeout))
	_, err = c.Write(append(b, '\n'))
	return err
}

// mayAsk refuses those who are neither root nor the user of the daemon.
func mayAsk(peer ancillary.Credentials, uid int) error {
	if peer.UID != 0 && int(peer.UID) != uid {
		return fmt.Errorf("user %d may not ask: %w", peer.UID, os.ErrPermission)
	}
	return nil
}

// Close answers nobody any more, and removes the socket.
func (s *ControlSocket) Close() error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	err := s.server.Shutdown(ctx)
	s.served.Wait()
	if errors.Is(err, context.Canceled) {
		return nil // somebody was in the middle of asking
	}
	return err
}

var controlName = regexp.MustCompile(`^(.+)-([0-9]+)\.sock$`)

// Controls are the control sockets of processes that run, in a directory, by name
// and process id.
func Controls(ctx context.Context, dir string) (paths []string, err error) {
	return controls(ctx, dir, true)
}

// leftBehind are those of processes that are gone.
func leftBehind(ctx context.Context, dir string) []string {
	paths, _ := controls(ctx, dir, false)
	return paths
}

func controls(ctx context.Context, dir string, alive bool) (paths []string, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("control sockets: %w", err)
	}
	for _, entry := range entries {
		m := controlName.FindStringSubmatch(entry.Name())
		if m == nil || entry.Type() != os.ModeSocket {
			continue
		}
		if _, err := strconv.Atoi(m[2]); err != nil {
			continue
		}
		path := filepath.Join(dir, entry.Name())
		c, err := ask(ctx, path)
		if err == nil {
			c.Close()
		}
		if alive && err == nil || !alive && errors.Is(err, syscall.ECONNREFUSED) {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	return paths, nil
}

func ask(ctx context.Context, path string) (net.Conn, error) {
	d := net.Dialer{Timeout: answerTimeout}
	return d.DialContext(ctx, "unix", path)
}

// AskControl returns the [Explanation], in JSON, of the daemon whose control socket
// is at path.
func AskControl(ctx context.Context, path string) ([]byte, error) {
	c, err := ask(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", path, err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	c.SetDeadline(time.Now().Add(answerTimeout))
	const most = 1 << 30
	b, err := io.ReadAll(io.LimitReader(c, most))
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", path, err)
	}
	if !json.Valid(b) {
		return nil, fmt.Errorf("ask %s: it answered %d bytes, which are no document: it may be another user's", path, len(b))
	}
	return b, nil
}
