package spool

import (
	"context"
	"errors"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// gate holds back what would fail, for the tunnel or for a route. After the delay a single attempt goes through; the others
// follow when it has passed.
type gate struct {
	failures int
	until    time.Time
	probe    *entry // the one attempt
	err      error
}

func (g *gate) passed() { *g = gate{} }

// probing says whether the one attempt is under way. Called with the Spool's mutex held.
func (g *gate) probing() bool {
	return g.probe != nil && g.probe.state != gone && g.probe.state != held && (g.probe.state == working || g.probe.stream != nil)
}

func (g *gate) open(now time.Time) bool {
	return g.failures == 0 || !g.probing() && !now.Before(g.until)
}

// fail closes the gate. Others may have noticed the same trouble a moment ago: that is one failure.
func (g *gate) fail(now time.Time, err error, wait func(failures int) time.Duration) time.Duration {
	if !g.until.After(now) {
		g.until = now.Add(wait(g.failures))
		g.failures++
	}
	g.probe, g.err = nil, err
	return g.until.Sub(now)
}

// mostTold bounds the delay that a gateway asks for.
const mostTold = 10 * time.Minute

// route is the gate of a route. Called with mu held.
func (s *Spool) route(name string) *gate {
	g := s.routes[name]
	if g == nil {
		g = &gate{}
		s.routes[name] = g // as many as the configuration has, and earlier ones that are still spooled
	}
	return g
}

// Run delivers until ctx ends; then it gives back what it was doing, and returns.
func (s *Spool) Run(ctx context.Context) error {
	s.running.Lock()
	defer s.running.Unlock()
	kept := make(chan struct{})
	go func() {
		defer close(kept)
		s.keep(ctx)
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		if wait := s.dispatch(ctx); wait > 0 {
			timer.Reset(wait)
		} else {
			timer.Stop()
		}
		select {
		case <-ctx.Done():
		case <-s.wake:
		case <-timer.C:
		}
	}
	<-kept
	return nil
}

// keep does what has to be done every now and then.
func (s *Spool) keep(ctx context.Context) {
	timer := time.NewTimer(s.cfg.Interval)
	defer timer.Stop()
	synced := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-timer.C:
			if s.cfg.Fsync == FsyncInterval && now.Sub(synced) >= s.cfg.Interval {
				s.syncPass()
				synced = now
			}
			s.look(now)
		}
		next := s.cfg.Interval
		if s.waiting.Load() > 0 {
			next = min(next, pressedEvery)
		}
		timer.Reset(next)
	}
}

// pressedEvery is how often progress is looked at while somebody waits for space.
const pressedEvery = 50 * time.Millisecond

// look goes over all streams: progress that is worth writing down, those that take bytes again, and those whose end is late.
func (s *Spool) look(now time.Time) {
	s.mu.Lock()
	var save []*entry
	for _, list := range s.order {
		for _, e := range list {
			if e.stream == nil {
				continue
			}
			before := e.acked
			s.advance(e, e.stream)
			if e.stream.OpenLatency() > 0 {
				s.route(e.from.Route).passed()
			}
			if e.acked > e.saved.acked {
				save = append(save, e)
			}
			s.judge(e, before, now)
		}
	}
	s.mu.Unlock()
	for _, e := range save {
		s.save(e)
	}
	s.wakeUp()
}

func (s *Spool) judge(e *entry, before uint64, now time.Time) {
	switch e.state {
	case stalled:
		if room, err := e.stream.Room(0); room > 0 || err != nil {
			e.state = ready
		}
	case finishing:
		if e.acked > before {
			e.deadline = now.Add(s.cfg.EndWait)
		} else if now.After(e.deadline) {
			e.stream.Reset(errs.New(errs.SpoolNoEnd, "the backend has not ended its side within %v", s.cfg.EndWait))
		}
	}
}

// dispatch gives turns as long as there are workers, and says after what time somebody may have one who has not now; 0: when
// something happens.
func (s *Spool) dispatch(ctx context.Context) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.workers < s.cfg.Concurrency && !s.closed {
		e, wait := s.pick(time.Now())
		if e == nil {
			return wait
		}
		e.state = working
		s.workers++
		s.wg.Add(1)
		go s.work(ctx, e)
	}
	return 0
}

// pick chooses who is next: the highest priority; of that, what has begun and can be finished; then who has waited longest.
// Called with mu held.
func (s *Spool) pick(now time.Time) (*entry, time.Duration) {
	var soonest time.Time
	later := func(t time.Time) {
		if soonest.IsZero() || t.Before(soonest) {
			soonest = t
		}
	}
	for _, list := range s.order {
		var first *entry
		begun := s.begun(list)
		for _, e := range list {
			if e.state != ready {
				continue
			}
			if e.stream == nil {
				if e.after.After(now) {
					later(e.after)
					continue
				}
				if first != nil || begun >= s.cfg.Concurrency*streamsPerWorker && !e.live || !s.mayOpen(e, now, later) {
					continue
				}
			} else if !e.live {
				return e, 0
			}
			if first == nil {
				first = e
			}
			if begun == 0 {
				break
			}
		}
		if first != nil {
			s.opening(first, now)
			return first, 0
		}
	}
	if soonest.IsZero() {
		return nil, 0
	}
	return nil, max(time.Until(soonest), time.Millisecond)
}

// streamsPerWorker bounds the streams of connections that are complete, of one priority: those that only wait for the backend's
// end need no worker.
const streamsPerWorker = 16

// begun is how many complete connections of a priority have a stream.
func (s *Spool) begun(list []*entry) (n int) {
	for _, e := range list {
		if e.stream != nil && !e.live {
			n++
		}
	}
	return n
}

// mayOpen says whether a stream may be begun for an entry now.
func (s *Spool) mayOpen(e *entry, now time.Time, later func(time.Time)) bool {
	for _, g := range []*gate{&s.tunnel, s.route(e.from.Route)} {
		if !g.open(now) {
			if !g.probing() {
				later(g.until)
			}
			return false
		}
	}
	if s.nextOpen.After(now) {
		later(s.nextOpen)
		return false
	}
	return true
}

// opening notes that a stream is about to be begun, if the entry has none.
func (s *Spool) opening(e *entry, now time.Time) {
	if e.stream != nil {
		return
	}
	s.tunnel.probe = e
	s.route(e.from.Route).probe = e
	if s.cfg.OpensPerMin > 0 {
		s.nextOpen = now.Add(time.Minute / time.Duration(s.cfg.OpensPerMin))
	}
}

// toTheBack lets others of the same priority have their turns first: an application that sends without end must not keep
// them from it. Called with mu held.
func (s *Spool) toTheBack(e *entry) {
	s.unlist(e)
	e.turn = time.Now()
	s.enlist(e)
}

// setback decides when a delivery that failed is tried again.
func (s *Spool) setback(e *entry, err error) {
	code := errs.CodeOf(err)
	if code == errs.SpoolCorrupt {
		s.setAside(e, err)
		return
	}
	s.mu.Lock()
	if e.state == gone || e.state == held {
		s.mu.Unlock()
		return
	}
	if e.stream != nil {
		s.advance(e, e.stream)
		e.stream.Reset(err)
		e.stream = nil
	}
	e.state, e.err = ready, err
	now := time.Now()
	wait := s.delay(e, err, now)
	if code == errs.SpoolKey {
		e.state = held
	}
	s.mu.Unlock()
	s.count.deliveryErrors.Inc()
	attrs := append(e.attrs(), logging.Error(err)...)
	attrs = append(attrs, logging.FieldDelayMS, wait.Milliseconds(), "delivered", e.acked)
	if code == errs.BackendBroken {
		attrs = append(attrs, logging.FieldReason, "backend_reset")
	}
	s.log.Warn("delivery failed, the connection is kept", attrs...)
	s.wakeUp()
}

// delay says who waits for how long: everybody when the tunnel is the trouble, the route's connections when they are refused,
// this one when it is itself. Called with mu held.
func (s *Spool) delay(e *entry, err error, now time.Time) time.Duration {
	var refused refusal
	code, told := errs.CodeOf(err), min(errs.From(err).RetryAfter, mostTold)
	switch {
	case ofTheTunnel(code):
		s.route(e.from.Route).probe = nil
		return s.tunnel.fail(now, err, func(n int) time.Duration { return max(s.backoff(n), told) })
	case errors.As(err, &refused):
		s.tunnel.passed() // it was there to refuse
		return s.route(e.from.Route).fail(now, err, func(n int) time.Duration {
			if denied(code) {
				return max(s.jitter(s.cfg.RetryDenied), told)
			}
			return max(s.backoff(n), told)
		})
	}
	wait := max(s.backoff(e.attempts), told)
	e.attempts++
	e.after = now.Add(wait)
	return wait
}

// ofTheTunnel says whether a failure is of the way to the gateway, and nobody's in particular.
func ofTheTunnel(code errs.Code) bool {
	switch code {
	case errs.Draining, errs.DrainEnded, errs.ShuttingDown, errs.TunnelUnknown, errs.OwnerGone, errs.OwnerUnreachable, errs.LeaseLost, errs.StreamsExhausted, errs.Displaced,
		errs.TunnelLimit, errs.Canceled:
		return true
	case errs.ConnectionBroken:
		return false
	}
	return code.Category() == errs.Network || code.Category() == errs.Protocol
}

// denied says whether a refusal will not pass by itself: somebody has to change something.
func denied(code errs.Code) bool {
	switch code {
	case errs.RouteUnknown, errs.HostKeyRefused, errs.BackendAuth:
		return true
	}
	return code.Category() == errs.Authentication
}

// backoff is the delay after so many failures before: growing, and different for each.
func (s *Spool) backoff(failures int) time.Duration {
	d := s.cfg.RetryBase
	for i := 0; i < failures && d < s.cfg.RetryCap; i++ {
		d *= 2
	}
	return s.jitter(min(d, s.cfg.RetryCap))
}

// jitter is somewhere between half of d and d.
func (s *Spool) jitter(d time.Duration) time.Duration {
	return d/2 + time.Duration(s.rand()*float64(d/2))
}

// Kick says that there is a tunnel: what waits for one is tried now.
func (s *Spool) Kick() {
	s.mu.Lock()
	s.tunnel = gate{}
	s.mu.Unlock()
	s.wakeUp()
}
