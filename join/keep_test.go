package join

import (
	"io"
	"net"
	"os"
	"testing"
	"time"
)

func TestWhatWasReadOfAKeptEndAndNotWrittenGoesToTheNextRun(t *testing.T) {
	k := Keep(Stdio(pipeWith(t, "one two")))
	defer k.End.Close()
	gone, peer := net.Pipe()
	peer.Close()
	if _, err := Run(t.Context(), k, gone, Options{QuitWithB: true}); err == nil {
		t.Log("the first run ended in order") // what it could write is up to chance
	}
	near, far := net.Pipe()
	got := make(chan string)
	go func() {
		b, _ := io.ReadAll(io.LimitReader(far, int64(len("one two"))))
		far.Close()
		got <- string(b)
	}()
	Run(t.Context(), k, near, Options{QuitWithB: true})
	if s := <-got; s != "one two" {
		t.Errorf("the second run got %q, want all", s)
	}
}

func TestAKeptEndKnowsItsEnd(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	k := Keep(Stdio(r, out))
	defer k.End.Close()
	if k.Ended(time.Millisecond) {
		t.Error("an input that has said nothing yet has ended")
	}
	io.WriteString(w, "x")
	if k.Ended(time.Second) {
		t.Error("an input with something to read has ended")
	}
	w.Close()
	b := make([]byte, 10)
	if n, err := k.Read(b); err != nil || string(b[:n]) != "x" {
		t.Errorf("got %q, %v; want x", b[:n], err)
	}
	if !k.Ended(time.Second) {
		t.Error("an input that was closed has not ended")
	}
	if _, err := k.Read(b); err != io.EOF {
		t.Errorf("got %v, want the end", err)
	}
}

// pipeWith is standard input with a text in it, and an output that nobody reads.
func pipeWith(t *testing.T, text string) (in, out *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, text)
	w.Close()
	if out, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0); err != nil {
		t.Fatal(err)
	}
	return r, out
}
