package lease

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
)

// Names come back to their ports. Without a name every lease is another's, and
// the ports would all be at rest after a few seconds.
func BenchmarkSharedAcquireRelease(b *testing.B) {
	for _, held := range []int{0, 10_000} {
		for _, kind := range []struct {
			what    string
			options Options
			name    func(i int) string
		}{
			{"one name", Options{}, func(int) string { return "api" }},
			{"1000 names", Options{}, func(i int) string { return fmt.Sprint("api ", i%1000) }},
			{"no name nor rest", Options{Rest: -1}, func(int) string { return "" }},
		} {
			b.Run(fmt.Sprintf("%d held, %s", held, kind.what), func(b *testing.B) {
				s := newShared(b, kind.options)
				hold(b, s, held)
				for i := 0; b.Loop(); i++ {
					l, err := s.Acquire(b.Context(), Request{Name: kind.name(i)})
					if err == nil {
						err = s.Release(b.Context(), l)
					}
					if err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "leases/s")
			})
		}
	}
}

func hold(b *testing.B, s *Shared, leases int) {
	b.Helper()
	for range leases {
		if _, err := s.Acquire(b.Context(), Request{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSharedList(b *testing.B) {
	s := newShared(b, Options{})
	hold(b, s, 10_000)
	for b.Loop() {
		if got, err := s.List(b.Context()); err != nil || len(got) != 10_000 {
			b.Fatal(len(got), err)
		}
	}
}

// Opening, one lease and closing is what each call of the command does.
func BenchmarkSharedOpenAcquireClose(b *testing.B) {
	for _, held := range []int{0, 10_000} {
		b.Run(fmt.Sprint("held=", held), func(b *testing.B) {
			s := newShared(b, Options{})
			hold(b, s, held)
			for b.Loop() {
				c, err := Open(b.Context(), s.path, withOwnClaims(s.path, Options{}))
				if err != nil {
					b.Fatal(err)
				}
				l, err := c.Acquire(b.Context(), Request{Name: "api"})
				if err == nil {
					err = c.Release(b.Context(), l)
				}
				if err != nil {
					b.Fatal(err)
				}
				c.Close()
			}
		})
	}
}

// All processes together, which have each opened the registry before.
func BenchmarkSharedProcesses(b *testing.B) {
	for _, processes := range []int{1, 2, 8} {
		b.Run(fmt.Sprint(processes), func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "ports.db")
			openAt(b, path, Options{})
			var cmds []*exec.Cmd
			var starts []io.WriteCloser
			for i := range processes {
				share := b.N / processes
				if i < b.N%processes {
					share++
				}
				cmd := player(b, "acquire and release", path, strconv.Itoa(share))
				stdin, err := cmd.StdinPipe()
				if err != nil {
					b.Fatal(err)
				}
				stdout, err := cmd.StdoutPipe()
				if err != nil {
					b.Fatal(err)
				}
				start(b, cmd)
				if _, err := bufio.NewReader(stdout).ReadByte(); err != nil { // it is ready
					b.Fatal(err)
				}
				cmds, starts = append(cmds, cmd), append(starts, stdin)
			}
			b.ResetTimer()
			for _, stdin := range starts {
				stdin.Close()
			}
			for _, cmd := range cmds {
				if err := cmd.Wait(); err != nil {
					b.Error(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "leases/s")
		})
	}
}

// acquireAndRelease waits for the end of its standard input and then takes and
// releases so many ports.
func acquireAndRelease(args []string) error {
	ctx := context.Background()
	s, err := Open(ctx, args[0], withOwnClaims(args[0], Options{}))
	if err != nil {
		return err
	}
	fmt.Println()
	io.Copy(io.Discard, os.Stdin)
	for range intArg(args, 1) {
		l, err := s.Acquire(ctx, Request{Name: fmt.Sprint("process ", os.Getpid())})
		if err == nil {
			err = s.Release(ctx, l)
		}
		if err != nil {
			return err
		}
	}
	return s.Close()
}
