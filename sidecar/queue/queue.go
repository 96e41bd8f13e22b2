// Package queue lets connections wait for a tunnel: a bounded number, for a bounded time, released in order of priority and
// at a pace that a gateway stands which has just come back.
//
// Whoever waits does so in a Ticket. One goroutine, which runs only while there is a tunnel and somebody waits, opens one
// after the other. Everything else happens in the callers.
package queue

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"fairlead/shared/errs"
	"fairlead/shared/link"
)

// Config is what a Queue needs.
type Config struct {
	Size     int           // connections that wait at most
	Wait     time.Duration // for how long at most; 0: not at all
	Pressure int           // percent of Size from which accepting is slowed; 0: never
	Rate     int           // connections released per second once a tunnel is up; 0: all at once
	Burst    int           // that are released at once before Rate counts; less than 1 is 1
	Logger   *slog.Logger  // default discards
	Metrics  *metrics.Set
}

// Queue holds connections while there is no tunnel.
type Queue struct {
	log    *slog.Logger
	count  counters
	length atomic.Int64  // of waiting; to be read without mu
	poke   chan struct{} // lets the releasing goroutine look again
	tasks  sync.WaitGroup

	// Everything below is guarded by mu. open functions are called with it held, so that a connection is either opened or
	// still waits, and so that no Release is lost between the attempt to open and the wait: hence they must not block.
	mu        sync.Mutex
	cfg       Config
	waiting   line
	pace      pacer
	pressure  pressure
	releasing bool // the releasing goroutine runs
	closed    bool
}

// New makes a Queue. Close stops it.
func New(cfg Config) *Queue {
	q := &Queue{log: cfg.Logger, poke: make(chan struct{}, 1)}
	if q.log == nil {
		q.log = slog.New(slog.DiscardHandler)
	}
	q.configure(cfg)
	q.count.register(cfg.Metrics, q)
	return q
}

// Configure takes other limits from now on. Who waits already keeps their place, even if there are fewer places now, and
// waits for as long as they were promised. Logger and Metrics stay.
func (q *Queue) Configure(cfg Config) {
	q.mu.Lock()
	q.configure(cfg)
	q.changed()
	q.mu.Unlock()
	q.say()
	q.nudge()
}

func (q *Queue) configure(cfg Config) {
	q.cfg = cfg
	q.pace.limit(cfg.Rate, cfg.Burst)
	q.pressure.limit(cfg.Size, cfg.Pressure)
}

// Ticket is a connection's place in the queue. Its holder calls Wait, once.
type Ticket struct {
	q     *Queue
	prio  link.Priority
	open  func() error
	since time.Time
	wait  time.Duration
	done  chan error
}

// Do is Enter and, if there is a ticket, Wait.
func (q *Queue) Do(ctx context.Context, prio link.Priority, open func() error) error {
	t, err := q.Enter(prio, open)
	if t == nil {
		return err
	}
	return t.Wait(ctx)
}

// Enter runs open, which must not block and which fails with NoTunnel while there is none, unless somebody waits who would
// be overtaken. When open has run with another result, that is returned and there is no ticket. Else the connection waits
// behind all of the same or a higher priority. When the queue is full, whoever has the lowest priority, and came last, is
// refused with QueueFull: the newcomer or somebody who waits.
func (q *Queue) Enter(prio link.Priority, open func() error) (*Ticket, error) {
	if q.length.Load() == 0 {
		if err := open(); !errors.Is(err, errs.NoTunnel) {
			return nil, err
		}
	}
	defer q.say()
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return nil, q.refuse(prio, Closing, errs.New(errs.ShuttingDown, "the sidecar is stopping"))
	}
	if len(q.waiting) == 0 { // once more: a tunnel that came up meanwhile will not be told of again
		if err := open(); !errors.Is(err, errs.NoTunnel) {
			return nil, err
		}
	}
	if err := q.makeRoom(prio); err != nil {
		return nil, err
	}
	t := &Ticket{q: q, prio: prio, open: open, since: time.Now(), wait: q.cfg.Wait, done: make(chan error, 1)}
	q.waiting.add(t)
	q.changed()
	return t, nil
}

// makeRoom refuses somebody when the queue is full: the error is the newcomer's. Called with mu held.
func (q *Queue) makeRoom(prio link.Priority) error {
	if len(q.waiting) < q.cfg.Size {
		return nil
	}
	victim := q.waiting.last()
	if victim == nil || victim.prio <= prio {
		return q.refuse(prio, Full, errs.New(errs.QueueFull, "%d connections wait for a tunnel, which is the limit", len(q.waiting)))
	}
	q.waiting.remove(victim)
	victim.done <- q.refuse(victim.prio, Displaced, errs.New(errs.QueueFull,
		"%d connections wait for a tunnel, which is the limit, and the place went to one of priority %v", q.cfg.Size, prio))
	return nil
}

// Wait returns when the connection was opened, with the result of that, or when the wait is over: because it took too long,
// ctx ended, or the queue refused it. The error says which.
func (t *Ticket) Wait(ctx context.Context) error {
	timer := time.NewTimer(t.wait - time.Since(t.since))
	defer timer.Stop()
	select {
	case err := <-t.done:
		return err
	case <-ctx.Done():
		return t.leave(func(*Queue) error {
			t.q.count.left[index(t.prio)].Inc()
			return errs.Wrap(errs.Canceled, context.Cause(ctx), "the connection waited for a tunnel")
		})
	case <-timer.C:
		return t.leave(func(q *Queue) error {
			t.q.count.expired[index(t.prio)].Inc()
			if q.releasing {
				return errs.New(errs.OpenTimeout, "the connection waited for its turn for %v, with %d before it", t.wait, q.waiting.before(t))
			}
			return errs.New(errs.NoTunnel, "no tunnel came up within %v", t.wait)
		})
	}
}

// leave gives the place up, and returns why. If the connection was opened or refused at the same moment, that counts. why
// is called with mu held, before the place is given up.
func (t *Ticket) leave(why func(*Queue) error) error {
	q := t.q
	defer q.say()
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.waiting.has(t) {
		return <-t.done
	}
	err := why(q)
	q.waiting.remove(t)
	q.changed()
	return err
}

// Fail ends the wait of everybody with err.
func (q *Queue) Fail(err error) {
	q.mu.Lock()
	q.fail(err)
	q.mu.Unlock()
	q.say()
}

// fail is Fail with mu held.
func (q *Queue) fail(err error) {
	all := q.waiting
	q.waiting = nil
	q.changed()
	for _, t := range all {
		t.done <- q.refuse(t.prio, reasonOf(err), err)
	}
}

// Close ends the wait of everybody, lets nobody wait from now on, and returns when nothing of the queue runs any more.
func (q *Queue) Close(context.Context) error {
	q.mu.Lock()
	q.closed = true
	q.fail(errs.New(errs.ShuttingDown, "the sidecar is stopping"))
	q.mu.Unlock()
	q.say()
	q.nudge()
	q.tasks.Wait()
	return nil
}

// changed takes note of another length. Called with mu held; say is to be called without.
func (q *Queue) changed() {
	n := len(q.waiting)
	q.length.Store(int64(n))
	if q.pressure.update(n, time.Now()) {
		q.count.pressures.Inc()
	}
	if n == 0 {
		q.nudge()
	}
}

func (q *Queue) nudge() {
	select {
	case q.poke <- struct{}{}:
	default:
	}
}

// Len is the number of connections that wait. It does not wait for a lock.
func (q *Queue) Len() int { return int(q.length.Load()) }

// Size is how many may wait.
func (q *Queue) Size() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.cfg.Size
}
