package load

import (
	"bytes"
	"context"
	"net"
	"sync"
	"time"
)

const (
	delayBuffer = 4 << 20   // bytes of each socket's buffers: the proxy's own TCP hops must not limit the rate
	delayChunk  = 256 << 10 // bytes of one read at most
	delayQueue  = 1 << 30   // bytes in flight in a direction at most, far above bandwidth times delay of any peer
	delaySmall  = 32 << 10  // bytes up to which a read is copied rather than queued with its whole buffer
)

// NewDelay is a proxy to target that is a true delay line: every byte arrives oneWay later, whatever the rate. The
// sender's TCP never sees the delay, so what is measured is the windows of the peer and not those of the kernel.
func NewDelay(target string, oneWay time.Duration) (*Proxy, error) {
	buffers := &sync.Pool{New: func() any { return new([delayChunk]byte) }}
	return newProxy(target, delayBuffer, func(ctx context.Context, to, from *net.TCPConn) error {
		return newDelayLine(oneWay, buffers).run(ctx, to, from)
	})
}

// chunk is bytes that are due at a time. The end of the direction is a chunk without bytes.
type chunk struct {
	due    time.Time
	data   []byte
	pooled *[delayChunk]byte // the buffer to return when data is written, or nil
}

// delayLine is one direction of one connection: a reader puts chunks, a writer takes them when they are due.
type delayLine struct {
	oneWay  time.Duration
	buffers *sync.Pool
	mu      sync.Mutex // guards queue, bytes and ended
	queue   []chunk
	bytes   int
	ended   bool
	changed *sync.Cond
}

func newDelayLine(oneWay time.Duration, buffers *sync.Pool) *delayLine {
	d := &delayLine{oneWay: oneWay, buffers: buffers}
	d.changed = sync.NewCond(&d.mu)
	return d
}

func (d *delayLine) run(ctx context.Context, to, from *net.TCPConn) error {
	defer context.AfterFunc(ctx, d.end)()
	var reading sync.WaitGroup
	var failed error
	reading.Go(func() { failed = d.read(from) })
	err := d.write(ctx, to)
	if err != nil {
		_ = from.Close() // ends the reader
	}
	d.end()
	reading.Wait()
	if err != nil {
		return err
	}
	return failed
}

// end wakes both sides for good.
func (d *delayLine) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ended = true
	d.changed.Broadcast()
}

// read queues what arrives, and the end. An error ends the direction at once, as a reset would.
func (d *delayLine) read(from *net.TCPConn) error {
	for {
		buf := d.buffers.Get().(*[delayChunk]byte)
		n, err := from.Read(buf[:])
		if n > 0 && !d.put(d.chunk(buf, n)) {
			return net.ErrClosed
		}
		if err == nil {
			continue
		}
		if err = unlessEOF(err); err == nil {
			d.put(chunk{due: time.Now().Add(d.oneWay)})
		} else {
			d.end()
		}
		return err
	}
}

func (d *delayLine) chunk(buf *[delayChunk]byte, n int) chunk {
	due := time.Now().Add(d.oneWay)
	if n > delaySmall {
		return chunk{due, buf[:n], buf}
	}
	defer d.buffers.Put(buf)
	return chunk{due, bytes.Clone(buf[:n]), nil}
}

func (d *delayLine) put(c chunk) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for d.bytes+len(c.data) > delayQueue && !d.ended {
		d.changed.Wait()
	}
	if d.ended {
		return false
	}
	d.queue = append(d.queue, c)
	d.bytes += len(c.data)
	d.changed.Broadcast()
	return true
}

func (d *delayLine) take() (chunk, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(d.queue) == 0 && !d.ended {
		d.changed.Wait()
	}
	if d.ended {
		return chunk{}, false
	}
	c := d.queue[0]
	d.queue = d.queue[1:]
	d.bytes -= len(c.data)
	d.changed.Broadcast()
	return c, true
}

// write sends chunks when they are due, until the direction's end.
func (d *delayLine) write(ctx context.Context, to *net.TCPConn) error {
	for {
		c, ok := d.take()
		if !ok {
			return net.ErrClosed
		}
		if err := sleep(ctx, time.Until(c.due)); err != nil {
			return err
		}
		if c.data == nil {
			return nil
		}
		_, err := to.Write(c.data)
		if c.pooled != nil {
			d.buffers.Put(c.pooled)
		}
		if err != nil {
			return err
		}
	}
}
