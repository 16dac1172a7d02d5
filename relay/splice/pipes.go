package splice

import (
	"bytes"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/fivetuple/fivetuple/internal/poll"
)

// Stats is what is to be known of a server's pipes.
type Stats struct {
	PipeSize  int    `json:"pipe_size"`  // bytes granted to the latest one; 0 before the first
	Pipes     int    `json:"pipes"`      // how many there are
	PipesIdle int    `json:"pipes_idle"` // of these not in use
	PipesMost int    `json:"pipes_most"` // how many there may be
	Fallbacks uint64 `json:"fallbacks"`  // how often bytes were copied for want of a pipe
}

// Stats returns what is to be known of the pipes.
func (s *Server) Stats() Stats {
	p := &s.pipes
	st := Stats{PipeSize: int(p.granted.Load()), Pipes: int(p.made.Load()), PipesMost: int(p.most.Load()), Fallbacks: p.fallbacks.Load()}
	for _, l := range s.allLoops() {
		l.lock()
		st.PipesIdle += len(l.pipes)
		l.unlock()
	}
	return st
}

const (
	pipeSize  = 1 << 20  // what is asked for
	leastPipe = 64 << 10 // what is worth having: the default of pipe(7)
	idlePipes = 4        // what a loop keeps for the next that needs one
)

// pipePool bounds how many pipes the loops have.
type pipePool struct {
	most, made, granted atomic.Int64
	fallbacks           atomic.Uint64
	again               atomic.Int64 // when the next may be tried, after one that was refused
}

// init sizes the pool. An ordinary user's pipes together may have
// pipe-user-pages-soft pages; beyond, each gets two or one (pipe(7)). Half of it is
// left to the user's other programs.
func (p *pipePool) init() {
	const most = 512
	p.most.Store(most)
	if !mayHavePipes() {
		pages := readNumber("/proc/sys/fs/pipe-user-pages-soft", 16384)
		if pages > 0 {
			p.most.Store(min(most, max(pages*int64(os.Getpagesize())/2/pipeSize, 1)))
		}
	}
	p.most.Store(max(min(p.most.Load(), int64(poll.FileLimit()/16)), 1)) // a pipe takes two
}

// mayHavePipes says whether the user's share does not bind this process: it has
// CAP_SYS_RESOURCE or CAP_SYS_ADMIN, in the first user namespace.
func mayHavePipes() bool {
	const sysAdmin, sysResource = 1 << 21, 1 << 24
	m, err := os.ReadFile("/proc/self/uid_map")
	if f := bytes.Fields(m); err != nil || len(f) != 3 || string(f[0]) != "0" || string(f[1]) != "0" || string(f[2]) != "4294967295" {
		return false
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false
	}
	for line := range bytes.Lines(status) {
		if caps, ok := bytes.CutPrefix(line, []byte("CapEff:")); ok {
			n, err := strconv.ParseUint(string(bytes.TrimSpace(caps)), 16, 64)
			return err == nil && n&(sysAdmin|sysResource) != 0
		}
	}
	return false
}

func readNumber(file string, otherwise int64) int64 {
	b, err := os.ReadFile(file)
	if err != nil {
		return otherwise
	}
	n, err := strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64)
	if err != nil {
		return otherwise
	}
	return n
}

// takePipe gives a direction a pipe, unless there is none to be had.
func (l *loop) takePipe(x *flow) bool {
	if x.pipe != nil {
		return true
	}
	if n := len(l.pipes); n > 0 {
		x.pipe = l.pipes[n-1]
		l.pipes = l.pipes[:n-1]
	} else {
		x.pipe = l.server.pipes.make(l.now)
	}
	if x.pipe == nil {
		x.flags |= noPipe
		return false
	}
	x.flags &^= noPipe
	return true
}

// make makes a pipe if there may be another, and the kernel grants one that is
// worth having.
func (p *pipePool) make(now int64) *poll.Pipe {
	if now < p.again.Load() {
		p.fallbacks.Add(1)
		return nil
	}
	if p.made.Add(1) > p.most.Load() {
		p.made.Add(-1)
		p.fallbacks.Add(1)
		return nil
	}
	pipe, err := poll.NewPipe(pipeSize)
	if err == nil && pipe.Size >= leastPipe {
		p.granted.Store(int64(pipe.Size))
		return pipe
	}
	if err == nil {
		pipe.Close()
	}
	p.made.Add(-1)
	p.again.Store(now + int64(time.Second))
	p.fallbacks.Add(1)
	return nil
}

// drop closes a pipe, with what may be in it.
func (p *pipePool) drop(pipe *poll.Pipe) {
	pipe.Close()
	p.made.Add(-1)
}

// givePipe gives back an empty pipe.
func (l *loop) givePipe(x *flow) {
	if x.pipe == nil {
		return
	}
	if len(l.pipes) < idlePipes {
		l.pipes = append(l.pipes, x.pipe)
	} else {
		l.server.pipes.drop(x.pipe)
	}
	x.pipe = nil
}
