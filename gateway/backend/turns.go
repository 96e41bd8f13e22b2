package backend

import (
	"container/list"
	"context"
	"errors"
	"sync"
	"time"

	"fairlead/shared/errs"
)

// turns is the queue of those who want to dial one backend. Tenants are served round-robin, one dial a turn, so that a
// tenant that asks for thousands delays another by a dial or two. At most limit dials are under way, and they begin no
// faster than the pace. A few more may be under way for tenants that have none: so who comes beside a flood mostly does
// not wait at all.
//
// Who finds nobody waiting and a place free goes ahead without a goroutine, a channel or an allocation.
type turns struct {
	b       *Backend
	kind    turnKind
	limit   int // dials under way
	spare   int // and so many more, each for a tenant that has none under way
	most    int // who wait, of all tenants
	each    int // who wait, of one tenant
	pace    *pace
	base    context.Context   // of the Set
	spawn   func(func()) bool // the Set's; not to be called under mu
	circuit func() bool       // false: the backend's circuit is not closed, so waiting makes no sense. nil: no circuit
	counts  *turnCounts

	mu      sync.Mutex
	running int
	active  map[string]int // dials under way by tenant; none that has none
	waiting int
	lines   map[string]*line // of tenants that wait
	ring    list.List        // of *line, the next to be served first
	paid    bool             // the pace has allowed a dial that has not begun
	pacing  bool             // a goroutine waits for the pace
	took    time.Duration    // how long it waited the last time
}

// turnKind is what is being waited for.
type turnKind struct {
	name  string // as metrics say it
	limit string // the setting that bounds it, as the configuration names it
}

// line is who waits of one tenant.
type line struct {
	tenant string
	queue  list.List // of *turn
	place  *list.Element
}

// turn is somebody who waits.
type turn struct {
	ready chan bool // buffered; true: go ahead; false: look at the circuit again
	since time.Time
	line  *line
	place *list.Element
	paced time.Duration // of the wait, set before ready
	gone  bool          // taken out of the line; guarded by turns.mu
}

// enter waits for a turn, which leave gives back. false without an error: the circuit is not closed any more, and nothing
// is to be given back. Errors: DialQueueFull, OpenTimeout, Canceled, ShuttingDown.
func (q *turns) enter(ctx context.Context, tenant string) (bool, error) {
	q.mu.Lock()
	if q.waiting == 0 && q.roomLocked(tenant) && (q.pace == nil || q.paid) {
		q.beginLocked(tenant)
		q.mu.Unlock()
		return true, nil
	}
	t, err := q.joinLocked(tenant)
	hire := q.serveLocked()
	q.mu.Unlock()
	q.hire(hire)
	if err != nil {
		return false, err
	}
	ok, err := q.wait(ctx, t)
	waited := time.Since(t.since)
	q.counts.waited.Update(waited.Seconds())
	waitsOf(ctx).queued(waited, t.paced)
	return ok, err
}

func (q *turns) wait(ctx context.Context, t *turn) (bool, error) {
	if q.circuit != nil && !q.circuit() { // it opened after the caller looked, and before it joined
		q.quit(t)
		return false, nil
	}
	select {
	case ok := <-t.ready:
		return ok, nil
	case <-q.base.Done():
		q.quit(t)
		return false, errs.New(errs.ShuttingDown, "the gateway is shutting down")
	case <-ctx.Done():
		at := q.quit(t)
		if q.base.Err() != nil { // both at once
			return false, errs.New(errs.ShuttingDown, "the gateway is shutting down")
		}
		return false, q.tired(ctx, t, at)
	}
}

// leave gives the tenant's turn back.
func (q *turns) leave(tenant string) {
	q.mu.Lock()
	q.running--
	if q.active[tenant]--; q.active[tenant] == 0 {
		delete(q.active, tenant)
	}
	q.counts.running.Dec()
	hire := q.serveLocked()
	q.mu.Unlock()
	q.hire(hire)
}

// wake has all who wait look at the circuit.
func (q *turns) wake() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.waiting > 0 {
		q.popLocked(q.ring.Front().Value.(*line)).ready <- false
	}
}

// roomLocked reports whether a dial of the tenant may begin, as far as others under way are concerned.
func (q *turns) roomLocked(tenant string) bool {
	return q.running < q.limit || q.running < q.limit+q.spare && q.active[tenant] == 0
}

func (q *turns) beginLocked(tenant string) {
	q.paid = false
	q.running++
	q.active[tenant]++
	q.counts.running.Inc()
}

func (q *turns) joinLocked(tenant string) (*turn, error) {
	l := q.lines[tenant]
	if q.waiting >= q.most || (l != nil && l.queue.Len() >= q.each) {
		q.counts.refused.Inc()
		return nil, q.fullLocked(tenant, l)
	}
	if l == nil {
		l = &line{tenant: tenant}
		l.place = q.ring.PushBack(l)
		q.lines[tenant] = l
	}
	t := &turn{ready: make(chan bool, 1), since: time.Now(), line: l}
	t.place = l.queue.PushBack(t)
	q.waiting++
	q.counts.waiting.Inc()
	return t, nil
}

// removeLocked takes t out of its line, and the line out of the ring when nobody else is in it.
func (q *turns) removeLocked(t *turn) {
	t.gone = true
	t.line.queue.Remove(t.place)
	q.waiting--
	q.counts.waiting.Dec()
	if t.line.queue.Len() == 0 {
		q.ring.Remove(t.line.place)
		delete(q.lines, t.line.tenant)
	}
}

// popLocked takes the first of a line out; the tenant's next turn comes after everybody else's.
func (q *turns) popLocked(l *line) *turn {
	t := l.queue.Front().Value.(*turn)
	q.ring.MoveToBack(l.place)
	q.removeLocked(t)
	return t
}

// nextLocked is the line whose turn it is; nil when no tenant that waits may dial now. It looks at no more lines than
// dials are under way, and one.
func (q *turns) nextLocked() *line {
	for e := q.ring.Front(); e != nil; e = e.Next() {
		if l := e.Value.(*line); q.roomLocked(l.tenant) {
			return l
		}
		if q.running >= q.limit+q.spare {
			return nil
		}
	}
	return nil
}

// serveLocked lets go ahead whom limit and pace allow. true: the pace is to be asked, by hire.
func (q *turns) serveLocked() bool {
	for l := q.nextLocked(); l != nil; l = q.nextLocked() {
		if q.pace != nil && !q.paid {
			if q.pacing {
				return false
			}
			q.pacing = true
			return true
		}
		t := q.popLocked(l)
		t.paced = min(q.took, time.Since(t.since))
		q.beginLocked(l.tenant)
		t.ready <- true
	}
	return false
}

// hire starts the goroutine that waits for the pace, so that nobody who may leave has to. It ends when nobody waits.
func (q *turns) hire(needed bool) {
	if needed && !q.spawn(q.askPace) {
		q.mu.Lock()
		q.pacing = false // the Set is closed, which those who wait notice
		q.mu.Unlock()
	}
}

func (q *turns) askPace() {
	for again := true; again && q.base.Err() == nil; {
		took := q.pace.take()
		q.mu.Lock()
		q.paid, q.pacing, q.took = true, false, took
		again = q.serveLocked()
		q.mu.Unlock()
	}
}

// where somebody stood who left the queue.
type where struct{ place, line int }

// quit ends t's wait, and gives the turn back that came at the same moment.
func (q *turns) quit(t *turn) where {
	q.mu.Lock()
	if t.gone {
		q.mu.Unlock()
		if <-t.ready {
			q.leave(t.line.tenant)
		}
		return where{place: 1, line: 1}
	}
	at := where{place: 1, line: t.line.queue.Len()}
	for e := t.place.Prev(); e != nil; e = e.Prev() {
		at.place++
	}
	q.removeLocked(t)
	q.mu.Unlock()
	return at
}

// waitingOf tells how many of the tenant wait. How many others do is not the tenant's to know.
func (q *turns) waitingOf(tenant string) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	if l := q.lines[tenant]; l != nil {
		return l.queue.Len()
	}
	return 0
}

// tired says why somebody left the queue and where they stood in it.
func (q *turns) tired(ctx context.Context, t *turn, at where) error {
	code := errs.Canceled
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		code = errs.OpenTimeout
	}
	return errs.Wrap(code, ctx.Err(), "after %s in the queue for backend %q the open was at place %d of %d of its tenant (backends.%s.dialing.%s is %d)",
		time.Since(t.since).Round(time.Millisecond), q.b.Name, at.place, at.line, q.b.Name, q.kind.limit, q.limit)
}

// fullLocked refuses somebody. The tenant's oldest wait tells how long a place takes to become free.
func (q *turns) fullLocked(tenant string, l *line) error {
	after := time.Second
	if l != nil {
		after = min(max(after, time.Since(l.queue.Front().Value.(*turn).since)), 30*time.Second)
	}
	if l != nil && l.queue.Len() >= q.each {
		return errs.New(errs.DialQueueFull, "%d opens of tenant %q wait for backend %q already: backends.%s.dialing.queue_per_tenant is %d",
			l.queue.Len(), tenant, q.b.Name, q.b.Name, q.each).Within(q.each, 0, 0).After(after)
	}
	return errs.New(errs.DialQueueFull, "%d opens wait for backend %q already: backends.%s.dialing.queue is %d",
		q.waiting, q.b.Name, q.b.Name, q.most).Within(q.most, 0, 0).After(after)
}
