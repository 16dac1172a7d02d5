package join

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// receive starts ReceiveFile.
func receive(ctx context.Context, r io.Reader, path string, o FileOptions) <-chan error {
	done := make(chan error, 1)
	go func() {
		_, err := ReceiveFile(ctx, r, path, o)
		done <- err
	}()
	return done
}

// wantOnly checks the names in the directory.
func wantOnly(t testing.TB, directory string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(directory)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if strings.Join(got, " ") != strings.Join(names, " ") {
		t.Errorf("in the directory is %q, want %q", got, names)
	}
}

func wantContent(t testing.TB, path string, want []byte) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the file has %d bytes, %v, want %d", len(got), err, len(want))
	}
}

func TestAFileArrivesWithItsSum(t *testing.T) {
	for name, kind := range map[string]pair{"tcp": tcpPair, "unix": unixPair, "tls": tlsPair} {
		for _, size := range []int{0, 1, 3 << 20} {
			t.Run(name, func(t *testing.T) {
				directory := t.TempDir()
				content := random(uint64(size), size)
				from, to := filepath.Join(t.TempDir(), "from"), filepath.Join(directory, "to")
				if err := os.WriteFile(from, content, 0o600); err != nil {
					t.Fatal(err)
				}
				end, peer := kind(t)
				var seen []int64
				sent := make(chan error, 1)
				go func() {
					r, err := SendFile(t.Context(), peer, from, FileOptions{Progress: func(done, total int64) { seen = append(seen, done, total) }})
					if err == nil && (r.SHA256 != sum(content) || r.Bytes != int64(size)) {
						err = errors.New("sent " + r.SHA256)
					}
					sent <- errors.Join(err, peer.(closeWriter).CloseWrite())
				}()
				r, err := ReceiveFile(t.Context(), end, to, FileOptions{})
				if err != nil || r.SHA256 != sum(content) || r.Bytes != int64(size) {
					t.Errorf("received %+v, %v, want %d bytes, %s", r, err, size, sum(content))
				}
				if err := <-sent; err != nil {
					t.Error(err)
				}
				if n := len(seen); size > 0 && (n < 2 || seen[n-2] != int64(size) || seen[n-1] != int64(size)) {
					t.Errorf("progress %d", seen)
				}
				wantContent(t, to, content)
				wantOnly(t, directory, "to")
			})
		}
	}
}

func TestTheNewFileHasItsPermissions(t *testing.T) {
	old := unix.Umask(0o027)
	defer unix.Umask(old)
	for name, test := range map[string]struct{ before, want fs.FileMode }{
		"new":       {0, 0o640},
		"private":   {0o600, 0o600},
		"for all":   {0o666, 0o666},
		"for group": {0o660, 0o660},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "f")
			if test.before != 0 {
				if err := errors.Join(os.WriteFile(path, []byte("old"), 0o600), os.Chmod(path, test.before)); err != nil {
					t.Fatal(err)
				}
			}
			end, peer := tcpPair(t)
			done := receive(t.Context(), end, path, FileOptions{})
			write(t, peer, "new")
			eventually(t, "temporary file with the bytes, for nobody else", func() bool {
				list, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".ft-receive-*"))
				if len(list) != 1 {
					return false
				}
				info, err := os.Stat(list[0])
				return err == nil && info.Size() == 3 && info.Mode() == 0o600
			})
			closeWrite(t, peer)
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			info, err := os.Stat(path)
			if err != nil || info.Mode() != test.want {
				t.Errorf("got %v, %v, want %v", info.Mode(), err, test.want)
			}
			wantContent(t, path, []byte("new"))
		})
	}
}

func TestAFileThatDoesNotComeWholeLeavesNothingBehind(t *testing.T) {
	stop := errors.New("stop")
	for name, test := range map[string]struct {
		end  func(peer net.Conn, cancel context.CancelCauseFunc)
		want error
	}{
		"reset": {func(peer net.Conn, _ context.CancelCauseFunc) {
			peer.(*net.TCPConn).SetLinger(0)
			peer.Close()
		}, unix.ECONNRESET},
		"end of the context": {func(_ net.Conn, cancel context.CancelCauseFunc) { cancel(stop) }, stop},
	} {
		for _, exists := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				directory := t.TempDir()
				path := filepath.Join(directory, "f")
				var left []string
				if exists {
					left = []string{"f"}
					if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				end, peer := tcpPair(t)
				came := make(chan struct{}, 100)
				done := receive(ctx, end, path, FileOptions{Progress: func(int64, int64) { came <- struct{}{} }})
				write(t, peer, "not all of it")
				<-came
				test.end(peer, cancel)
				wantError(t, <-done, test.want, "after 13 bytes", path)
				wantOnly(t, directory, left...)
				if exists {
					wantContent(t, path, []byte("old"))
				}
			})
		}
	}
}

func TestWhatIsNoFileIsNotOverwritten(t *testing.T) {
	directory := t.TempDir()
	in := func(name string) string { return filepath.Join(directory, name) }
	err := errors.Join(
		os.Mkdir(in("directory"), 0o700), unix.Mkfifo(in("fifo"), 0o600),
		os.Symlink("directory", in("link")), os.Symlink("nowhere", in("dangling")),
	)
	if err != nil {
		t.Fatal(err)
	}
	for path, words := range map[string]string{
		in("directory"): "is a directory",
		in("fifo"):      "no regular file",
		"/dev/null":     "no regular file",
		in("link"):      "is a directory",
		in("dangling"):  "leads nowhere",
		in("no/file"):   "no such file",
		in(""):          "is a directory",
	} {
		_, err := ReceiveFile(t.Context(), strings.NewReader("x"), path, FileOptions{})
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: got %v, want %q", path, err, words)
		}
	}
	wantOnly(t, directory, "dangling", "directory", "fifo", "link")
	wantOnly(t, in("directory"))
}

func TestALinkToAFileIsFollowed(t *testing.T) {
	directory := t.TempDir()
	target, link := filepath.Join(directory, "target"), filepath.Join(directory, "link")
	if err := errors.Join(os.WriteFile(target, []byte("old"), 0o640), os.Symlink("target", link)); err != nil {
		t.Fatal(err)
	}
	if _, err := ReceiveFile(t.Context(), strings.NewReader("new"), link, FileOptions{}); err != nil {
		t.Fatal(err)
	}
	wantContent(t, target, []byte("new"))
	if to, err := os.Readlink(link); err != nil || to != "target" {
		t.Errorf("the link leads to %q, %v", to, err)
	}
}

func TestAFullDiskIsAnErrorAndLeavesNothingBehind(t *testing.T) {
	directory := t.TempDir()
	if err := unix.Mount("tmpfs", directory, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(directory, 0)
	r := io.LimitReader(bytes.NewReader(random(1, 3<<20)), 3<<20)
	_, err := ReceiveFile(t.Context(), r, filepath.Join(directory, "f"), FileOptions{})
	wantError(t, err, unix.ENOSPC, "make room")
	wantOnly(t, directory)
}

func TestAFileSizeLimitIsAnErrorAndLeavesNothingBehind(t *testing.T) {
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 1 << 20, Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_FSIZE, &before)
	directory := t.TempDir()
	_, err := ReceiveFile(t.Context(), bytes.NewReader(random(1, 3<<20)), filepath.Join(directory, "f"), FileOptions{})
	wantError(t, err, unix.EFBIG)
	wantOnly(t, directory)
}

func TestAFileThatCannotBeSentIsAnError(t *testing.T) {
	directory := t.TempDir()
	for path, words := range map[string]string{
		directory:                            "is a directory",
		filepath.Join(directory, "none"):     "no such file",
		filepath.Join(directory, "no", "no"): "no such file",
	} {
		if _, err := SendFile(t.Context(), io.Discard, path, FileOptions{}); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("got %v, want %q", err, words)
		}
	}
}

func TestAFileThatShrinksWhileItIsSentIsAnError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	var once bool
	_, err := SendFile(t.Context(), io.Discard, path, FileOptions{Progress: func(done, _ int64) {
		if !once {
			once = true
			os.Truncate(path, done)
		}
	}})
	if err == nil || !strings.Contains(err.Error(), "1048576 bytes at first") {
		t.Errorf("got %v", err)
	}
}

func TestTheContextEndsASendingThatNobodyTakes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 1<<30)); err != nil {
		t.Fatal(err)
	}
	end, _ := tcpPair(t)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	start := time.Now()
	r, err := SendFile(ctx, end, path, FileOptions{})
	wantError(t, err, context.DeadlineExceeded)
	if took := time.Since(start); r.Bytes == 0 || r.Bytes == 1<<30 || took > patience {
		t.Errorf("sent %d bytes in %v", r.Bytes, took)
	}
	if _, err := end.(*net.TCPConn).SyscallConn(); err != nil {
		t.Errorf("the connection was closed: %v", err)
	}
}

func TestAFileIsSentAtItsRate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, make([]byte, 100_000), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := SendFile(t.Context(), io.Discard, path, FileOptions{Rate: 200_000})
	if err != nil || r.Took < 390*time.Millisecond {
		t.Errorf("took %v, %v, want 0.4s at least", r.Took, err)
	}
}
