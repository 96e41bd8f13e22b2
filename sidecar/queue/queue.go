// Package queue lets connections wait for a tunnel: a bounded number, for a bounded time, released in order of priority.
package queue

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"fairlead/shared/errs"
	"fairlead/shared/link"
)

// Config is what a Queue needs.
type Config struct {
	Size    int           // connections that wait at most
	Wait    time.Duration // for how long at most
	Metrics *metrics.Set
}

// Queue holds connections while there is no tunnel.
type Queue struct {
	cfg     Config
	mu      sync.Mutex
	waiting []*waiter // by priority, then by arrival

	refused, expired *metrics.Counter
}

type waiter struct {
	prio link.Priority
	open func() error
	done chan error
}

// New makes a Queue.
func New(cfg Config) *Queue {
	q := &Queue{cfg: cfg,
		refused: cfg.Metrics.NewCounter("fairlead_sidecar_queue_refused_total"),
		expired: cfg.Metrics.NewCounter("fairlead_sidecar_queue_expired_total"),
	}
	cfg.Metrics.NewGauge("fairlead_sidecar_queue_length", func() float64 { return float64(q.Len()) })
	return q
}

// Do runs open, which must not block and which fails with NoTunnel while there is none. Then Do waits until Release runs
// it with success, the wait is over or ctx ends. The error says which.
func (q *Queue) Do(ctx context.Context, prio link.Priority, open func() error) error {
	w, err := q.enter(prio, open)
	if w == nil {
		return err
	}
	timer := time.NewTimer(q.cfg.Wait)
	defer timer.Stop()
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
		err = errs.Wrap(errs.Canceled, context.Cause(ctx), "the connection waited for a tunnel")
	case <-timer.C:
		q.expired.Inc()
		err = errs.New(errs.NoTunnel, "no tunnel came up within %v", q.cfg.Wait)
	}
	if q.leave(w) {
		return err
	}
	return <-w.done // it was released at the same moment
}

// enter opens at once when nobody waits and there is a tunnel; else it queues, if there is room.
func (q *Queue) enter(prio link.Priority, open func() error) (*waiter, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) == 0 {
		if err := open(); !errors.Is(err, errs.NoTunnel) {
			return nil, err
		}
	}
	if len(q.waiting) >= q.cfg.Size {
		q.refused.Inc()
		return nil, errs.New(errs.QueueFull, "%d connections wait for a tunnel, which is the limit", q.cfg.Size)
	}
	w := &waiter{prio: prio, open: open, done: make(chan error, 1)}
	at, _ := slices.BinarySearchFunc(q.waiting, prio, func(o *waiter, p link.Priority) int {
		if o.prio <= p { // behind its equals
			return -1
		}
		return 1
	})
	q.waiting = slices.Insert(q.waiting, at, w)
	return w, nil
}

// leave takes w out, and says whether it was still waiting.
func (q *Queue) leave(w *waiter) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	i := slices.Index(q.waiting, w)
	if i < 0 {
		return false
	}
	q.waiting = slices.Delete(q.waiting, i, i+1)
	return true
}

// Release opens what waits, in order, until there is no tunnel. It is to be called whenever a tunnel came up.
func (q *Queue) Release() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.waiting) > 0 {
		w := q.waiting[0]
		err := w.open()
		if errors.Is(err, errs.NoTunnel) {
			return
		}
		q.waiting = slices.Delete(q.waiting, 0, 1)
		w.done <- err
	}
}

// Fail ends the wait of everybody with err.
func (q *Queue) Fail(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, w := range q.waiting {
		w.done <- err
	}
	q.waiting = nil
}

// Len is the number of connections that wait.
func (q *Queue) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting)
}

// Size is how many may wait.
func (q *Queue) Size() int { return q.cfg.Size }
