package splice

import "sync"

// buffer holds what was read from one side and not yet taken by the other. It
// exists only while something waits.
type buffer struct {
	rest  []byte // what waits, in whole or elsewhere
	whole []byte // nil if the buffer is not of the pool
}

// Pooled buffers are of two sizes: most rests are either small or nearly all that
// was read.
const (
	smallBuffer = 8 << 10
	largeBuffer = readSize
)

var (
	smallBuffers = sync.Pool{New: func() any { return &buffer{whole: make([]byte, smallBuffer)} }}
	largeBuffers = sync.Pool{New: func() any { return &buffer{whole: make([]byte, largeBuffer)} }}
)

// keep lets bytes wait to be written.
func (l *loop) keep(x *flow, b []byte) {
	switch {
	case len(b) <= smallBuffer:
		x.buffer = smallBuffers.Get().(*buffer)
	case len(b) <= largeBuffer:
		x.buffer = largeBuffers.Get().(*buffer)
	default:
		x.buffer = &buffer{rest: append([]byte(nil), b...)}
		return
	}
	x.buffer.rest = x.buffer.whole[:copy(x.buffer.whole, b)]
}

func putBuffer(b *buffer) {
	b.rest = nil
	switch len(b.whole) {
	case smallBuffer:
		smallBuffers.Put(b)
	case largeBuffer:
		largeBuffers.Put(b)
	}
}

// forget drops what waits in a direction.
func (l *loop) forget(x *flow) {
	if x.buffer != nil {
		putBuffer(x.buffer)
		x.buffer = nil
	}
	if x.held > 0 {
		x.held = 0
		l.server.pipes.drop(x.pipe)
		x.pipe = nil
	}
	l.givePipe(x)
}
