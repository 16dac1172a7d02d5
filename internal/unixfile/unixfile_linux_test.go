package unixfile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// networks are how a socket of each type is bound.
var networks = map[string]func(network, path string, control Control) (io.Closer, error){
	"unix": listenStream, "unixpacket": listenStream,
	"unixgram": func(network, path string, control Control) (io.Closer, error) {
		return (&net.ListenConfig{Control: control}).ListenPacket(context.Background(), network, path)
	},
}

func listenStream(network, path string, control Control) (io.Closer, error) {
	ln, err := (&net.ListenConfig{Control: control}).Listen(context.Background(), network, path)
	if err != nil {
		return nil, err
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	return ln, nil
}

func bind(t *testing.T, network, path string, c Config) (io.Closer, *File, error) {
	t.Helper()
	s, f, err := Bind(t.Context(), network, path, c, func(control Control) (io.Closer, error) { return networks[network](network, path, control) })
	if err == nil {
		t.Cleanup(func() { s.Close() })
	}
	return s, f, err
}

func mustBind(t *testing.T, network, path string, c Config) (io.Closer, *File) {
	t.Helper()
	s, f, err := bind(t, network, path, c)
	if err != nil {
		t.Fatal(err)
	}
	return s, f
}

func TestFileHasItsModeAndOwnerWhateverTheUmask(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	uid, gid := strconv.Itoa(os.Getuid()), strconv.Itoa(os.Getgid())
	for network := range networks {
		for _, c := range []Config{{}, {Mode: 0o666}, {Mode: 0o660, Owner: ":" + gid}, {Mode: 0o200, Owner: uid}, {Owner: uid + ":" + gid}} {
			path := filepath.Join(t.TempDir(), "s")
			mustBind(t, network, path, c)
			want := c.Mode
			if want == 0 {
				want = 0o600
			}
			info, err := os.Stat(path)
			if err != nil || info.Mode() != want|fs.ModeSocket {
				t.Errorf("%s %+v: got %v, %v", network, c, info.Mode(), err)
			}
		}
	}
}

// seen collects the owners and modes that a path has over time.
func seen(path string) (stop func() []string) {
	quit := make(chan struct{})
	var wg sync.WaitGroup
	var all []string
	wg.Go(func() {
		for {
			if s := ownerAndMode(path); s != "" && !slices.Contains(all, s) {
				all = append(all, s)
			}
			select {
			case <-quit:
				return
			default:
			}
		}
	})
	return func() []string { close(quit); wg.Wait(); return all }
}

func ownerAndMode(path string) string {
	var st syscall.Stat_t
	if syscall.Lstat(path, &st) != nil {
		return ""
	}
	return fmt.Sprintf("%d:%d %#o", st.Uid, st.Gid, st.Mode&0o7777)
}

func TestFileNeverLetsInOthersThanItShall(t *testing.T) {
	own := fmt.Sprintf("%d:%d", os.Geteuid(), os.Getegid())
	other := own
	if os.Geteuid() == 0 {
		other = "65534:65533"
	}
	for _, umask := range []int{0, 0o022, 0o777} {
		t.Run(fmt.Sprintf("umask %#o", umask), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			defer syscall.Umask(syscall.Umask(umask))
			stop := seen(path)
			for range 300 {
				s, f := mustBind(t, "unix", path, Config{Owner: other, Mode: 0o660})
				if got := ownerAndMode(path); got != other+" 0660" {
					t.Errorf("it is %s, want %s 0660", got, other)
				}
				f.Remove()
				s.Close()
			}
			for _, s := range stop() {
				if !slices.Contains([]string{own + " 0", other + " 0", other + " 0660"}, s) {
					t.Errorf("for a moment it was %s", s)
				}
			}
		})
	}
}

func TestFileIsBornWithItsMode(t *testing.T) {
	for _, tt := range []struct {
		c    Config
		want fs.FileMode
	}{{Config{}, 0o600}, {Config{Mode: 0o640}, 0o640}, {Config{Mode: 0o660, Owner: strconv.Itoa(os.Getuid())}, 0}} {
		path := filepath.Join(t.TempDir(), "s")
		s, _, err := Bind(t.Context(), "unixgram", path, tt.c, func(control Control) (io.Closer, error) {
			s, err := networks["unixgram"]("unixgram", path, control)
			if info, statErr := os.Stat(path); statErr != nil || info.Mode().Perm() != tt.want {
				t.Errorf("%+v: after bind the mode is %v, %v, want %v", tt.c, info.Mode(), statErr, tt.want)
			}
			return s, err
		})
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
	}
}

func TestOnlyWhatNobodyListensOnIsReplaced(t *testing.T) {
	for network := range networks {
		path := filepath.Join(t.TempDir(), "s")
		first, _ := mustBind(t, network, path, Config{})
		for other := range networks {
			if _, _, err := bind(t, other, path, Config{}); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "choose another path") {
				t.Errorf("%s beside %s: got %v, want EADDRINUSE", other, network, err)
			}
		}
		first.Close() // as a killed process: the file stays
		_, second := mustBind(t, network, path, Config{})
		os.Remove(path)
		_, third := mustBind(t, network, path, Config{})
		second.Remove()
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("%s: the second has removed the file of the third", network)
		}
		third.Remove()
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: removed: got %v", network, err)
		}
		mustBind(t, network, path, Config{})
		third.Remove() // the new file may well have the old one's inode number
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("%s: removed twice: %v", network, err)
		}
	}
}

// A datagram socket that is connected takes datagrams from one only.
func TestConnectedSocketIsNotStale(t *testing.T) {
	dir := t.TempDir()
	mustBind(t, "unixgram", dir+"/server", Config{})
	c, err := net.DialUnix("unixgram", &net.UnixAddr{Name: dir + "/s", Net: "unixgram"}, &net.UnixAddr{Name: dir + "/server", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, _, err := bind(t, "unixgram", dir+"/s", Config{}); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("got %v, want EADDRINUSE", err)
	}
}

func TestWhatIsNoSocketIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	os.Mkdir(dir+"/directory", 0o700)
	os.WriteFile(dir+"/file", []byte("precious"), 0o600)
	os.Symlink("/nowhere", dir+"/link")
	syscall.Mkfifo(dir+"/pipe", 0o600)
	for name, want := range map[string]string{"directory": "is a directory, not a socket", "file": "is a file, not", "link": "is a symbolic link, not", "pipe": "is a special file, not"} {
		_, _, err := bind(t, "unixgram", filepath.Join(dir, name), Config{})
		if !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", name, err, want)
		}
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	if _, _, err := bind(t, "unixgram", dir+"/no/s", Config{}); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "make the directory "+dir+"/no first") {
		t.Errorf("no directory: got %v", err)
	}
}

func TestAbstractNameHasNoFile(t *testing.T) {
	name := fmt.Sprintf("@unixfile-%d", os.Getpid())
	s, f := mustBind(t, "unixgram", name, Config{})
	if f != nil {
		t.Errorf("got file %+v", f)
	}
	f.Remove()
	if _, _, err := bind(t, "unixgram", name, Config{}); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("again: got %v", err)
	}
	s.Close()
	for _, c := range []Config{{Mode: 0o600}, {Owner: "0"}} {
		if _, _, err := bind(t, "unixgram", name, c); err == nil || !strings.Contains(err.Error(), "open to all") {
			t.Errorf("%+v: got %v", c, err)
		}
	}
}

func TestOfManyThatFindAStaleFileOneReplacesIt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	first, _ := mustBind(t, "unixgram", path, Config{})
	first.Close()
	var all sync.WaitGroup
	won, wrong := make(chan io.Closer, 20), make(chan error, 20)
	for range 20 {
		all.Go(func() {
			s, _, err := Bind(context.Background(), "unixgram", path, Config{}, func(control Control) (io.Closer, error) {
				return networks["unixgram"]("unixgram", path, control)
			})
			if err == nil {
				won <- s
			} else if !errors.Is(err, syscall.EADDRINUSE) {
				wrong <- err
			}
		})
	}
	all.Wait()
	if len(won) != 1 || len(wrong) != 0 {
		t.Errorf("%d have bound it, %d errors", len(won), len(wrong))
	}
	for len(won) > 0 {
		(<-won).Close()
	}
	for len(wrong) > 0 {
		t.Error(<-wrong)
	}
}

// Between bind(2) and listen(2) nobody listens, which is not to say that nobody will.
func TestSocketThatDoesNotListenYetIsNotStale(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s, _, err := Bind(t.Context(), "unix", path, Config{}, func(Control) (io.Closer, error) {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = errors.Join(unix.Fchmod(fd, 0o600), unix.Bind(fd, &unix.SockaddrUnix{Name: path}))
		}
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if _, _, err := Bind(ctx, "unix", path, Config{}, func(Control) (io.Closer, error) { panic("bound") }); err == nil {
			t.Error("bound twice")
		}
		return closer(func() error { return unix.Close(fd) }), unix.Listen(fd, 1)
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
}

// A directory that cannot be locked is good enough where nothing stands in the way.
func TestLockIsNotNeededWhereThereIsNoFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	unlock, err := lockDirOf(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	s, _, err := Bind(ctx, "unixgram", path, Config{}, func(control Control) (io.Closer, error) {
		return networks["unixgram"]("unixgram", path, control)
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
}

func TestLockThatAnotherHoldsIsNotWaitedForWithoutEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	first, _ := mustBind(t, "unixgram", path, Config{})
	first.Close()
	unlock, err := lockDirOf(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, _, err := Bind(ctx, "unixgram", path, Config{}, func(Control) (io.Closer, error) { panic("bound") }); err == nil || !strings.Contains(err.Error(), "lock the directory") {
		t.Errorf("got %v", err)
	}
	unlock()
	mustBind(t, "unixgram", path, Config{})
}

// A link that takes the file's place between bind and chmod must not be followed.
func TestFileThatWasExchangedIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	os.WriteFile(dir+"/precious", nil, 0o600)
	mustBind(t, "unixgram", dir+"/socket", Config{})
	for _, exchange := range []func() error{
		func() error { return os.Symlink("precious", dir+"/s") },
		func() error { return os.Symlink("socket", dir+"/s") },
		func() error { return os.Link(dir+"/precious", dir+"/s") },
		func() error { return nil },
	} {
		closed := false
		_, _, err := Bind(t.Context(), "unixgram", dir+"/s", Config{Mode: 0o666}, func(control Control) (io.Closer, error) {
			s, err := networks["unixgram"]("unixgram", dir+"/s", control)
			if err == nil {
				err = errors.Join(os.Remove(dir+"/s"), exchange())
			}
			return closer(func() error { closed = true; return s.Close() }), err
		})
		if err == nil || !closed {
			t.Errorf("got %v, closed %v", err, closed)
		}
		for _, name := range []string{"/precious", "/socket"} {
			if info, err := os.Stat(dir + name); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: got %v, %v", name, info.Mode(), err)
			}
		}
		os.Remove(dir + "/s")
	}
}

type closer func() error

func (c closer) Close() error { return c() }

func TestOwnersAreReadByNameAndNumber(t *testing.T) {
	me, err := user.LookupId("65534")
	if err != nil {
		t.Fatal(err)
	}
	group, err := user.LookupGroupId("65534")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		text string
		want owner
		err  string
	}{
		{"", nobody, ""},
		{"0", owner{0, -1}, ""},
		{"root", owner{0, -1}, ""},
		{"root:root", owner{0, 0}, ""},
		{me.Username + ":" + group.Name, owner{65534, 65534}, ""},
		{":" + group.Name, owner{-1, 65534}, ""},
		{":0", owner{-1, 0}, ""},
		{"12:34", owner{12, 34}, ""},
		{"4711", owner{4711, -1}, ""},
		{"root:", nobody, "no group after the colon: write user"},
		{":", nobody, "no group after the colon"},
		{"no such user", nobody, "unknown user no such user"},
		{":nosuchgroup", nobody, "unknown group nosuchgroup"},
		{"-1", nobody, "unknown user -1"},
		{"4294967295", nobody, "is not a user id"},
		{"0:99999999999", nobody, "is not a group id"},
	} {
		got, err := parseOwner(tt.text)
		if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%q: got %v, %v, want %v %s", tt.text, got, err, tt.want, tt.err)
		}
		if tt.err != "" {
			dir := t.TempDir()
			if _, _, err := bind(t, "unixgram", dir+"/s", Config{Owner: tt.text}); err == nil {
				t.Errorf("%q: bound", tt.text)
			}
			if _, err := os.Lstat(dir + "/s"); err == nil {
				t.Errorf("%q: left a file", tt.text)
			}
		}
	}
}

func TestOwnerThatMayNotBeGiven(t *testing.T) {
	dir := t.TempDir()
	if os.Getuid() == 0 { // as another user, on a thread of its own that ends with it
		os.Chmod(dir, 0o777)
		os.Chmod(filepath.Dir(dir), 0o755)
	}
	err := asOrdinaryUser(func() error {
		_, _, err := Bind(context.Background(), "unixgram", dir+"/s", Config{Owner: "0"}, func(control Control) (io.Closer, error) {
			return networks["unixgram"]("unixgram", dir+"/s", control)
		})
		return err
	})
	if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "give the file to 0") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Lstat(dir + "/s"); err == nil {
		t.Error("the file was left")
	}
}

func TestSettleChangesNoFileThatIsNotTheNewSocket(t *testing.T) {
	dir := t.TempDir()
	path, victim := dir+"/s", dir+"/victim"
	os.WriteFile(victim, nil, 0o600)
	mustBind(t, "unix", dir+"/other", Config{Mode: 0o640})
	mustBind(t, "unix", dir+"/foreign", Config{Mode: 0o600})
	if os.Geteuid() == 0 {
		if err := os.Lchown(dir+"/foreign", 65534, -1); err != nil {
			t.Fatal(err)
		}
	}
	me := owner{os.Geteuid(), -1}
	for _, tt := range []struct {
		name string
		put  func() error
		born fs.FileMode
		who  owner
	}{
		{"a symbolic link", func() error { return os.Symlink("victim", path) }, 0o777, nobody},
		{"a symbolic link to a socket", func() error { return os.Symlink("other", path) }, 0o777, nobody},
		{"a hard link", func() error { return os.Link(victim, path) }, 0o777, nobody},
		{"a socket of another mode", func() error { return os.Link(dir+"/other", path) }, 0o600, nobody},
		{"a socket that is somebody's already", func() error { return os.Link(dir+"/other", path) }, 0, me},
		{"a socket of another user", func() error { return os.Link(dir+"/foreign", path) }, 0o777, me},
		{"nothing", func() error { return nil }, 0o777, nobody},
	} {
		if tt.name == "a socket of another user" && os.Geteuid() != 0 { // it has none
			continue
		}
		if err := tt.put(); err != nil {
			t.Fatal(err)
		}
		if info, err := settle(path, tt.born, 0o777, tt.who); err == nil || info != nil {
			t.Errorf("%s was taken for the socket: %v", tt.name, err)
		}
		for name, want := range map[string]fs.FileMode{victim: 0o600, dir + "/other": 0o640, dir + "/foreign": 0o600} {
			if info, err := os.Stat(name); err != nil || info.Mode().Perm() != want {
				t.Errorf("by %s: %s has mode %v, %v", tt.name, name, info.Mode(), err)
			}
		}
		os.Remove(path)
	}
}

func TestFileOfASocketThatAnotherBound(t *testing.T) {
	dir := t.TempDir()
	mustBind(t, "unix", dir+"/s", Config{})
	f := Of(dir + "/s")
	f.Remove()
	if _, err := os.Lstat(dir + "/s"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("removed: %v", err)
	}
	os.WriteFile(dir+"/file", nil, 0o600)
	t.Chdir(dir)
	mustBind(t, "unix", dir+"/@s", Config{})
	for _, path := range []string{dir + "/s", dir + "/file", "", "@s"} {
		if f := Of(path); f != nil {
			t.Errorf("%q: got a file", path)
		}
	}
}

// asOrdinaryUser runs f on a thread that has no privileges; the thread ends with it.
func asOrdinaryUser(f func() error) error {
	if os.Getuid() != 0 {
		return f()
	}
	err := make(chan error)
	go func() {
		runtime.LockOSThread()
		if _, _, errno := syscall.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 65534); errno != 0 {
			err <- errno
			return
		}
		err <- f()
	}()
	return <-err
}
