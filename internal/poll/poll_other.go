//go:build !linux

package poll

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"
)

var errNoEpoll = fmt.Errorf("event loops stand on Linux's epoll: %w", errors.ErrUnsupported)

// Poller is Linux only.
type Poller struct{}

// Event is Linux only.
type Event struct{}

func (*Event) Token() uint64 { return 0 }
func (*Event) Ready() Ready  { return 0 }

// New returns an error that wraps errors.ErrUnsupported.
func New() (*Poller, error) { return nil, errNoEpoll }

func (*Poller) Close()                             {}
func (*Poller) Add(int, uint64, Ready) error       { return errNoEpoll }
func (*Poller) Change(int, uint64, Ready) error    { return errNoEpoll }
func (*Poller) Remove(int) error                   { return errNoEpoll }
func (*Poller) Wake()                              {}
func (*Poller) Wait(time.Duration) []Event         { return nil }
func Read(int, []byte) (int, syscall.Errno)        { return 0, syscall.ENOSYS }
func Drop(int, int) (int, syscall.Errno)           { return 0, syscall.ENOSYS }
func Write(int, []byte, bool) (int, syscall.Errno) { return 0, syscall.ENOSYS }
func Accept(int) (int, Peer, syscall.Errno)        { return -1, Peer{}, syscall.ENOSYS }
func LocalOf(int) (Peer, error)                    { return Peer{}, errNoEpoll }
func RemoteOf(int) (Peer, error)                   { return Peer{}, errNoEpoll }
func CloseWrite(int) error                         { return errNoEpoll }
func Close(int)                                    {}
func Reset(int)                                    {}
func Dup(int) (int, error)                         { return -1, errNoEpoll }
func IsStream(int) (bool, error)                   { return false, errNoEpoll }
func SetNoDelay(int) error                         { return errNoEpoll }
func SetNonblock(int) error                        { return errNoEpoll }
func Lingers(int) bool                             { return false }
func DoNotLinger(int)                              {}
func PeerCredentials(int) (Credentials, error)     { return Credentials{}, errNoEpoll }

// Pipe is Linux only.
type Pipe struct{ R, W, Size int }

func NewPipe(int) (*Pipe, error)                  { return nil, errNoEpoll }
func (*Pipe) Close()                              {}
func (*Pipe) Read([]byte) (int, syscall.Errno)    { return 0, syscall.ENOSYS }
func (*Pipe) Fill(int, int) (int, syscall.Errno)  { return 0, syscall.ENOSYS }
func (*Pipe) Drain(int, int) (int, syscall.Errno) { return 0, syscall.ENOSYS }
func NewSocket(netip.Addr) (int, error)           { return -1, errNoEpoll }
func Bind(int, netip.AddrPort, bool) error        { return errNoEpoll }
func BindToDevice(int, string) error              { return errNoEpoll }
func Connect(int, netip.AddrPort) syscall.Errno   { return syscall.ENOSYS }
func ConnectUnix(int, string) syscall.Errno       { return syscall.ENOSYS }
func SocketError(int) syscall.Errno               { return syscall.ENOSYS }
func Unsent(int) int                              { return 0 }
func ForRelay(int) error                          { return errNoEpoll }
func CloseAtOnce(int, bool)                       {}
func FileLimit() int                              { return 0 }
