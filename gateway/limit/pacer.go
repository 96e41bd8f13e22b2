package limit

import (
	"container/heap"
	"sync"
	"time"
)

// pacer lets bytes through at a rate, and shares it equally among those that want more: it serves whoever has had the
// fewest bytes so far (start-time fair queueing, Goyal, Vin and Cheng 1996). Turns alone would not do, since one stream's
// turn may be a keystroke and another's a full buffer. In any time d, at most burst + rate × d bytes pass.
//
// It has no goroutine; its timer runs while somebody waits. It goes by the process's clock.
type pacer struct {
	mu      sync.Mutex
	rate    float64 // bytes per second; 0: unlimited
	level   float64 // bytes that may pass at once
	at      time.Time
	queue   flows
	arrived uint64 // orders those with equal tags
	virtual int64  // start tag of what passed last
	timer   *time.Timer
	counts  *pacerCounts
}

const (
	burstTime  = 10      // a pacer's burst is what flows in this part of a second, so that late timers cost nothing
	leastBurst = 4 << 10 // bytes
	mostPiece  = 32 << 10
)

// newPacer makes a pacer that begins with nothing saved up, so that a new one is worth no more than an old one.
func newPacer(rate int, counts *pacerCounts) *pacer {
	return &pacer{rate: float64(rate), at: time.Now(), counts: counts}
}

func (p *pacer) burst() float64 { return max(p.rate/burstTime, leastBurst) }

// piece is how many bytes may pass together: few enough that everybody's turn comes often.
func (p *pacer) piece() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pieceLocked()
}

func (p *pacer) pieceLocked() int {
	if p.rate == 0 {
		return mostPiece
	}
	return int(min(p.burst()/8, mostPiece))
}

// flow is one direction of one connection at one pacer. It wants one piece at a time. Guarded by the pacer's lock.
type flow struct {
	n       int
	start   int64 // bytes that the flow had when it came, or about what the others had
	finish  int64
	arrived uint64
	index   int // in the queue
	passed  bool
	ready   chan struct{} // of one; gets a value when the piece passed
}

func newFlow() *flow { return &flow{ready: make(chan struct{}, 1)} }

// take waits until n bytes of f may pass; false: gone was closed before, and nothing passed.
func (p *pacer) take(f *flow, n int, gone <-chan struct{}) bool {
	if p.enter(f, n) {
		return true
	}
	p.counts.waiting.Add(1)
	defer p.counts.waiting.Add(-1)
	select {
	case <-f.ready:
		return true
	case <-gone:
		return p.leave(f)
	}
}

// enter lets n bytes pass at once if nobody waits, else makes f wait.
func (p *pacer) enter(f *flow, n int) (passed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refill()
	// A flow that was away for less than a piece keeps its place; who was away for longer starts level with the others.
	f.n, f.start, f.passed = n, max(f.finish, p.virtual-int64(p.pieceLocked())), false
	if len(p.queue) == 0 && p.affords(f) {
		p.pass(f)
		return true
	}
	p.arrived++
	f.arrived = p.arrived
	heap.Push(&p.queue, f)
	p.counts.waits.Inc()
	p.arm()
	return false
}

// leave takes f out. What has passed meanwhile is given to others.
func (p *pacer) leave(f *flow) (passed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f.passed {
		<-f.ready
		f.finish = f.start
		p.level += float64(f.n)
	} else {
		heap.Remove(&p.queue, f.index)
	}
	p.serve()
	return false
}

// setRate changes the rate for everybody, those who wait included.
func (p *pacer) setRate(rate int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if float64(rate) != p.rate {
		p.refill()
		p.rate = float64(rate)
		p.serve()
	}
}

func (p *pacer) refill() {
	now := time.Now()
	if d := now.Sub(p.at).Seconds(); d > 0 {
		p.level += p.rate * d
	}
	p.level = min(p.level, p.burst())
	p.at = now
}

// affords says whether f's piece may pass now. A piece that was wanted when the rate was higher may be larger than the
// burst is now: then it passes with a full burst, and the others wait for it longer.
func (p *pacer) affords(f *flow) bool {
	return p.rate == 0 || p.level >= min(float64(f.n), p.burst())
}

func (p *pacer) pass(f *flow) {
	f.passed, f.finish = true, f.start+int64(f.n)
	p.virtual = max(p.virtual, f.start)
	if p.rate > 0 {
		p.level -= float64(f.n)
	}
}

// serve lets pass what may, in order, and sees to the next time. Called with the lock held.
func (p *pacer) serve() {
	p.refill()
	for len(p.queue) > 0 && p.affords(p.queue[0]) {
		f := heap.Pop(&p.queue).(*flow)
		p.pass(f)
		f.ready <- struct{}{}
	}
	p.arm()
}

// arm sets the timer for when the first in the queue may pass. Called with the lock held.
func (p *pacer) arm() {
	if len(p.queue) == 0 {
		if p.timer != nil {
			p.timer.Stop()
		}
		return
	}
	missing := min(float64(p.queue[0].n), p.burst()) - p.level
	wait := seconds(missing/p.rate) + time.Nanosecond // rounded up, or it would come just too early
	if p.timer == nil {
		p.timer = time.AfterFunc(wait, p.tick)
		return
	}
	p.timer.Reset(wait)
}

func (p *pacer) tick() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.serve()
}

// flows is a heap: first is who has had the fewest bytes, and of equals who came first.
type flows []*flow

func (q flows) Len() int { return len(q) }

func (q flows) Less(i, j int) bool {
	if q[i].start != q[j].start {
		return q[i].start < q[j].start
	}
	return q[i].arrived < q[j].arrived
}

func (q flows) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

func (q *flows) Push(x any) {
	f := x.(*flow)
	f.index = len(*q)
	*q = append(*q, f)
}

func (q *flows) Pop() any {
	old := *q
	f := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	return f
}
