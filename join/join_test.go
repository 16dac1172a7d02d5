package join

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"
)

func TestEndOfFileOfOneIsToldAndTheOtherReadToItsEnd(t *testing.T) {
	for name, kind := range map[string]pair{"tcp": tcpPair, "unix": unixPair, "seqpacket": seqpacketPair, "tls": tlsPair} {
		for _, first := range []string{"a", "b"} {
			t.Run(name+" "+first, func(t *testing.T) {
				a, peerA := kind(t)
				b, peerB := kind(t)
				done := run(t.Context(), a, b, Options{})
				if first == "b" {
					peerA, peerB = peerB, peerA
				}
				write(t, peerA, "question")
				closeWrite(t, peerA)
				wantAll(t, peerB, "question")
				write(t, peerB, "late answer")
				closeWrite(t, peerB)
				wantAll(t, peerA, "late answer")
				o := wait(t, done)
				if o.err != nil || o.result.AToB.Err != nil || o.result.BToA.Err != nil {
					t.Errorf("Run: %v, %+v, want no error", o.err, o.result)
				}
				if got := o.result.AToB.Bytes + o.result.BToA.Bytes; got != 19 {
					t.Errorf("counted %d bytes, want 19", got)
				}
			})
		}
	}
}

func TestQuitAfterBoundsTheTimeFromTheFirstEnd(t *testing.T) {
	tests := map[string]struct {
		options Options
		least   time.Duration
		endsB   bool
	}{
		"after a time":          {Options{QuitAfter: 50 * time.Millisecond}, 50 * time.Millisecond, false},
		"at once":               {Options{QuitAfter: -1}, 0, false},
		"at once, when B ends":  {Options{QuitAfter: -1}, 0, true},
		"with B":                {Options{QuitWithB: true}, 0, true},
		"with B, not before it": {Options{QuitWithB: true, QuitAfter: 50 * time.Millisecond}, 50 * time.Millisecond, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			a, peerA := tcpPair(t)
			b, peerB := tcpPair(t)
			if test.endsB {
				peerA, peerB = peerB, peerA
			}
			write(t, peerA, "all of it")
			closeWrite(t, peerA)
			done := run(t.Context(), a, b, test.options)
			wantAll(t, peerB, "all of it")
			o := wait(t, done)
			ended, open := o.result.AToB, o.result.BToA
			if test.endsB {
				ended, open = open, ended
			}
			if o.err != nil || ended.Err != nil || open.Err != ErrQuit {
				t.Errorf("got %v, %v, %v, want nil, nil, %v", o.err, ended.Err, open.Err, ErrQuit)
			}
			if o.took < test.least {
				t.Errorf("returned after %v, want %v at least", o.took, test.least)
			}
		})
	}
}

func TestQuittingLosesNothingThatWasWritten(t *testing.T) {
	for name, kind := range map[string]pair{"tcp": tcpPair, "tls": tlsPair} {
		t.Run(name, func(t *testing.T) {
			a, peerA := tcpPair(t)
			b, peerB := kind(t)
			done := run(t.Context(), a, b, Options{QuitAfter: -1})
			fill(t, peerB) // so that b is closed with bytes unread
			content := random(1, 2<<20)
			go func() {
				peerA.Write(content)
				closeWrite(t, peerA)
			}()
			got := make([]byte, len(content))
			if n, err := io.ReadFull(peerB, got); err != nil || string(got) != string(content) {
				t.Errorf("read %d bytes, %v, want %d", n, err, len(content))
			}
			if o := wait(t, done); o.err != nil || o.result.AToB.Bytes != uint64(len(content)) {
				t.Errorf("got %v, %+v", o.err, o.result)
			}
		})
	}
}

func TestWithoutEndOfFileOnlyQuitAfterEnds(t *testing.T) {
	for name, kind := range map[string]pair{"udp": udpPair, "unixgram": unixgramPair} {
		t.Run(name, func(t *testing.T) {
			a, peerA := tcpPair(t)
			b, peerB := kind(t)
			done := run(t.Context(), a, b, Options{RecordsB: true, QuitAfter: 100 * time.Millisecond})
			write(t, peerA, "question")
			closeWrite(t, peerA)
			buf := make([]byte, 100)
			if n, err := peerB.Read(buf); err != nil || string(buf[:n]) != "question" {
				t.Fatalf("read %q, %v", buf[:n], err)
			}
			write(t, peerB, "answer")
			wantAll(t, peerA, "answer")
			if o := wait(t, done); o.err != nil || o.result.AToB.Err != nil || o.took < 100*time.Millisecond {
				t.Errorf("got %v after %v, %+v", o.err, o.took, o.result)
			}
		})
	}
}

func TestAResetEndsBothAfterWhatCameBeforeIt(t *testing.T) {
	a, peerA := tcpPair(t)
	b, peerB := tcpPair(t)
	done := run(t.Context(), a, b, Options{})
	write(t, peerB, "before")
	wantRead(t, peerA, "before")
	peerB.(*net.TCPConn).SetLinger(0)
	peerB.Close()
	o := wait(t, done)
	wantError(t, o.err, errReset, "read tcp")
	wantError(t, o.result.BToA.Err, errReset)
	wantError(t, o.result.AToB.Err, errReset)
	wantBytes(t, o.result, 0, 6)
	wantAll(t, peerA, "")
}

func TestWhatBSentIsReadThoughItTakesNoMore(t *testing.T) {
	a, peerA := unixPair(t)
	b, peerB := unixPair(t)
	peerB.(*net.UnixConn).CloseRead()
	done := run(t.Context(), a, b, Options{})
	write(t, peerA, "nobody reads this")
	write(t, peerB, "first")
	wantRead(t, peerA, "first")
	write(t, peerB, "second")
	closeWrite(t, peerB)
	wantAll(t, peerA, "second")
	o := wait(t, done)
	wantError(t, o.err, errPipe)
	wantError(t, o.result.AToB.Err, errPipe)
	if o.result.BToA.Err != nil || o.result.BToA.Bytes != 11 {
		t.Errorf("from B got %+v, want 11 bytes to its end", o.result.BToA)
	}
}

func TestWhatBSentBeforeItsResetIsDelivered(t *testing.T) {
	a, peerA := tcpPair(t)
	b, peerB := tcpPair(t)
	answer := random(1, 100_000)
	if _, err := peerB.Write(answer); err != nil {
		t.Fatal(err)
	}
	write(t, b, "never read by the peer") // so that its close is a reset
	peerB.Close()
	write(t, peerA, "more")
	closeWrite(t, peerA)
	done := run(t.Context(), a, b, Options{})
	got, _ := io.ReadAll(peerA) // then the end, or a reset if "more" was not read
	if string(got) != string(answer) {
		t.Errorf("read %d bytes, want %d", len(got), len(answer))
	}
	if o := wait(t, done); o.err == nil {
		t.Errorf("no error of the reset: %+v", o.result)
	}
}

func TestARefusedDatagramEndsBoth(t *testing.T) {
	for name, kind := range map[string]pair{"udp": udpPair, "unixgram": unixgramPair} {
		t.Run(name, func(t *testing.T) {
			a, peerA := tcpPair(t)
			b, peerB := kind(t)
			peerB.Close()
			done := run(t.Context(), a, b, Options{RecordsB: true})
			write(t, peerA, "anybody?")
			wantError(t, wait(t, done).err, errRefused)
		})
	}
}

func TestTLSThatEndsInTheMiddleOfARecordIsAnError(t *testing.T) {
	a, peerA := tcpPair(t)
	b, peerB := tlsPair(t)
	write(t, peerB, "not all")
	raw := peerB.(*tls.Conn).NetConn()
	write(t, raw, "\x17\x03\x03\x00\x20cut")
	raw.Close()
	done := run(t.Context(), a, b, Options{})
	wantAll(t, peerA, "not all")
	wantError(t, wait(t, done).err, io.ErrUnexpectedEOF)
}

func TestTheEndOfTheContextEndsAtOnceWithTheCounts(t *testing.T) {
	for name, kind := range map[string]pair{"tcp": tcpPair, "unix": unixPair, "seqpacket": seqpacketPair, "tls": tlsPair, "udp": udpPair} {
		for _, stalled := range []bool{false, true} {
			what := name + " waiting to read"
			if stalled {
				what = name + " waiting to write"
			}
			t.Run(what, func(t *testing.T) {
				if stalled && name == "udp" {
					return // it never waits to write
				}
				a, peerA := tcpPair(t)
				b, peerB := kind(t)
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				records := name == "udp" || name == "seqpacket"
				done := run(ctx, a, b, Options{RecordsB: records})
				write(t, peerA, "hello")
				wantRead(t, peerB, "hello")
				if stalled {
					fill(t, peerA)
				}
				why := errors.New("enough")
				start := time.Now()
				cancel(why)
				o := wait(t, done)
				if took := time.Since(start); took > 2*time.Second {
					t.Errorf("took %v", took)
				}
				if o.err != why || o.result.AToB.Err != why || o.result.BToA.Err != why || o.result.AToB.Bytes < 5 {
					t.Errorf("got %v, %+v", o.err, o.result)
				}
			})
		}
	}
}

// fill writes until nobody takes more for a while.
func fill(t testing.TB, c net.Conn) {
	t.Helper()
	b := make([]byte, 1<<20)
	for {
		c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

func TestAWrongOptionIsRefusedAndBothEndsClosed(t *testing.T) {
	tests := map[string]Options{
		"rate of -1":         {Rate: -1},
		"-1 bytes":           {MaxMessage: -1},
		"framing 9":          {Messages: 9},
		"Telnet is for":      {Telnet: true, RecordsB: true},
		"CR LF is for":       {CRLF: true, RecordsB: true, Messages: Lines},
		"1073741825 bytes":   {MaxMessage: 1<<30 + 1},
		"CR LF is for bytes": {CRLF: true, RecordsA: true},
	}
	for words, o := range tests {
		a, peerA := tcpPair(t)
		b, peerB := tcpPair(t)
		_, err := Run(t.Context(), a, b, o)
		wantError(t, err, err, words)
		wantAll(t, peerA, "")
		wantAll(t, peerB, "")
	}
}

func TestRandomBytesPassWithStallsAndHalfCloses(t *testing.T) {
	kinds := map[string]pair{"tcp": tcpPair, "unix": unixPair, "tls": tlsPair}
	for nameA, kindA := range kinds {
		for nameB, kindB := range kinds {
			t.Run(nameA+" "+nameB, func(t *testing.T) {
				a, peerA := kindA(t)
				b, peerB := kindB(t)
				exchange(t, run(t.Context(), a, b, Options{}), peerA, peerB)
			})
		}
	}
}

// exchange sends different amounts both ways through Run and checks every byte.
func exchange(t testing.TB, done <-chan outcome, peerA, peerB io.ReadWriter) {
	t.Helper()
	exchangeBytes(t, done, peerA, peerB, 3<<20, 1<<20)
}

func exchangeBytes(t testing.TB, done <-chan outcome, peerA, peerB io.ReadWriter, nA, nB int) {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	fromA, fromB := random(seed, nA), random(seed+1, nB)
	failed := make(chan error, 4)
	talk := func(c io.ReadWriter, send, expect []byte, seed uint64) {
		go func() { failed <- sendStalling(c, send, seed) }()
		go func() { failed <- expectAll(c, expect) }()
	}
	talk(peerA, fromA, fromB, seed)
	talk(peerB, fromB, fromA, seed+1)
	for range 4 {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	if o := wait(t, done); o.err != nil || o.result.AToB.Bytes != uint64(len(fromA)) || o.result.BToA.Bytes != uint64(len(fromB)) {
		t.Errorf("Run: %v, %+v", o.err, o.result)
	}
}

func sendStalling(c io.Writer, b []byte, seed uint64) error {
	r := rand.New(rand.NewPCG(seed, 7))
	for len(b) > 0 {
		n := min(len(b), 1+r.IntN(200_000))
		if r.IntN(8) == 0 {
			n = min(len(b), 1+r.IntN(3))
			<-time.After(time.Duration(r.IntN(3)) * time.Millisecond) // a stall
		}
		if _, err := c.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return c.(closeWriter).CloseWrite()
}

func expectAll(c io.Reader, want []byte) error {
	got, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	if string(got) != string(want) {
		return errors.New("the bytes that came are not those that were sent")
	}
	return nil
}

func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)}).Read(b)
	return b
}
