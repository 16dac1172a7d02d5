package join

import (
	"context"
	"errors"
	"io"
	"time"
)

// joint is one Run.
type joint struct {
	o        Options
	a, b     *side
	ab, ba   *direction
	activity activity
	stopped  chan struct{} // closed when both directions are to end
	answers  *answering    // nil: no Telnet
	dump     *dumper       // nil: none
}

// side is an end as the directions use it: reading and writing may pass a dump or
// Telnet's lock.
type side struct {
	end     End
	r       io.Reader
	w       io.Writer
	records bool
}

func newJoin(a, b End, o Options) *joint {
	j := &joint{o: o, stopped: make(chan struct{})}
	j.activity.start = time.Now()
	j.a = &side{end: a, r: a, w: a, records: o.RecordsA}
	j.b = &side{end: b, r: b, w: b, records: o.RecordsB}
	if o.Dump != nil {
		j.dump = newDumper(*o.Dump)
		j.b.r, j.b.w = &dumpedReader{j.b.r, j.dump}, &dumpedWriter{j.b.w, j.dump}
	}
	j.ab, j.ba = j.direct(j.a, j.b), j.direct(j.b, j.a)
	if o.CRLF {
		j.ab.stages = append(j.ab.stages, &crlf{})
	}
	if o.Telnet {
		j.answers = &answering{w: j.b.w}
		j.b.w = j.answers
		j.ab.stages = append(j.ab.stages, &telnetOut{})
		j.ba.stages = append(j.ba.stages, &telnetIn{answer: j.answers.answer})
	}
	return j
}

// direct makes the direction between two sides, with the framing that their records
// need.
func (j *joint) direct(from, to *side) *direction {
	d := &direction{joint: j, from: from, to: to, pace: newPacer(j.o.Rate, &j.activity, j.stopped)}
	limit := j.o.MaxMessage
	switch {
	case from.records:
		d.source = &records{read: d.read, buf: make([]byte, limit+1)}
	case !to.records:
		d.buf = buffers.Get().(*[]byte)
		d.source = &chunks{read: d.read, buf: *d.buf}
	case j.o.Messages == Lines:
		d.source = &lines{read: d.read, limit: limit}
	case j.o.Messages == Lengths:
		d.source = &lengths{read: d.read, limit: limit}
	default:
		if j.o.CRLF {
			limit = max(limit/2, 1) // each LF may become two bytes
		}
		d.source = &chunks{read: d.read, buf: make([]byte, limit)}
	}
	if from.records && !to.records {
		switch j.o.Messages {
		case Lines:
			d.stages = append(d.stages, &lineEnd{multiline: &d.count.Multiline})
		case Lengths:
			d.stages = append(d.stages, &lengthPrefix{})
		}
	}
	return d
}

func (j *joint) run(ctx context.Context) (Result, error) {
	ended := make(chan *direction, 2)
	for _, d := range []*direction{j.ab, j.ba} {
		go func() {
			d.run()
			ended <- d
		}()
	}
	running, cause := j.watch(ctx, ended)
	if cause != nil {
		close(j.stopped)
		interrupt(j.a.end)
		interrupt(j.b.end)
		for ; running > 0; running-- {
			if d := <-ended; d.count.Err != nil {
				d.count.Err = cause
			}
		}
	}
	if j.answers != nil {
		interrupt(j.b.end)
		j.answers.flushes.Wait()
	}
	for _, d := range []*direction{j.ab, j.ba} {
		if d.dropped { // nobody shall take it for delivered
			reset(d.from.end)
		}
	}
	early := cause != nil || j.ab.count.Err != nil || j.ba.count.Err != nil
	if early && ctx.Err() == nil {
		linger(j.a.end)
		linger(j.b.end)
	}
	closeEnd(j.a.end)
	closeEnd(j.b.end)
	result := Result{AToB: j.ab.count, BToA: j.ba.count}
	return result, j.failure(cause)
}

// watch waits until both directions have ended, or until something ends them, which
// it returns with how many still run.
func (j *joint) watch(ctx context.Context, ended <-chan *direction) (running int, cause error) {
	quit, idle := stoppedTimer(), stoppedTimer()
	defer quit.Stop()
	defer idle.Stop()
	if j.o.Idle > 0 {
		idle.Reset(j.o.Idle / idleLooks)
	}
	for running = 2; running > 0; {
		select {
		case d := <-ended:
			running--
			switch {
			case d.fatal:
				return running, d.count.Err
			case running == 0:
			case j.o.QuitAfter < 0, j.o.QuitWithB && d == j.ba:
				return running, ErrQuit
			case j.o.QuitAfter > 0:
				quit.Reset(j.o.QuitAfter)
			}
		case <-quit.C:
			return running, ErrQuit
		case <-idle.C:
			j.activity.look(unsent(j.a.end), unsent(j.b.end))
			left := j.o.Idle - j.activity.since()
			if left <= 0 {
				return running, ErrIdle
			}
			idle.Reset(min(left, j.o.Idle/idleLooks+1))
		case <-ctx.Done():
			return running, context.Cause(ctx)
		}
	}
	return 0, nil
}

// ending says whether both directions are to end.
func (j *joint) ending() bool {
	select {
	case <-j.stopped:
		return true
	default:
		return false
	}
}

// failure is the error of Run: what ended it, or what went wrong on the way.
func (j *joint) failure(cause error) error {
	if cause == nil || cause == ErrQuit {
		cause = nil
		for _, d := range []*direction{j.ab, j.ba} {
			if err := d.count.Err; err != nil && err != ErrQuit && cause == nil {
				cause = err
			}
		}
	}
	if j.dump != nil {
		cause = errors.Join(cause, j.dump.failure())
	}
	return cause
}

func stoppedTimer() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}
