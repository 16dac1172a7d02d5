package handoff

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple/ancillary"
)

func FuzzItems(f *testing.F) {
	f.Add([]byte(nil), uint8(1), uint16(0))
	f.Add(append(appendHeader(nil, Item{Kind: "tcp", Name: "echo", State: []byte("abc")}), "abc"...), uint8(3), uint16(0))
	f.Add(appendHeader(nil, Item{Kind: "tcp", File: os.Stdin}), uint8(200), uint16(1))
	f.Add(binary.BigEndian.AppendUint32([]byte{1, 255, 255, 255}, 1<<31), uint8(9), uint16(0))
	f.Fuzz(func(t *testing.T, stream []byte, size uint8, files uint16) {
		rest := stream
		d := decoder{more: func() (piece []byte, _ []*os.File, err error) {
			if len(rest) == 0 {
				return nil, nil, io.EOF
			}
			n := min(1+int(size), len(rest))
			piece, rest = rest[:n], rest[n:]
			return piece, nil, nil
		}}
		d.files = make([]*os.File, files%300)
		var again []byte
		for {
			it, err := d.next()
			if err == io.EOF {
				break
			}
			if err != nil {
				return
			}
			if len(it.Kind) > MaxKind || len(it.Name) > MaxName || len(it.State) > MaxState {
				t.Fatalf("an item beyond the limits: %d %d %d", len(it.Kind), len(it.Name), len(it.State))
			}
			begin := len(again)
			again = append(appendHeader(again, it), it.State...)
			again[begin] = stream[begin] // the files here are nil
		}
		if !bytes.Equal(again, stream) {
			t.Fatalf("%x was read as %x", stream, again)
		}
	})
}

func FuzzHello(f *testing.F) {
	f.Add(encodeHello("ft 1.0"))
	f.Add([]byte("GET / HTTP/1.0\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		text, err := decodeHello(b)
		if err == nil && !bytes.Equal(encodeHello(text), b) {
			t.Fatalf("%q was read as %q", b, text)
		}
	})
}

// Whatever a giver sends, in whatever records: a taker comes to an end, and leaves
// no descriptor open.
func FuzzGiver(f *testing.F) {
	item := append([]byte{recordItems}, appendHeader(nil, Item{Kind: "tcp", File: os.Stdin})...)
	f.Add(append(item, "|E\x00\x00\x00\x00\x00\x00\x00\x01"...), uint16(1<<0))
	f.Add([]byte("I|I\x00|Afor no reason"), uint16(7))
	null, err := os.Open(os.DevNull)
	ok(f, err)
	defer null.Close()
	f.Fuzz(func(t *testing.T, text []byte, files uint16) {
		begin := time.Now()
		before := descriptors(t)
		giver, taker := seqpacketPair(t)
		for i, record := range bytes.Split(text, []byte("|")) {
			var with []*os.File
			if i < 16 && files>>i&1 == 1 {
				with = []*os.File{null, null}[:1+i%2]
			}
			giver.SetWriteDeadline(time.Now().Add(10 * time.Millisecond)) // what does not fit is left out
			_ = ancillary.SendFiles(giver, record[:min(len(record), maxRecord)], with...)
		}
		giver.Close()
		tk := &Taker{link: &link{conn: taker, timeout: patience}}
		tk.items.more = tk.more
		if _, err := drain(tk); err == nil {
			_ = tk.Acknowledge()
		}
		tk.Close()
		taker.Close()
		if after := descriptors(t); after != before {
			t.Errorf("%d descriptors are open, and %d were", after, before)
		}
		if took := time.Since(begin); took > patience/2 {
			t.Errorf("took %v", took)
		}
	})
}

func seqpacketPair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	ok(t, err)
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		ok(t, err)
		f.Close()
		conns[i] = c.(*net.UnixConn)
	}
	return conns[0], conns[1]
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	ok(t, err)
	return len(list)
}
