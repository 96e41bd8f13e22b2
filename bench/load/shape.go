package load

import (
	"context"
	"net"
	"sync"
	"time"
)

const (
	shapeBuffer = 16 << 10 // bytes of each socket's buffers: the queue must build up in the peer, not here
	shapeChunk  = 4 << 10  // bytes that pass at once
	shapeBurst  = 10 * time.Millisecond
)

// NewShape is a proxy to target whose connections share, in each direction, a link of rate bytes a second.
func NewShape(target string, rate int64) (*Proxy, error) {
	// A link has two directions; which one a pipe belongs to shows in whom it writes to.
	up, down := newBucket(rate), newBucket(rate)
	return newProxy(target, shapeBuffer, func(ctx context.Context, to, from *net.TCPConn) error {
		b := down
		if to.RemoteAddr().String() == target {
			b = up
		}
		return shape(ctx, b, to, from)
	})
}

func shape(ctx context.Context, b *bucket, to, from *net.TCPConn) error {
	buf := make([]byte, shapeChunk)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if err := sleep(ctx, b.take(n, time.Now())); err != nil {
				return err
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return err
			}
		}
		if err != nil {
			return unlessEOF(err)
		}
	}
}

// bucket is a token bucket that hands out places in a queue: who asks first passes first.
type bucket struct {
	rate int64      // bytes a second
	mu   sync.Mutex // guards free
	free time.Time  // when the link is free again
}

func newBucket(rate int64) *bucket { return &bucket{rate: rate} }

// take reserves the link for n bytes and returns how long to wait until they have passed. A link that was idle has at
// most shapeBurst of time saved up.
func (b *bucket) take(n int, now time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if earliest := now.Add(-shapeBurst); b.free.Before(earliest) {
		b.free = earliest
	}
	b.free = b.free.Add(time.Duration(int64(n) * int64(time.Second) / b.rate))
	return b.free.Sub(now)
}
