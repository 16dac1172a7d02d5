package handoff

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

func TestWhenTheTakerIsKilledTheGiverKeepsAllButWhatItOwned(t *testing.T) {
	for _, tt := range []struct {
		orders   []string
		taken    bool // the taker was the owner
		giverGot string
	}{
		{[]string{"take"}, false, "without a word"},
		{[]string{"take", "next"}, false, "without a word"},
		{[]string{"take", "all"}, false, "without a word"},
		{[]string{"take", "all", "token"}, true, ""}, // killed before it could say so
		{[]string{"take", "all", "acknowledge"}, true, ""},
	} {
		t.Run(strings.Join(tt.orders, " "), func(t *testing.T) {
			path := socketPath(t)
			l := listen(t, Config{}, path)
			taker := start(t, path)
			taker.tell("take")
			g := accept(t, l)
			if got := taker.answer(); got != "" {
				t.Fatal(got)
			}
			// Enough to be sent before the end, and little enough for the socket's buffer.
			give(t, g, 300)
			committed := make(chan error, 1)
			go func() { committed <- g.Commit(t.Context()) }()
			taker.do(t, tt.orders[1:]...)
			taker.kill()
			err := <-committed
			if tt.taken {
				ok(t, err)
				if _, err := os.Lstat(path); err != nil {
					t.Errorf("the giver removed the path: %v", err)
				}
				return
			}
			wantError(t, err, ErrAborted, tt.giverGot)

			again := start(t, path)
			again.tell("take")
			g = accept(t, l)
			give(t, g, 300)
			again.tell("all")
			again.tell("acknowledge")
			ok(t, g.Commit(t.Context()))
		})
	}
}

func TestWhenTheGiverIsKilledTheTakerOwnsAllOrNothing(t *testing.T) {
	for _, tt := range []struct {
		orders string // after listen; the last without waiting if it has a "&"
		items  int
		owner  bool
	}{
		{"accept", 0, false},
		{"accept, give 10", 0, false},
		{"accept, give 300", 253, false},
		{"accept, give 300, commit &", 300, true},
	} {
		t.Run(tt.orders, func(t *testing.T) {
			path := socketPath(t)
			giver := start(t, path)
			giver.do(t, "listen")
			orders := strings.Split(tt.orders, ", ")
			giver.tell(orders[0])
			taker, err := Take(t.Context(), path)
			ok(t, err)
			defer taker.Close()
			if got := giver.answer(); got != "" {
				t.Fatal(got)
			}
			for _, order := range orders[1:] {
				if order, ok := strings.CutSuffix(order, " &"); ok {
					giver.tell(order)
					first, err := taker.Next() // it may yet be giving
					if err != nil {
						t.Fatal(err)
					}
					first.File.Close()
					tt.items--
					for taker.token == nil { // the end has come: the giver has done its part
						it, err := taker.Next()
						if err != nil {
							break
						}
						it.File.Close()
						tt.items--
					}
					continue
				}
				giver.do(t, order)
			}
			giver.kill()
			n, err := drain(taker)
			if n != tt.items {
				t.Errorf("%d items more came, want %d", n, tt.items)
			}
			if !tt.owner {
				wantError(t, err, ErrAborted, "without a word")
				if err := taker.Acknowledge(); err == nil {
					t.Error("owns what it has not")
				}
				_, err = Take(t.Context(), path)
				wantError(t, err, ErrNobody)
				return
			}
			ok(t, err)
			ok(t, taker.Acknowledge())
			l, err := taker.Listener()
			ok(t, err)
			defer l.Close()
			next := start(t, path)
			next.tell("take")
			accept(t, l).Close()
			if got := next.answer(); got != "" {
				t.Error(got)
			}
		})
	}
}

// The moments are spread over twice the time that a handoff takes.
func TestWhoeverIsKilledWhenever(t *testing.T) {
	const rounds = 20
	for name, round := range map[string]func(*testing.T, time.Duration) (string, time.Duration){"taker": killTaker, "giver": killGiver} {
		owners := map[string]int{}
		_, whole := round(t, patience)
		for i := range rounds {
			owner, _ := round(t, whole*time.Duration(2*i)/rounds)
			owners[owner]++
		}
		t.Logf("the %s is killed within %v: %v", name, whole, owners)
	}
}

const (
	manyItems = 2000
	stateSize = 4096
)

func killTaker(t *testing.T, after time.Duration) (owner string, took time.Duration) {
	path := socketPath(t)
	l := listen(t, Config{}, path)
	taker := start(t, path)
	taker.tell("take")
	g := accept(t, l)
	if got := taker.answer(); got != "" {
		t.Fatal(got)
	}
	taker.tell("all")
	taker.tell("acknowledge")
	defer time.AfterFunc(after, func() { taker.Process.Kill() }).Stop()
	begun := time.Now()
	var err error
	for i := 0; i < manyItems && err == nil; i++ {
		err = g.Give(Item{Kind: "file", File: os.Stdin, State: make([]byte, stateSize)})
	}
	if err == nil {
		err = g.Commit(t.Context())
	}
	took = time.Since(begun)
	g.Close()
	owns := taker.answer()+taker.answer() == ""
	switch {
	case err != nil && owns:
		t.Fatalf("killed after %v: both own: %v", after, err)
	case err != nil:
		return "giver kept", took
	case owns:
		return "taker owned", took
	}
	return "taker owned and was killed before it could say so", took
}

func killGiver(t *testing.T, after time.Duration) (owner string, took time.Duration) {
	path := socketPath(t)
	giver := start(t, path)
	giver.do(t, "listen")
	giver.tell("accept")
	taker, err := Take(t.Context(), path)
	ok(t, err)
	defer taker.Close()
	giver.tell(fmt.Sprint("give ", manyItems, " ", stateSize))
	giver.tell("commit")
	defer time.AfterFunc(after, func() { giver.Process.Kill() }).Stop()
	begun := time.Now()
	n, err := drain(taker)
	if err == nil {
		err = taker.Acknowledge()
	}
	took = time.Since(begun)
	gave := giver.answer()+giver.answer()+giver.answer() == ""
	switch {
	case err != nil && gave:
		t.Fatalf("killed after %v: nobody owns: %v", after, err)
	case err == nil && n != manyItems:
		t.Fatalf("killed after %v: owns %d of %d", after, n, manyItems)
	case err == nil:
		return "taker owned", took
	}
	return "giver died with all", took
}

func TestAStoppedTakerHoldsNobodyUp(t *testing.T) {
	path := socketPath(t)
	l := listen(t, Config{Timeout: 500 * time.Millisecond}, path)
	for _, tt := range []struct {
		orders []string
		items  int
		late   string // what it is told when it goes on
	}{
		{nil, 5000, "all"}, // the socket's buffer is full
		{nil, 1, "all"},
		{[]string{"all"}, 1, "acknowledge"},
	} {
		taker := start(t, path)
		taker.tell("take")
		g := accept(t, l)
		if got := taker.answer(); got != "" {
			t.Fatal(got)
		}
		var err error
		if tt.orders == nil {
			taker.pause(t)
		} else { // it has all, and then does nothing
			taker.tell("all")
		}
		for i := 0; i < tt.items && err == nil; i++ {
			err = g.Give(Item{Kind: "file", File: os.Stdin})
		}
		if err == nil {
			err = g.Commit(t.Context())
		}
		wantError(t, err, os.ErrDeadlineExceeded, "did nothing for 500ms")
		g.Close()
		if tt.orders == nil {
			taker.resume(t)
		} else if got := taker.answer(); got != "" {
			t.Fatal(got)
		}
		taker.tell(tt.late)
		got := taker.answer()
		if tt.late == "all" && got == "" { // all had come before the giver gave up
			taker.tell("acknowledge")
			got = taker.answer()
		}
		if !strings.Contains(got, ErrAborted.Error()) {
			t.Errorf("%d items, %v: when it goes on: got %q, want %q", tt.items, tt.orders, got, ErrAborted)
		}
		taker.kill()
	}
}

func TestAStoppedGiverHoldsNobodyUp(t *testing.T) {
	for _, orders := range []string{"", "accept", "accept, give 300"} {
		path := socketPath(t)
		giver := start(t, path)
		giver.do(t, "listen")
		c := Config{Timeout: 500 * time.Millisecond}
		var taker *Taker
		var err error
		if orders != "" {
			all := strings.Split(orders, ", ")
			giver.tell(all[0])
			taker, err = c.Take(t.Context(), path)
			ok(t, err)
			if got := giver.answer(); got != "" {
				t.Fatal(got)
			}
			giver.do(t, all[1:]...)
		}
		giver.pause(t)
		if taker == nil {
			_, err = c.Take(t.Context(), path)
		} else {
			_, err = drain(taker)
			taker.Close()
		}
		wantError(t, err, os.ErrDeadlineExceeded, "did nothing for 500ms", "is it stopped?")
		if orders == "" {
			continue
		}
		giver.resume(t)
		giver.tell("commit")
		if got := giver.answer(); !strings.Contains(got, ErrAborted.Error()) {
			t.Errorf("%s: when it goes on: got %q, want %q", orders, got, ErrAborted)
		}
	}
}

func TestContextsEndWaiting(t *testing.T) {
	path := socketPath(t)
	l := listen(t, Config{}, path)
	_, err := l.Accept(canceled(t))
	wantError(t, err, errEnough, path)
	_, err = Take(canceled(t), path)
	wantError(t, err, errEnough, path)

	g, taker, _ := pair(t, Config{}, Config{})
	give(t, g, 1)
	err = g.Commit(canceled(t))
	wantError(t, err, errEnough)
	if _, err = drain(taker); err == nil {
		err = taker.Acknowledge()
	}
	wantError(t, err, ErrAborted, errEnough.Error())
}

var errEnough = errors.New("enough of it")

// canceled is a context that ends soon.
func canceled(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Millisecond, errEnough)
	t.Cleanup(cancel)
	return ctx
}
