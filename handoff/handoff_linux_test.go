package handoff

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestItemsComeAsTheyWereGiven(t *testing.T) {
	g, taker, _ := pair(t, Config{Hello: "old 1.0"}, Config{Hello: "new 1.1"})
	if g.Hello() != "new 1.1" || taker.Hello() != "old 1.0" {
		t.Errorf("hellos: got %q and %q", g.Hello(), taker.Hello())
	}
	if pid := os.Getpid(); g.Peer().PID != pid || taker.Peer().PID != pid {
		t.Errorf("peers: got %v and %v, want process %d", g.Peer(), taker.Peer(), pid)
	}
	var items []Item
	for _, size := range []int{0, 1, maxRecord - 20, maxRecord - 1, maxRecord, maxRecord + 1, 1 << 20, MaxState} {
		items = append(items, Item{Kind: "state", Name: strconv.Itoa(size), State: bytes.Repeat([]byte("0123456789abcde"), size/15+1)[:size]})
	}
	items = append(items, Item{Kind: strings.Repeat("k", MaxKind), Name: strings.Repeat("n", MaxName)}, Item{})
	dir := t.TempDir()
	for i := range 3 * maxFiles {
		f, err := os.Create(filepath.Join(dir, strconv.Itoa(i)))
		ok(t, err)
		defer f.Close()
		items = append(items, Item{Kind: "file", Name: strconv.Itoa(i), File: f, State: make([]byte, i)})
	}
	committed := make(chan error, 1)
	go func() {
		for _, it := range items {
			if err := g.Give(it); err != nil {
				committed <- err
				return
			}
		}
		committed <- g.Commit(t.Context())
	}()
	for i, want := range items {
		got, err := taker.Next()
		ok(t, err)
		if got.Kind != want.Kind || got.Name != want.Name || !bytes.Equal(got.State, want.State) || (got.File == nil) != (want.File == nil) {
			t.Fatalf("item %d: got %.20q %.20q and %d bytes, want %.20q %.20q and %d", i, got.Kind, got.Name, len(got.State), want.Kind, want.Name, len(want.State))
		}
		if want.File != nil {
			one, err := got.File.Stat()
			ok(t, err)
			other, err := want.File.Stat()
			ok(t, err)
			if !os.SameFile(one, other) {
				t.Fatalf("item %d: has another's file", i)
			}
			got.File.Close()
		}
	}
	if _, err := taker.Next(); err != io.EOF {
		t.Errorf("after the last: got %v, want EOF", err)
	}
	ok(t, taker.Acknowledge())
	ok(t, <-committed)
}

func TestWhatIsTooLongIsNotGiven(t *testing.T) {
	for _, tt := range []struct {
		item Item
		want string
	}{
		{Item{Kind: strings.Repeat("k", MaxKind+1)}, "the kind has 256 bytes, of at most 255"},
		{Item{Name: strings.Repeat("k", MaxName+1)}, "the name has 4097 bytes, of at most 4096"},
		{Item{State: make([]byte, MaxState+1)}, "the state has 16777217 bytes, of at most 16777216"},
	} {
		g, taker, _ := pair(t, Config{}, Config{})
		if err := g.Give(tt.item); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want %q", err, tt.want)
		}
		if err := g.Commit(t.Context()); err == nil {
			t.Error("committed without it")
		}
		_, err := taker.Next()
		wantError(t, err, ErrAborted, tt.want)
	}
	path := socketPath(t)
	if _, err := (Config{Hello: strings.Repeat("h", MaxHello+1)}).Listen(path); err == nil {
		t.Error("listened with a hello too long")
	}
	if _, err := os.Lstat(path); err == nil {
		t.Error("left a socket")
	}
}

func TestAConnectionGoesOnInTheNewProcess(t *testing.T) {
	const conns = 20
	path := socketPath(t)
	l := listen(t, Config{}, path)
	taker := start(t, path)
	taker.tell("take")
	g := accept(t, l)
	if got := taker.answer(); got != "" {
		t.Fatal(got)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	defer ln.Close()
	var clients []net.Conn
	for range conns {
		client, err := net.Dial("tcp", ln.Addr().String())
		ok(t, err)
		defer client.Close()
		clients = append(clients, client)
		conn, err := ln.Accept()
		ok(t, err)
		defer conn.Close()
		f, err := conn.(*net.TCPConn).File()
		ok(t, err)
		defer f.Close()
		ok(t, g.Give(Item{Kind: "tcp", File: f}))
		fmt.Fprintf(client, "before ")
	}
	taker.tell("all")
	taker.tell("acknowledge")
	ok(t, g.Commit(t.Context()))
	taker.do(t, "echo")
	if got := taker.answer() + taker.answer(); got != "" {
		t.Fatal(got)
	}
	for _, c := range clients {
		fmt.Fprintf(c, "after")
		c.SetDeadline(time.Now().Add(patience))
		b := make([]byte, len("before after"))
		if _, err := io.ReadFull(c, b); err != nil || string(b) != "before after" {
			t.Errorf("got %q, %v", b, err)
		}
	}
}

func TestOneProcessTakesAndOthersAreTold(t *testing.T) {
	path := socketPath(t)
	var mu sync.Mutex
	var refused []string
	l := listen(t, Config{Refused: func(err error) {
		mu.Lock()
		defer mu.Unlock()
		refused = append(refused, err.Error())
	}}, path)
	first, second := start(t, path), start(t, path)
	first.tell("take")
	g := accept(t, l)
	if got := first.answer(); got != "" {
		t.Fatal(got)
	}
	for range 3 {
		second.tell("take")
		if got, want := second.answer(), fmt.Sprintf("another process is taking over: process %d", first.Process.Pid); !strings.Contains(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	g.Close()

	// One that looks and goes away is in nobody's way.
	for range 3 {
		listenerOf(t, path)
	}
	second.tell("take")
	g = accept(t, l)
	if got := second.answer(); got != "" {
		t.Errorf("after the first was left: %s", got)
	}
	second.tell("all")
	second.tell("acknowledge")
	ok(t, g.Commit(t.Context()))
	if len(refused) != 6 || !strings.Contains(refused[0], strconv.Itoa(second.Process.Pid)) {
		t.Errorf("told of refusals: %q", refused)
	}
}

// Those who wait before anyone is accepted are told as soon as one of them is.
func TestOfThoseWhoWaitOneTakes(t *testing.T) {
	const takers = 5
	path := socketPath(t)
	l := listen(t, Config{}, path)
	answers := make(chan error, takers)
	var wg sync.WaitGroup
	defer wg.Wait()
	for range takers {
		wg.Go(func() {
			taker, err := Take(t.Context(), path)
			answers <- err
			if err == nil {
				_, err = drain(taker)
				wantError(t, err, ErrAborted)
				taker.Close()
			}
		})
	}
	waiting := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.waiting)
	}
	for deadline := time.Now().Add(patience); waiting() < takers; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%d wait, want %d", waiting(), takers)
		}
	}
	g := accept(t, l)
	takes := 0
	for range takers {
		switch err := <-answers; {
		case err == nil:
			takes++
		default:
			wantError(t, err, ErrBusy)
		}
	}
	if takes != 1 {
		t.Errorf("%d take over, want 1", takes)
	}
	g.Close()
}

// The control socket itself is given: nobody who comes finds nobody there.
func TestThePathLeadsToTheOwner(t *testing.T) {
	path := socketPath(t)
	old := listen(t, Config{}, path)
	const generations = 3
	for i := range generations {
		next := start(t, path)
		next.tell("take")
		g := accept(t, old)
		give(t, g, i)
		next.tell("all")
		next.tell("acknowledge")
		ok(t, g.Commit(t.Context()))
		for range 3 {
			if got := next.answer(); got != "" {
				t.Fatal(got)
			}
		}
		if _, err := old.Accept(t.Context()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the old listener: got %v, want %v", err, net.ErrClosed)
		}
		ok(t, old.Close())

		// Back to this process, before the other one has begun to accept.
		taken := make(chan *Taker, 1)
		go func() {
			taker, err := Take(t.Context(), path)
			if err != nil {
				t.Error(err)
			}
			taken <- taker
		}()
		next.do(t, "inherit", "accept")
		taker := <-taken
		next.do(t, "give 2")
		next.tell("commit")
		n, err := drain(taker)
		ok(t, err)
		if n != 2 {
			t.Errorf("got %d items, want 2", n)
		}
		if _, err := taker.Listener(); err == nil {
			t.Error("has the listener before it is the owner")
		}
		ok(t, taker.Acknowledge())
		old, err = taker.Listener()
		ok(t, err)
		ok(t, taker.Close())
		if got := next.answer(); got != "" {
			t.Fatal(got)
		}
		next.do(t, "close")
		next.kill()
		if got := listenerOf(t, path); got != os.Getpid() {
			t.Errorf("who connects sees process %d, want %d", got, os.Getpid())
		}
	}
	ok(t, old.Close())
	_, err := Take(t.Context(), path)
	wantError(t, err, ErrNobody)
	wantError(t, err, os.ErrNotExist)
}

// listenerOf is the process that whoever connects sees.
func listenerOf(t *testing.T, path string) (pid int) {
	t.Helper()
	conn, err := connect(t.Context(), path)
	ok(t, err)
	defer conn.Close()
	link, err := newLink(conn, patience)
	ok(t, err)
	return link.peer.PID
}

func TestListenReplacesOnlyWhatIsStale(t *testing.T) {
	path := socketPath(t)
	dead := start(t, path)
	dead.do(t, "listen")
	_, err := Listen(path)
	wantError(t, err, syscall.EADDRINUSE, path, "somebody listens there")
	dead.kill()
	_, err = Take(t.Context(), path)
	wantError(t, err, ErrNobody)
	wantError(t, err, syscall.ECONNREFUSED)

	l := listen(t, Config{}, path)
	ok(t, os.Remove(path))
	other := listen(t, Config{}, path)
	ok(t, l.Close())
	if _, err := os.Lstat(path); err != nil {
		t.Error("closing one removed the socket of another")
	}
	ok(t, other.Close())
	if _, err := os.Lstat(path); err == nil {
		t.Error("the file is left")
	}
	_, err = l.Accept(t.Context())
	wantError(t, err, net.ErrClosed, path)

	ok(t, os.WriteFile(path, []byte("precious"), 0o600))
	_, err = Listen(path)
	wantError(t, err, os.ErrExist, path)
	ok(t, os.Remove(path))
	stream, err := net.Listen("unix", path)
	ok(t, err)
	defer stream.Close()
	_, err = Listen(path)
	wantError(t, err, syscall.EADDRINUSE)
	_, err = Listen(filepath.Join(path, "sub"))
	wantError(t, err, syscall.ENOTDIR)
	_, err = Listen(filepath.Join(filepath.Dir(path), strings.Repeat("x", 108)))
	wantError(t, err, syscall.EINVAL)
}

func TestTheSocketIsForItsOwnerOnly(t *testing.T) {
	defer unix.Umask(unix.Umask(0))
	path := socketPath(t)
	listen(t, Config{}, path)
	info, err := os.Lstat(path)
	ok(t, err)
	if got := info.Mode().Perm(); got != 0o600 {
		t.Errorf("got the mode %o, want 600", got)
	}
	l := &link{}
	for _, tt := range []struct {
		uid  uint32
		want error
	}{{0, nil}, {uint32(os.Geteuid()), nil}, {uint32(os.Geteuid()) + 1, os.ErrPermission}} {
		l.peer.UID = tt.uid
		if err := l.checkPeer(); !errors.Is(err, tt.want) {
			t.Errorf("user %d: got %v, want %v", tt.uid, err, tt.want)
		}
	}
}

func TestAbstractSocketsHaveNoFile(t *testing.T) {
	path := fmt.Sprintf("@handoff-test-%d", os.Getpid())
	l := listen(t, Config{}, path)
	taker := start(t, path)
	taker.tell("take")
	g := accept(t, l)
	taker.tell("all")
	taker.tell("acknowledge")
	ok(t, g.Commit(t.Context()))
	for range 3 {
		if got := taker.answer(); got != "" {
			t.Error(got)
		}
	}
	taker.do(t, "inherit")
	_, err := Listen(path)
	wantError(t, err, syscall.EADDRINUSE)
	if got := listenerOf(t, path); got != taker.Process.Pid {
		t.Errorf("who connects sees process %d, want the new owner %d", got, taker.Process.Pid)
	}
}

func TestWhoIsNotOfTheProtocolIsRefused(t *testing.T) {
	path := socketPath(t)
	refused := make(chan error, 10)
	l := listen(t, Config{Timeout: 300 * time.Millisecond, Refused: func(err error) { refused <- err }}, path)
	accepted := make(chan error, 1)
	go func() {
		_, err := l.Accept(t.Context())
		accepted <- err
	}()
	for _, tt := range []struct{ record, want string }{
		{"", "ended the handoff without a word"},
		{"GET / HTTP/1.0\r\n", "another protocol"},
		{"H", "another protocol"},
		{"Hft-handoff\n\x00\x02whatever", "version 2 of the handoff protocol, not 1"},
		{string(encodeHello("x")), "another protocol"},
		{"H" + string(encodeHello(strings.Repeat("x", MaxHello+1))), "of at most 4096"},
		{"Anot \x1b[1m me", `not \x1b[1m me`},
		{"silence", "did nothing for 300ms, is it stopped?"},
	} {
		conn, err := connect(t.Context(), path)
		ok(t, err)
		if tt.record != "silence" {
			conn.Write([]byte(tt.record))
		}
		if tt.record == "" {
			conn.Close()
		}
		if got := <-refused; !strings.Contains(got.Error(), tt.want) {
			t.Errorf("%.20q: got %v, want %q", tt.record, got, tt.want)
		}
		conn.Close()
	}
	taker := start(t, path)
	taker.do(t, "take")
	ok(t, <-accepted)
}

func TestAGiverThatTalksNonsenseIsLeft(t *testing.T) {
	hello := "H" + string(encodeHello("old"))
	for _, tt := range []struct {
		records []string
		want    string
	}{
		{[]string{"Hello"}, "another protocol"},
		{[]string{"I"}, "another protocol"},
		{[]string{"Hft-handoff\n\x00\x09"}, "version 9 of the handoff protocol, not 1"},
		{[]string{"Bprocess 7"}, "another process is taking over: process 7"},
		{[]string{hello, "X"}, `of the kind 'X'`},
		{[]string{hello, "T"}, `of the kind 'T'`},
		{[]string{hello, "E12345678"}, "with 8 bytes and 0 descriptors"},
		{[]string{hello, "I\x01\x00\x00\x00\x00\x00\x00\x00"}, "without its descriptor"},
		{[]string{hello, "I\x00\x00\xff\xff\x00\x00\x00\x00"}, "cannot be"},
		{[]string{hello, "I\x00\x00\x00\x00\xff\xff\xff\xff"}, "cannot be"},
		{[]string{hello, "I\x02\x00\x00\x00\x00\x00\x00\x00"}, "cannot be"},
		{[]string{hello, "I\x00\x00\x00", "E12345678"}, "with 8 bytes"},
		{[]string{hello, "I\x00\x00\x00\x00\x00\x00\x00\x05abc"}, "without a word"},
		{[]string{hello}, "without a word"},
		{nil, "without a word"},
	} {
		path := socketPath(t)
		ln, _, err := bind(path)
		ok(t, err)
		done := make(chan struct{})
		go func() {
			defer close(done)
			conn, err := ln.AcceptUnix()
			if err != nil {
				t.Error(err)
				return
			}
			conn.Read(make([]byte, maxRecord)) // its hello
			for _, r := range tt.records {
				conn.Write([]byte(r))
			}
			conn.Close()
		}()
		taker, err := Take(t.Context(), path)
		if err == nil {
			_, err = drain(taker)
			taker.Close()
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: got %v, want %q", tt.records, err, tt.want)
		}
		<-done
		ln.Close()
	}
}

func TestThousandsOfSocketsNeedNoMoreThanTheyAre(t *testing.T) {
	path := socketPath(t)
	l := listen(t, Config{}, path)
	poor := start(t, path)
	poor.do(t, "files 100")
	poor.tell("take")
	g := accept(t, l)
	if got := poor.answer(); got != "" {
		t.Fatal(got)
	}
	poor.tell("all")
	var err error
	for i := 0; i < 300 && err == nil; i++ {
		err = g.Give(Item{Kind: "file", File: os.Stdin, State: make([]byte, 4096)}) // more than the buffer takes
	}
	if err == nil {
		err = g.Commit(t.Context())
	}
	wantError(t, err, ErrAborted, "ulimit -n")
	if got := poor.answer(); !strings.Contains(got, "ulimit -n") {
		t.Errorf("the taker: got %q", got)
	}
	g.Close()

	rich := start(t, path)
	rich.tell("take")
	g = accept(t, l)
	rich.tell("all")
	rich.tell("acknowledge")
	give(t, g, 5000)
	ok(t, g.Commit(t.Context()))
}

// The kernel lets a user have only so many descriptors on their way
// (too_many_unix_fds in net/core/scm.c), which does not count for root.
func TestDescriptorsOnTheirWayWaitForTheOnesBefore(t *testing.T) {
	const items = 1500
	path := socketPath(t)
	giver := start(t, path)
	giver.do(t, "files 300", "listen")
	giver.tell("accept")
	taker, err := Take(t.Context(), path)
	ok(t, err)
	defer taker.Close()
	giver.tell(fmt.Sprint("give ", items))
	giver.tell("commit")
	n, err := drain(taker)
	ok(t, err)
	if n != items {
		t.Errorf("got %d items, want %d", n, items)
	}
	ok(t, taker.Acknowledge())
}

func BenchmarkHandoff(b *testing.B) {
	for _, n := range []int{1000, 10000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			files := sockets(b, n)
			state := bytes.Repeat([]byte("s"), 64)
			var whole time.Duration
			for b.Loop() {
				b.StopTimer()
				path := socketPath(b)
				l := listen(b, Config{}, path)
				taker := start(b, path)
				taker.tell("take")
				g := accept(b, l)
				if got := taker.answer(); got != "" {
					b.Fatal(got)
				}
				taker.tell("all")
				taker.tell("acknowledge")
				b.StartTimer()
				begin := time.Now()
				for _, f := range files {
					ok(b, g.Give(Item{Kind: "tcp", Name: "echo", File: f, State: state}))
				}
				ok(b, g.Commit(context.Background()))
				whole += time.Since(begin)
				b.StopTimer()
				taker.kill()
				b.StartTimer()
			}
			b.ReportMetric(float64(whole.Microseconds())/1000/float64(b.N), "ms/handoff")
		})
	}
}

// sockets are as many as are asked for, not one many times.
func sockets(b *testing.B, n int) (files []*os.File) {
	b.Helper()
	for range n {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		ok(b, err)
		f := os.NewFile(uintptr(fd), "socket")
		b.Cleanup(func() { f.Close() })
		files = append(files, f)
	}
	return files
}
