package activation

import (
	"errors"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// asker is a supervisor whose looks another goroutine answers.
func asker(t *testing.T, answer func(conn int)) *supervisor {
	t.Helper()
	pair := must(unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0))
	done := make(chan struct{})
	go func() {
		defer close(done)
		answer(pair[1])
		unix.Close(pair[1])
	}()
	t.Cleanup(func() {
		unix.Close(pair[0])
		<-done
	})
	return &supervisor{asks: pair[0]}
}

func TestLooksAreTheSameWhoeverLooks(t *testing.T) {
	page := os.Getpagesize()
	pages := must(unix.Mmap(-1, 0, 2*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS))
	defer unix.Munmap(pages)
	copy(pages[page-4:], "text")
	ok(unix.Mprotect(pages[page:], unix.PROT_NONE))
	socket := must(unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
	defer unix.Close(socket)
	at := func(offset int) uint64 { return uint64(uintptr(unsafe.Pointer(&pages[offset]))) }
	pid := uint32(os.Getpid())
	for _, tt := range []struct {
		name   string
		look   look
		memory string
		want   error
	}{
		{"memory", look{TID: pid, Address: at(page - 4), Length: 4}, "text", nil},
		{"memory that ends", look{TID: pid, Address: at(page - 4), Length: 5}, "", unix.EFAULT},
		{"no memory", look{TID: pid, Address: 1, Length: 5}, "", unix.EFAULT},
		{"a descriptor", look{TID: pid, FD: int32(socket)}, "", nil},
		{"no descriptor", look{TID: pid, FD: -1}, "", unix.EBADF},
		{"no process", look{TID: 1 << 30, FD: 0}, "", unix.ESRCH},
	} {
		for who, s := range map[string]*supervisor{"itself": {asks: -1}, "another": asker(t, answerLooks)} {
			before := len(must(os.ReadDir("/proc/self/fd")))
			memory, fd, err := s.look(tt.look)
			if string(memory) != tt.memory || !errors.Is(err, tt.want) {
				t.Errorf("%s, %s: got %q, %v, want %q, %v", tt.name, who, memory, err, tt.memory, tt.want)
			}
			if err == nil && tt.look.Length == 0 {
				if !sameCookie(fd, socket, unix.SO_COOKIE) {
					t.Errorf("%s, %s: got another descriptor", tt.name, who)
				}
				unix.Close(fd)
			}
			if who == "another" { // which is done with this once it has answered the next
				s.look(look{TID: pid, FD: -1})
			}
			if after := len(must(os.ReadDir("/proc/self/fd"))); after != before {
				t.Errorf("%s, %s: got %d descriptors open, want %d", tt.name, who, after, before)
			}
		}
	}
}

func TestLooksThatAreNotAnswered(t *testing.T) {
	answers := func(b ...byte) func(int) {
		return func(conn int) {
			unix.Read(conn, make([]byte, 100))
			if len(b) > 0 {
				ok(unix.Send(conn, b, 0))
			}
		}
	}
	for _, tt := range []struct {
		name   string
		answer func(int)
		want   string
	}{
		{"it has ended before", func(int) {}, "let the parent of the command look: "},
		{"it ends", answers(), "let the parent of the command look: it has ended"},
		{"no place for the descriptor", answers(0, 0, 0, 0), "pidfd_getfd: too many open files"},
	} {
		_, _, err := asker(t, tt.answer).look(look{TID: 1})
		if err == nil || err.Error()[:min(len(tt.want), len(err.Error()))] != tt.want {
			t.Errorf("%s: got %v, want %s", tt.name, err, tt.want)
		}
	}
}
