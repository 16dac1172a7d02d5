package ancillary

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestFilesArriveWithTheirBytes(t *testing.T) {
	eachNetwork(t, func(t *testing.T, a, b *net.UnixConn) {
		var sent []*os.File
		for i := range 3 {
			path := filepath.Join(t.TempDir(), fmt.Sprint(i))
			if err := os.WriteFile(path, []byte(path), 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			sent = append(sent, f)
		}
		if err := SendFiles(a, []byte("three"), sent...); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		n, got, err := ReceiveFiles(b, buf)
		defer closeFiles(got)
		if err != nil || string(buf[:n]) != "three" || len(got) != len(sent) {
			t.Fatalf("got %q, %d files, %v, want three, 3 files", buf[:n], len(got), err)
		}
		for i, f := range got {
			text, err := io.ReadAll(f)
			if err != nil || string(text) != sent[i].Name() {
				t.Errorf("file %d: got %q, %v, want %q", i, text, err, sent[i].Name())
			}
			if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("file %d: got flags %#x, %v, want close-on-exec", i, flags, err)
			}
		}
	})
}

func TestMessageTakes253FilesAndNoMore(t *testing.T) {
	eachNetwork(t, func(t *testing.T, a, b *net.UnixConn) {
		p := newProbe(t)
		files := make([]*os.File, MaxFiles+1)
		for i := range files {
			files[i] = p.w
		}
		if err := SendFiles(a, []byte("x"), files...); err == nil || !strings.Contains(err.Error(), "253") {
			t.Errorf("254 files: got %v, want an error that names the limit", err)
		}
		if err := SendFiles(a, []byte("y"), files[:MaxFiles]...); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 10)
		n, got, err := ReceiveFiles(b, buf)
		if err != nil || string(buf[:n]) != "y" || len(got) != MaxFiles {
			t.Errorf("got %q, %d files, %v, want y, %d files", buf[:n], len(got), err, MaxFiles)
		}
		closeFiles(got)
		p.isClosed(t)
	})
}

func TestBytesWithoutFilesAreReceivedToo(t *testing.T) {
	eachNetwork(t, func(t *testing.T, a, b *net.UnixConn) {
		if err := SendFiles(a, []byte("plain")); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 10)
		if n, got, err := ReceiveFiles(b, buf); err != nil || string(buf[:n]) != "plain" || len(got) != 0 {
			t.Errorf("got %q, %d files, %v, want plain and no file", buf[:n], len(got), err)
		}
	})
}

func TestMessagesWithFilesStayApart(t *testing.T) {
	eachNetwork(t, func(t *testing.T, a, b *net.UnixConn) {
		p := newProbe(t)
		for _, text := range []string{"one", "two"} {
			if err := SendFiles(a, []byte(text), p.w); err != nil {
				t.Fatal(err)
			}
		}
		for _, want := range []string{"one", "two"} {
			buf := make([]byte, 100)
			n, got, err := ReceiveFiles(b, buf)
			closeFiles(got)
			if err != nil || string(buf[:n]) != want || len(got) != 1 {
				t.Errorf("got %q, %d files, %v, want %q, 1 file", buf[:n], len(got), err, want)
			}
		}
	})
}

func TestLongMessageOfAStreamArrivesInParts(t *testing.T) {
	a, b := pair(t, "unix")
	text := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	sent := make(chan error, 1)
	p := newProbe(t)
	go func() {
		sent <- SendFiles(a, text, p.w)
		a.Close()
	}()
	var all []byte
	var files []*os.File
	buf := make([]byte, 10000)
	for {
		n, got, err := ReceiveFiles(b, buf)
		all, files = append(all, buf[:n]...), append(files, got...)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(files) != 1 {
			t.Fatalf("after %d bytes: got %d files, want 1, with the first byte", len(all), len(files))
		}
	}
	closeFiles(files)
	if err := <-sent; err != nil || !bytes.Equal(all, text) {
		t.Errorf("got %d bytes, %v, want the %d sent", len(all), err, len(text))
	}
	p.isClosed(t)
}

func TestEndOfConnection(t *testing.T) {
	for _, network := range []string{"unix", "unixpacket"} {
		a, b := pair(t, network)
		a.Close()
		if n, files, err := ReceiveFiles(b, make([]byte, 1)); n != 0 || files != nil || err != io.EOF {
			t.Errorf("%s: got %d, %v, %v, want io.EOF", network, n, files, err)
		}
	}
	a, b := pair(t, "unixgram")
	if _, err := a.Write(nil); err != nil {
		t.Fatal(err)
	}
	if n, files, err := ReceiveFiles(b, make([]byte, 1)); n != 0 || files != nil || err != nil {
		t.Errorf("empty datagram: got %d, %v, %v, want 0 and no error", n, files, err)
	}
}

func TestShortBufferForARecordClosesTheFiles(t *testing.T) {
	for _, network := range []string{"unixpacket", "unixgram"} {
		a, b := pair(t, network)
		p := newProbe(t)
		if err := SendFiles(a, []byte("long"), p.w); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 3)
		n, files, err := ReceiveFiles(b, buf)
		if string(buf[:n]) != "lon" || files != nil || !errors.Is(err, io.ErrShortBuffer) {
			t.Errorf("%s: got %q, %v, %v, want lon, no files, io.ErrShortBuffer", network, buf[:n], files, err)
		}
		p.isClosed(t)
	}
}

func TestPlainReadClosesFilesThatCome(t *testing.T) {
	eachNetwork(t, func(t *testing.T, a, b *net.UnixConn) {
		p := newProbe(t)
		if err := SendFiles(a, []byte("with"), p.w); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 10)
		if n, err := b.Read(buf); err != nil || string(buf[:n]) != "with" {
			t.Errorf("got %q, %v, want with", buf[:n], err)
		}
		p.isClosed(t)
	})
}

func TestFilesOnTheirWayAreClosedWithTheConnection(t *testing.T) {
	eachNetwork(t, func(t *testing.T, a, b *net.UnixConn) {
		p := newProbe(t)
		if err := SendFiles(a, []byte("x"), p.w); err != nil {
			t.Fatal(err)
		}
		b.Close()
		p.isClosed(t)
	})
}

func TestOtherAncillaryDataIsDropped(t *testing.T) {
	eachNetwork(t, func(t *testing.T, a, b *net.UnixConn) {
		raw, err := b.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) {
			for _, option := range []int{unix.SO_PASSCRED, unix.SO_PASSPIDFD} {
				if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, option, 1); err != nil {
					t.Error(err)
				}
			}
		})
		p := newProbe(t)
		before := pidfds(t)
		if err := SendFiles(a, []byte("x"), p.w); err != nil {
			t.Fatal(err)
		}
		_, files, err := ReceiveFiles(b, make([]byte, 1))
		if err != nil || len(files) != 1 {
			t.Errorf("got %d files, %v, want 1", len(files), err)
		}
		closeFiles(files)
		p.isClosed(t)
		if after := pidfds(t); after != before {
			t.Errorf("got %d pidfds open, want %d as before", after, before)
		}
	})
}

func pidfds(t *testing.T) (n int) {
	t.Helper()
	links, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if name, _ := os.Readlink(link); strings.Contains(name, "pidfd") {
			n++
		}
	}
	return n
}

// exhaustedRole receives 20 files where there is room for 5.
func exhaustedRole(c *net.UnixConn) {
	var limit unix.Rlimit
	unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
	next, err := os.Open("/dev/null") // the lowest number that is free
	if err != nil {
		fmt.Println(err)
		return
	}
	lowest := next.Fd()
	next.Close()
	few := unix.Rlimit{Cur: uint64(lowest) + 5, Max: limit.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		fmt.Println(err)
		return
	}
	buf := make([]byte, 10)
	n, files, err := ReceiveFiles(c, buf)
	fmt.Println(string(buf[:n]), len(files), errors.Is(err, ErrFilesLost))
	n, files, err = ReceiveFiles(c, buf)
	fmt.Println(string(buf[:n]), len(files), err)
	// Whatever leaked would keep the pipe of the parent open until here.
	c.Write([]byte("received"))
	c.Read(buf)
}

func TestReceiverOutOfDescriptorsLosesNoneHalf(t *testing.T) {
	a, b := pair(t, "unixpacket")
	p := newProbe(t)
	files := make([]*os.File, 20)
	for i := range files {
		files[i] = p.w
	}
	for _, count := range []int{20, 1} {
		if err := SendFiles(a, fmt.Append(nil, count), files[:count]...); err != nil {
			t.Fatal(err)
		}
	}
	_, printed := start(t, child(t, "exhausted", b, nil))
	buf := make([]byte, 10)
	if n, err := a.Read(buf); err != nil || string(buf[:n]) != "received" {
		t.Errorf("from the receiver: got %q, %v, want received", buf[:n], err)
	}
	a.Close()
	if got, want := printed(), "20 0 true\n1 1 <nil>"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// manyOnWayRole sends files that nobody receives.
func manyOnWayRole(c *net.UnixConn) {
	limit := unix.Rlimit{Cur: 100, Max: 100}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		fmt.Println(err)
		return
	}
	files := make([]*os.File, 60)
	for i := range files {
		files[i] = os.Stdin
	}
	for range 10 {
		if err := SendFiles(c, []byte("x"), files...); err != nil {
			fmt.Println(errors.Is(err, syscall.ETOOMANYREFS), err)
			return
		}
	}
	fmt.Println("sent all")
}

func TestTooManyFilesOnTheirWayAreRefused(t *testing.T) {
	_, b := pair(t, "unixpacket")
	_, printed := start(t, child(t, "many-on-way", b, inNewNamespaces()))
	if got := printed(); !strings.HasPrefix(got, "true send 60 files over") || !strings.Contains(got, "let the peers receive them first") {
		t.Errorf("got %q, want ETOOMANYREFS and what to do", got)
	}
}

func TestFilesCannotBeSent(t *testing.T) {
	open, shut := newProbe(t), newProbe(t)
	shut.w.Close()
	for _, tt := range []struct {
		name  string
		files []*os.File
		bytes string
		want  error
	}{
		{"closed file", []*os.File{open.w, shut.w}, "x", os.ErrClosed},
		{"no file", []*os.File{nil}, "x", fs.ErrInvalid},
		{"no byte", []*os.File{open.w}, "", errEmpty},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := pair(t, "unixpacket")
			if err := SendFiles(a, []byte(tt.bytes), tt.files...); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			a.Close()
			if n, files, err := ReceiveFiles(b, make([]byte, 1)); err != io.EOF {
				t.Errorf("received: got %d bytes, %d files, %v, want io.EOF", n, len(files), err)
			}
		})
	}
}

func TestSendingToAPeerThatIsGone(t *testing.T) {
	for network, want := range map[string]error{"unix": syscall.EPIPE, "unixpacket": syscall.EPIPE, "unixgram": syscall.ECONNREFUSED} {
		a, b := pair(t, network)
		p := newProbe(t)
		b.Close()
		if err := SendFiles(a, []byte("x"), p.w); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", network, err, want)
		}
		p.isClosed(t)
	}
	a, _ := pair(t, "unix")
	a.Close()
	if err := SendFiles(a, []byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed here: got %v, want net.ErrClosed", err)
	}
	if _, _, err := ReceiveFiles(a, make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("receive, closed here: got %v, want net.ErrClosed", err)
	}
}

func TestDeadlinesHold(t *testing.T) {
	eachNetwork(t, func(t *testing.T, a, b *net.UnixConn) {
		soon := time.Now().Add(50 * time.Millisecond)
		a.SetWriteDeadline(soon)
		b.SetReadDeadline(time.Now())
		if _, _, err := ReceiveFiles(b, make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("receive: got %v, want os.ErrDeadlineExceeded", err)
		}
		var err error
		for err == nil {
			err = SendFiles(a, make([]byte, 100_000))
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("send: got %v, want os.ErrDeadlineExceeded", err)
		}
	})
}

func TestErrorsNameTheSocket(t *testing.T) {
	client, server := connected(t, "unix")
	for _, c := range []*net.UnixConn{client, server} {
		path := name(c)
		if err := SendFiles(c, nil); !strings.HasPrefix(path, "unix /") || !strings.Contains(err.Error(), path) {
			t.Errorf("got %v, want the path", err)
		}
	}
}

func TestFilesGoToAndFromPython(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Fatalf("%v; install it: apt-get install python3", err)
	}
	const script = `
import os, socket
s = socket.socket(fileno=3)
data, fds, flags, _ = socket.recv_fds(s, 100, 10)
assert data == b"to python" and len(fds) == 2 and flags & socket.MSG_CTRUNC == 0, (data, fds, flags)
for fd in fds:
    os.write(fd, b"written by python")
    os.close(fd)
r, w = os.pipe()
os.write(w, b"read from python")
os.close(w)
socket.send_fds(s, [b"from python"], [r])
`
	eachNetwork(t, func(t *testing.T, a, b *net.UnixConn) {
		cmd := child(t, "", b, nil)
		cmd.Path, cmd.Args = python, []string{"python3", "-c", script}
		p := newProbe(t)
		if err := SendFiles(a, []byte("to python"), p.w, p.w); err != nil {
			t.Fatal(err)
		}
		p.w.Close()
		if _, printed := start(t, cmd); printed() != "" {
			t.Error(printed())
		}
		if text, err := io.ReadAll(p.r); err != nil || string(text) != strings.Repeat("written by python", 2) {
			t.Errorf("through the files sent: got %q, %v", text, err)
		}
		buf := make([]byte, 100)
		n, files, err := ReceiveFiles(a, buf)
		if err != nil || string(buf[:n]) != "from python" || len(files) != 1 {
			t.Fatalf("got %q, %d files, %v, want from python, 1 file", buf[:n], len(files), err)
		}
		defer closeFiles(files)
		if text, err := io.ReadAll(files[0]); err != nil || string(text) != "read from python" {
			t.Errorf("through the file received: got %q, %v", text, err)
		}
	})
}

func FuzzDescriptors(f *testing.F) {
	f.Add(unix.UnixRights(3, 4, 5))
	f.Add(append(unix.UnixCredentials(&unix.Ucred{Pid: 1}), unix.UnixRights(7)...))
	f.Add(unix.UnixRights(1)[:unix.SizeofCmsghdr+2])
	f.Fuzz(func(t *testing.T, control []byte) {
		rights, pidfds, _ := descriptors(control)
		if got := len(rights) + len(pidfds); got > len(control)/4 {
			t.Errorf("got %d descriptors of %d bytes", got, len(control))
		}
	})
}

func TestDescriptorsBeforeWhatIsNotUnderstoodAreKept(t *testing.T) {
	rights, _, err := descriptors(append(unix.UnixRights(3, 4), 1, 2, 3))
	if err == nil || fmt.Sprint(rights) != "[3 4]" {
		t.Errorf("got %v, %v, want [3 4] and an error", rights, err)
	}
}
