package session

import (
	"context"
	"math/rand/v2"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/link"
)

// Drain takes no new tunnels, tells the sidecars to move, and returns when no stream is left or ctx ends; then the tunnels
// are closed. What is left is ended with the code of a shutdown. Sidecars are told a delay at random within spread, so that
// they do not all move at once.
func (r *Registry) Drain(ctx context.Context, deadline, spread time.Duration) {
	reason := errs.New(errs.Draining, "the gateway is going away")
	r.mu.Lock()
	r.draining = &link.GoAway{Reason: reason, Deadline: deadline}
	r.mu.Unlock()
	all := r.snapshot()
	for _, s := range all {
		delay := time.Duration(0)
		if spread > 0 {
			delay = rand.N(spread)
		}
		s.tunnel.SendGoAway(link.GoAway{Reason: reason, Deadline: deadline, Delay: delay})
	}
	r.cfg.Logger.Info("draining", "tunnels", len(all), "streams", r.count().Streams, "deadline", deadline.String())
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for r.count().Streams > 0 {
		select {
		case <-ctx.Done():
			r.cfg.Logger.Warn("drain deadline passed", "streams", r.count().Streams)
			return
		case <-tick.C:
		}
	}
	r.cfg.Logger.Info("drained")
}

// Draining says whether Drain was called.
func (r *Registry) Draining() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.draining != nil
}

// Close ends all tunnels, tells their sidecars why, and waits for everything that runs, but no longer than ctx.
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
	}()
	defer r.cfg.Opener.log.Flush()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
