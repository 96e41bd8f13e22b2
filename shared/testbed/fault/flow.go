package fault

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// burst is how much unused bandwidth may be made up for: timers come late by about this much.
	burst = 5 * time.Millisecond
	// smallestChunk keeps a very narrow path from being cut into single bytes: about one packet.
	smallestChunk = 1460
	never         = -1
)

// flow is one direction of the proxy: its shape, shared by all connections, and its counters.
type flow struct {
	bytes atomic.Int64

	mu      sync.Mutex // guards what follows
	shape   Shape
	free    time.Time // when the path has sent all that it was given
	cutLeft int64     // bytes until the cut, or never
	cutDone chan struct{}
}

func newFlow(s Shape) *flow { return &flow{shape: s, cutLeft: never} }

func (f *flow) setShape(s Shape) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.shape = s
	f.free = time.Time{}
}

func (f *flow) narrow() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.shape.Bandwidth > 0
}

// chunk is how many bytes to take at once: on a narrow path what passes in 10 ms, so that connections take turns.
func (f *flow) chunk() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.shape.Bandwidth == 0 {
		return chunkSize
	}
	return int(min(max(f.shape.Bandwidth/100, smallestChunk), chunkSize))
}

// send gives n bytes to the path. It returns when the path has sent them, which is when it takes more, and when they
// arrive; both zero when nothing delays them.
func (f *flow) send(n int, now time.Time) (sent, arrive time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.shape == (Shape{}) {
		return time.Time{}, time.Time{}
	}
	sent = now
	if f.shape.Bandwidth > 0 {
		start := now.Add(-burst)
		if f.free.After(start) {
			start = f.free
		}
		f.free = start.Add(time.Duration(float64(n) / float64(f.shape.Bandwidth) * float64(time.Second)))
		sent = f.free
	}
	return sent, sent.Add(f.shape.Latency)
}

func (f *flow) cutAfter(n int64) <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cutLeft, f.cutDone = n, make(chan struct{})
	return f.cutDone
}

// allow says how many of n bytes to hand on. done is not nil when the connection has to be cut after them, and has to
// be closed then.
func (f *flow) allow(n int) (allowed int, done chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cutLeft == never {
		return n, nil
	}
	if int64(n) <= f.cutLeft {
		f.cutLeft -= int64(n)
		return n, nil
	}
	allowed, done = int(f.cutLeft), f.cutDone
	f.cutLeft = never
	return allowed, done
}
