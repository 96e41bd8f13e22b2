package queue

import (
	"errors"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/lifecycle"
)

// Release lets those who wait be opened, in order and at the configured pace, until there is no tunnel. It is to be called
// whenever a tunnel came up, and does not wait for anything.
func (q *Queue) Release() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.releasing || q.closed || len(q.waiting) == 0 {
		return
	}
	q.releasing = true
	q.tasks.Go(q.release)
}

// release opens one after the other. Between two it sleeps without mu, so that others come and go, and whoever is first then
// is next.
func (q *Queue) release() {
	for {
		pause, more := q.releaseOne()
		if !more {
			return
		}
		if pause > 0 {
			timer := time.NewTimer(pause)
			select {
			case <-timer.C:
			case <-q.poke:
			}
			timer.Stop()
		}
	}
}

// releaseOne opens the first one who waits, if it is time for that. Else it says in how long it will be.
func (q *Queue) releaseOne() (pause time.Duration, more bool) {
	defer q.say()
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	if len(q.waiting) == 0 || q.closed {
		q.releasing = false
		q.pace.forget(now)
		return 0, false
	}
	if pause = q.pace.delay(now); pause > 0 {
		return pause, true
	}
	first := q.waiting[0]
	err := lifecycle.Guard(q.log, "open", first.open)
	if errors.Is(err, errs.NoTunnel) { // Release is called again, and cannot have been since: it needs mu
		q.releasing = false
		return 0, false
	}
	if err == nil {
		q.pace.take(now)
		q.count.released[index(first.prio)].Inc()
		q.count.waited.Update(now.Sub(first.since).Seconds())
	}
	q.waiting.remove(first)
	q.changed()
	first.done <- err
	return 0, true
}

// Refused tells that a gateway refused a stream with err. If it was for a limit of opens, those who wait are released no
// faster than the gateway asks for.
func (q *Queue) Refused(err error) {
	e := errs.From(err)
	if e == nil || e.RetryAfter <= 0 || q.length.Load() == 0 {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	switch e.Code {
	case errs.OpenRate: // the time is until one more is allowed; the quota tells how often that is
		every := e.RetryAfter
		if e.Quota != nil && e.Quota.Limit > e.Quota.Remaining {
			every = time.Duration(e.Quota.ResetMS) * time.Millisecond / time.Duration(e.Quota.Limit-e.Quota.Remaining)
		}
		q.pace.slow(time.Now(), e.RetryAfter, every)
	case errs.Overloaded:
		q.pace.hold(time.Now(), e.RetryAfter)
	}
}
