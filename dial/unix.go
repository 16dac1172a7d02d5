package dial

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/fivetuple/fivetuple"
)

// How long to wait before a full backlog is tried again: the kernel tells nobody
// when there is room (unix_stream_connect in net/unix/af_unix.c).
const minPause, maxPause = time.Millisecond, 50 * time.Millisecond

// dialUnix connects to a Unix stream or seqpacket socket.
func (d Dialer) dialUnix(ctx context.Context, e fivetuple.Endpoint) (connection, error) {
	network, path, err := e.DialArgs()
	if err != nil {
		return connection{}, err
	}
	var c connection
	nd := net.Dialer{Control: control(d.Options, &c.granted)}
	stage := "connecting to the socket"
	for pause := minPause; ; pause = min(2*pause, maxPause) {
		if c.Conn, err = nd.DialContext(ctx, network, path); err == nil {
			return c, nil
		}
		full := errors.Is(err, syscall.EAGAIN)
		if full {
			stage = "the backlog of the socket is full: the program that listens there does not accept"
		}
		if !full || !sleep(ctx, pause) {
			return connection{}, d.cut(ctx, stage, explainUnix(err, network, path))
		}
	}
}

// sleep says whether ctx lasted for so long.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// explainUnix is for what connecting to a Unix socket met. network is the one tried.
func explainUnix(err error, network, path string) error {
	_, err = strip(err)
	abstract := strings.HasPrefix(path, "@")
	switch {
	case errors.Is(err, syscall.ECONNREFUSED) && abstract:
		return withAdvice(err, "nobody listens at this abstract name in this network namespace")
	case errors.Is(err, syscall.ECONNREFUSED):
		return explainStale(err, path)
	case errors.Is(err, fs.ErrNotExist):
		return withAdvice(err, "the path does not exist: does the program that listens there run?")
	case errors.Is(err, syscall.EPROTOTYPE):
		is := typeAt(network, path)
		return withAdvice(err, "it is a %s socket: write %s://%s", is, is, path)
	case errors.Is(err, syscall.EACCES):
		return withAdvice(err, "connecting takes permission to write to the socket%s, and to search its directories", modeOf(path))
	case errors.Is(err, syscall.EINVAL):
		return withAdvice(err, "a path of %d bytes; a Unix socket's holds at most 107 (unix(7))", len(path))
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return explainFiles(err)
	}
	return err
}

// explainStale is for a path that refuses connections.
func explainStale(err error, path string) error {
	info, errStat := os.Stat(path)
	if errStat == nil && info.Mode().Type() != fs.ModeSocket {
		return withAdvice(err, "the path is no socket (its mode is %s)", info.Mode())
	}
	return withAdvice(err, "nobody listens there: the program that made the socket has ended, or does not listen yet")
}

func modeOf(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return ""
	}
	return fmt.Sprintf(" (its mode is %s)", info.Mode())
}

// typeAt names the network of a Unix socket that is not of the one tried. Connecting
// a datagram socket is nothing that the other side could notice.
func typeAt(tried, path string) string {
	conn, err := net.Dial("unixgram", path)
	if err == nil {
		conn.Close()
	}
	switch {
	case !errors.Is(err, syscall.EPROTOTYPE):
		return "unixgram"
	case tried == "unix":
		return "seqpacket"
	}
	return "unix"
}
