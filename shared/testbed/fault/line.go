package fault

import (
	"context"
	"sync"
	"time"
)

// parcel is a run of bytes under way, or the end of a direction.
type parcel struct {
	due    time.Time
	data   []byte
	weight int64 // bytes of memory that it holds
	buffer *[]byte
	fin    bool
}

// line is a delay line: what is put in comes out in order, each when it is due. One goroutine puts, one takes.
type line struct {
	mu      sync.Mutex
	parcels []parcel
	busy    bool          // a parcel has been taken and not been handed on yet
	filled  chan struct{} // holds a token when there may be something to take
}

func newLine() *line { return &line{filled: make(chan struct{}, 1)} }

// idle reports whether nothing is under way, so that the putter may hand on by itself.
func (l *line) idle() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.parcels) == 0 && !l.busy
}

func (l *line) put(p parcel) {
	l.mu.Lock()
	l.parcels = append(l.parcels, p)
	l.mu.Unlock()
	select {
	case l.filled <- struct{}{}:
	default:
	}
}

// take returns the next parcel when it is due; false when ctx ended first, and then the parcel is still in the line.
func (l *line) take(ctx context.Context) (parcel, bool) {
	for {
		l.mu.Lock()
		if len(l.parcels) > 0 {
			break
		}
		l.mu.Unlock()
		select {
		case <-l.filled:
		case <-ctx.Done():
			return parcel{}, false
		}
	}
	first := l.parcels[0]
	l.mu.Unlock()
	if !sleepUntil(ctx, first.due) {
		return parcel{}, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.parcels[0] = parcel{} // its bytes are not this line's any more
	l.parcels = l.parcels[1:]
	l.busy = true
	return first, true
}

// handedOn ends what take began.
func (l *line) handedOn() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.busy = false
}

// drain empties the line.
func (l *line) drain() []parcel {
	l.mu.Lock()
	defer l.mu.Unlock()
	rest := l.parcels
	l.parcels = nil
	return rest
}

// sleepUntil returns false when ctx ends first. A time in the past is no sleep.
func sleepUntil(ctx context.Context, t time.Time) bool {
	d := time.Until(t)
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
