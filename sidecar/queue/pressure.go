package queue

import (
	"sync"
	"sync/atomic"
	"time"

	"fairlead/shared/link"
)

// pressure says whether the queue fills up. It begins at a length and ends at three quarters of it, so that it does not come
// and go with each connection. All but on and saying is guarded by the queue's mu.
type pressure struct {
	size, begin, end int
	over             chan struct{} // closed when the pressure ends; nil while there is none
	since            time.Time
	on               atomic.Bool // over != nil, to be read without mu
	unsaid           []turn      // to be logged, without mu

	saying sync.Mutex // orders what is logged
}

// turn is a begin or an end of pressure.
type turn struct {
	begin  bool
	length int
	lasted time.Duration
}

// Pauses between two accepts under pressure: from least to most while the queue fills up.
const (
	leastPause      = 50 * time.Millisecond
	mostPauseLow    = time.Second
	mostPauseNormal = 250 * time.Millisecond

	normalFrom = 0.9 // of the queue's size, from where normal priority is slowed too
)

func (p *pressure) limit(size, percent int) {
	p.size = size
	p.begin = max((size*percent+99)/100, 1)
	if percent <= 0 {
		p.begin = size + 1 // never
	}
	p.end = p.begin * 3 / 4
}

// update takes note of another length, and says whether pressure begins with it.
func (p *pressure) update(n int, now time.Time) bool {
	switch {
	case p.over == nil && n >= p.begin:
		p.over, p.since = make(chan struct{}), now
		p.on.Store(true)
		p.unsaid = append(p.unsaid, turn{begin: true, length: n})
		return true
	case p.over != nil && n <= p.end:
		close(p.over)
		p.over = nil
		p.on.Store(false)
		p.unsaid = append(p.unsaid, turn{length: n, lasted: now.Sub(p.since)})
	}
	return false
}

// pause is how long accepting rests at a length.
func (p *pressure) pause(prio link.Priority, n int) time.Duration {
	fill, from, most := float64(n)/float64(max(p.size, 1)), float64(p.begin)/float64(max(p.size, 1)), mostPauseLow
	switch prio {
	case link.High:
		return 0
	case link.Normal:
		if from, most = max(from, normalFrom), mostPauseNormal; fill < from {
			return 0
		}
	}
	if fill >= 1 {
		return most
	}
	return leastPause + time.Duration(float64(most-leastPause)*max(fill-from, 0)/(1-from))
}

// Pressure says whether the queue is so full that accepting is slowed. It does not wait for a lock.
func (q *Queue) Pressure() bool { return q.pressure.on.Load() }

// Pause is how long a listener of this priority is to rest before it accepts the next connection; 0: not at all. over is
// closed when the pressure ends, and the rest with it.
func (q *Queue) Pause(prio link.Priority) (pause time.Duration, over <-chan struct{}) {
	if !q.Pressure() {
		return 0, nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.pressure.over == nil {
		return 0, nil
	}
	return q.pressure.pause(prio, len(q.waiting)), q.pressure.over
}

// say logs begins and ends of pressure, once each and in order. Called without mu: logging may block.
func (q *Queue) say() {
	q.mu.Lock()
	silent := len(q.pressure.unsaid) == 0
	q.mu.Unlock()
	if silent {
		return
	}
	q.pressure.saying.Lock()
	defer q.pressure.saying.Unlock()
	q.mu.Lock()
	turns, size := q.pressure.unsaid, q.cfg.Size
	q.pressure.unsaid = nil
	q.mu.Unlock()
	for _, t := range turns {
		if t.begin {
			q.log.Warn("the queue fills up: accepting is slowed, low priority first", "length", t.length, "size", size)
		} else {
			q.log.Info("the queue has room again: accepting goes on at full speed", "length", t.length, "size", size, "duration_ms", t.lasted.Milliseconds())
		}
	}
}
