package stream

import "sync"

// writeQueue holds what waits to be written to one connection. A goroutine
// writes it out, and exists only while there is something to write.
type writeQueue struct {
	mu      sync.Mutex
	waiting [][]byte
	size    int  // what waits costs, that being written included
	held    bool // until the TLS handshake is done
	writing bool
	closed  bool
	done    sync.WaitGroup
}

// Send queues a copy of b. It never waits: if more than Limits.WriteQueue
// bytes would wait for this client, the client is dropped and the error is
// ErrSlow.
func (c *Conn) Send(b []byte) error { return c.enqueue(append([]byte(nil), b...)) }

// enqueue queues b itself, which must not change any more.
func (c *Conn) enqueue(b []byte) error {
	limit := c.server.limits.Load().WriteQueue
	if limit <= 0 {
		limit = defaultWriteQueue
	}
	if len(b) == 0 {
		return nil
	}
	q := &c.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.closed:
		return ErrNoConn
	case q.size > 0 && q.size+cost(b) > limit:
		q.closed = true
		c.resetBecause(causeSlow)
		return ErrSlow
	}
	q.waiting = append(q.waiting, b)
	q.size += cost(b)
	c.startWriting()
	return nil
}

// startWriting writes what waits, if nobody does and it may. c.queue.mu is held.
func (c *Conn) startWriting() {
	q := &c.queue
	if !q.writing && !q.held && len(q.waiting) > 0 {
		q.writing = true
		q.done.Go(c.writeQueued)
	}
}

// release lets what waits go out.
func (c *Conn) release() {
	c.queue.mu.Lock()
	defer c.queue.mu.Unlock()
	c.queue.held = false
	c.startWriting()
}

// cost is what a waiting message takes of the limit: its bytes and its place.
func cost(b []byte) int { return len(b) + 64 }

// writeQueued writes until the queue is empty or the connection fails.
func (c *Conn) writeQueued() {
	q := &c.queue
	for {
		q.mu.Lock()
		if len(q.waiting) == 0 {
			q.writing = false
			q.mu.Unlock()
			return
		}
		b := q.waiting[0]
		q.waiting[0] = nil
		q.waiting = q.waiting[1:]
		q.mu.Unlock()
		_, err := c.Write(b)
		q.mu.Lock()
		q.size -= cost(b)
		if err != nil {
			q.closed, q.waiting = true, nil
		}
		q.mu.Unlock()
		if err != nil {
			c.closeBecause(causeOf(err), err)
		}
	}
}

// close takes nothing more and returns when what waits is written, or could
// not be written.
func (q *writeQueue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.done.Wait()
}
