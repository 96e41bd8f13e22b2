package session

import (
	"context"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/logging"
)

// drain is a drain and how far it has come.
type drain struct {
	since, deadline time.Time
	tunnels         int // there were when it began
	ended           atomic.Int64
}

// tellEvery is how often a drain says in the log how far it has come.
const tellEvery = 5 * time.Second

// moveTime is what a sidecar gets to move, once its delay is over.
const moveTime = 2 * time.Second

// Drain takes no new tunnels, tells the sidecars to move, and returns when all have, or could have and no stream is left, or when ctx
// ends; then the tunnels are closed. Until then tunnels work: they can be resumed, here and through other replicas, and open
// streams, which sidecars do until they have moved. What is left when ctx ends is ended with a code that says so. Sidecars are
// told a delay at random within spread, so that they do not all move at once.
func (r *Registry) Drain(ctx context.Context, deadline, spread time.Duration) {
	reason := errs.New(errs.Draining, "the gateway is going away")
	now := r.cfg.Now()
	r.mu.Lock()
	r.draining = &link.GoAway{Reason: reason, Deadline: deadline}
	r.drain = &drain{since: now, deadline: now.Add(deadline), tunnels: len(r.sessions)}
	r.mu.Unlock()
	all := r.snapshot()
	for _, s := range all {
		delay := time.Duration(0)
		if spread > 0 {
			delay = rand.N(spread)
		}
		s.moving.Store(true)
		s.tunnel.SendGoAway(link.GoAway{Reason: reason, Deadline: deadline, Delay: delay})
	}
	c := r.count()
	r.cfg.Logger.Info("draining", logging.FieldCode, errs.Draining.String(), "tunnels", len(all), "streams", c.Streams, "deadline", deadline.String())
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	told := time.Now()
	moving := now
	if spread > 0 {
		moving = now.Add(spread + min(spread, moveTime))
	}
	for c.Streams > 0 || c.Tunnels > 0 && r.cfg.Now().Before(moving) {
		select {
		case <-ctx.Done():
			r.cutStreams()
			return
		case <-tick.C:
		}
		if c = r.count(); time.Since(told) >= tellEvery {
			told = time.Now()
			r.cfg.Logger.Info("draining", logging.FieldCode, errs.Draining.String(), "tunnels", c.Tunnels, "streams", c.Streams, "deadline_in", max(r.drain.deadline.Sub(r.cfg.Now()), 0).String())
		}
	}
	r.cfg.Logger.Info("drained", "tunnels", c.Tunnels)
}

// cutStreams ends what remains at the deadline.
func (r *Registry) cutStreams() {
	c := r.count()
	r.drain.ended.Store(int64(c.Streams))
	r.cut.Add(c.Streams)
	r.cfg.Logger.Warn("drain deadline passed", logging.FieldCode, errs.DrainEnded.String(), "streams", c.Streams)
	for _, s := range r.snapshot() {
		if s.tunnel.Stats().Streams > 0 {
			s.tunnel.Close(errs.New(errs.DrainEnded, "the gateway was stopped, and its drain of %v is over", r.draining.Deadline))
		}
	}
}

// Draining says whether Drain was called.
func (r *Registry) Draining() bool { return !r.Progress().Since.IsZero() }

// Progress is how far a drain has come.
type Progress struct {
	Since, Deadline  time.Time // zero: there is none
	Before, Moved    int       // tunnels there were when it began, and that are gone since
	Tunnels, Streams int       // left
	Ended            int       // streams that were cut at the deadline
}

// Progress tells how far the drain has come.
func (r *Registry) Progress() Progress {
	r.mu.Lock()
	d := r.drain
	r.mu.Unlock()
	if d == nil {
		return Progress{}
	}
	c := r.count()
	return Progress{Since: d.since, Deadline: d.deadline, Before: d.tunnels, Moved: max(d.tunnels-c.Tunnels, 0), Tunnels: c.Tunnels, Streams: c.Streams, Ended: int(d.ended.Load())}
}

// Close ends all tunnels, tells their sidecars and the store why, and waits for everything that runs, but no longer than ctx.
func (r *Registry) Close(ctx context.Context) error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	for _, s := range r.snapshot() {
		s.tunnel.Close(errs.New(errs.ShuttingDown, "the gateway has shut down"))
	}
	r.end()
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.wg.Wait()
		if r.leases != nil {
			r.leases.tell(ctx)
		}
	}()
	defer r.cfg.Opener.log.Flush()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
