package app

import (
	"context"
	"errors"
	"sync"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/lifecycle"
	"fairlead/shared/logging"
	"fairlead/sidecar/config"
	"fairlead/sidecar/listener"
	"fairlead/sidecar/status"
)

// Why the API asked to stop.
var (
	errDrain = errors.New("asked to drain") // once the application is gone
	errQuit  = errors.New("asked to quit")  // once its connections have ended; it makes no new ones
)

const (
	closeTime    = 5 * time.Second // for closing what has nothing to wait for any more
	progressTime = 5 * time.Second // between two lines in the log that say how far the stop is
)

// Phases of a stop.
const (
	serving    = "serving"    // connections are served, new ones too
	delivering = "delivering" // the listeners are closed, the spool is delivered
	closing    = "closing"    // tunnels and API end
)

// stopping is the progress of a stop, for people to see.
type stopping struct {
	mu            sync.Mutex
	phase, reason string
	deadline      time.Time
}

func (s *stopping) enter(phase, reason string, deadline time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.phase, s.reason, s.deadline = phase, reason, deadline.UTC()
}

func (s *stopping) begun() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.phase != ""
}

// until is when what the stop waits for now is waited for no longer.
func (s *stopping) until() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.deadline
}

// status is nil while nothing stops.
func (s *stopping) status() *status.Shutdown {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase == "" {
		return nil
	}
	return &status.Shutdown{Phase: s.phase, Reason: s.reason, Deadline: s.deadline}
}

// stop ends everything in order: the application's connections, the spool, the tunnels, the API.
func (a *App) stop(ctx context.Context, stopPool context.CancelFunc) {
	defer stopPool()
	why, cfg, patience := a.begin(ctx)
	a.stopServing(why, cfg.Shutdown.Quiet, patience)
	if a.spool != nil {
		a.deliver(why, cfg.Shutdown.Drain)
	}
	a.stopping.enter(closing, why, time.Now().Add(closeTime))
	closeCtx, cancel := context.WithTimeout(context.Background(), closeTime)
	defer cancel()
	if err := a.stack.Stop(closeCtx); err != nil {
		a.log.Warn("stopped with open ends", logging.FieldError, err.Error())
	}
}

// begin makes it known that the sidecar stops. A reload that is under way comes first, and the next one is refused: whatever
// listens from now on is known to those who end it.
func (a *App) begin(ctx context.Context) (why string, cfg config.Config, patience time.Duration) {
	a.reloading.Lock()
	defer a.reloading.Unlock()
	why, cfg, patience = a.reason(ctx), a.config(), a.serveTime()
	a.stopping.enter(serving, why, time.Now().Add(patience))
	return why, cfg, patience
}

// serveTime is how long connections are served after the wish to stop.
func (a *App) serveTime() time.Duration {
	s := a.config().Shutdown
	if a.opts.InPod && s.Drain > 0 && s.PodDrain > 0 && !errors.Is(context.Cause(a.asked), errQuit) {
		return s.PodDrain
	}
	return s.Drain
}

func (a *App) reason(ctx context.Context) string {
	sig, signaled := lifecycle.SignalOf(ctx)
	switch cause := context.Cause(a.asked); {
	case signaled:
		return sig.Reason()
	case ctx.Err() != nil:
		return "canceled"
	case errors.Is(cause, errDrain):
		return "api_drain"
	case errors.Is(cause, errQuit):
		return "api_quit"
	case errors.Is(cause, errs.GaveUp):
		return "gave_up"
	}
	return "failure"
}

// stopServing serves connections, also new ones, until there have been none for a while or time is up. An application that
// said that it is done gets no new ones.
func (a *App) stopServing(why string, quiet, patience time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	deadline, _ := ctx.Deadline()
	a.stopping.enter(serving, why, deadline)
	a.log.Info("stopping", logging.FieldReason, why, "phase", serving, "connections", a.connections(), "time", patience.String())
	done := make(chan error, 1)
	go func() { done <- a.endListeners(ctx, why, quiet) }()
	tick := time.NewTicker(progressTime)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			left := time.Until(a.stopping.until()).Round(time.Second)
			a.log.Info("waiting for the application's connections", logging.FieldReason, why, "connections", a.connections(), "left", left.String())
			continue
		case err := <-done:
			end := "quiet"
			if err != nil {
				end = "deadline"
				a.log.Warn("connections were cut, since time was up", logging.FieldReason, end, logging.FieldError, err.Error())
			}
			a.log.Info("listeners closed", logging.FieldReason, end)
			return
		}
	}
}

// endListeners ends as Drain of the listeners does. Whoever asks to quit meanwhile is done, and waited for no longer than if
// that had been the first wish.
func (a *App) endListeners(ctx context.Context, why string, quiet time.Duration) error {
	all := a.allListeners()
	if len(all) == 0 {
		return nil
	}
	if cause := context.Cause(a.asked); errors.Is(cause, errQuit) || errors.Is(cause, errs.GaveUp) {
		return endNow(ctx, all)
	}
	untilQuit, quit := context.WithCancel(ctx)
	defer quit()
	drained := make(chan error, 1)
	go func() { drained <- listener.Drain(untilQuit, quiet, all...) }()
	select {
	case err := <-drained:
		return err
	case <-a.quitting:
	}
	ctx, cancel := context.WithTimeout(ctx, a.config().Shutdown.Drain)
	defer cancel()
	deadline, _ := ctx.Deadline()
	a.stopping.enter(serving, why, deadline)
	a.log.Info("the application is done", logging.FieldReason, "api_quit", "connections", a.connections(), "time", time.Until(deadline).Round(time.Millisecond).String())
	err := endNow(ctx, all)
	quit() // nothing is left that it could cut
	return errors.Join(err, <-drained)
}

// endNow accepts no more, and waits for what is open until ctx ends.
func endNow(ctx context.Context, all []*listener.Listener) error {
	for _, l := range all {
		l.StopAccepting()
	}
	return listener.Drain(ctx, 0, all...)
}

// quit is the wish of an application that knows that it is done, also while the sidecar stops already.
func (a *App) quit() {
	a.ask(errQuit)
	a.quitOnce.Do(func() { close(a.quitting) })
}

// closeListeners closes what stopServing has left, which is nothing but after a construction that failed.
func (a *App) closeListeners(ctx context.Context) error {
	var failed []error
	for _, l := range a.allListeners() {
		failed = append(failed, l.Close(ctx))
	}
	return errors.Join(failed...)
}

// deliver gives the spool time to be emptied.
func (a *App) deliver(why string, patience time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	deadline, _ := ctx.Deadline()
	a.stopping.enter(delivering, why, deadline)
	left := a.spool.Drain(ctx, nil) // it logs its progress
	end := "delivered"
	if left.Connections > 0 {
		end = "kept"
	}
	a.log.Info("spool closed", logging.FieldReason, end, "connections", left.Connections, "bytes", left.Bytes)
}

// allListeners are those that accept and those that do no more.
func (a *App) allListeners() []*listener.Listener {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := append([]*listener.Listener{}, a.retired...)
	for _, l := range a.listeners {
		all = append(all, l.Listener)
	}
	return all
}

func (a *App) connections() (n int) {
	for _, l := range a.allListeners() {
		n += l.Active()
	}
	return n
}
