package store

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

const (
	firstPause = 250 * time.Millisecond // between two probes, about; it doubles
	lastPause  = 5 * time.Second
	steady     = 30 * time.Second // how long Redis must have been up for the pauses to begin anew
	reviewed   = 5 * time.Second  // how often Sentinels are asked whether the master is still the master
	proofTTL   = time.Minute
)

// health is what is known of Redis. Calls say that it is down; watchHealth alone says that it is up.
type health struct {
	wake    chan struct{} // tells watchHealth that it went down
	mu      sync.RWMutex
	state   Health
	doubted time.Time // when a call failed that alone says nothing, with none answered since; zero: none
}

func (h *health) now() Health {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.state
}

// answered takes back a doubt.
func (h *health) answered() {
	h.mu.RLock()
	doubted := !h.doubted.IsZero()
	h.mu.RUnlock()
	if doubted {
		h.mu.Lock()
		h.doubted = time.Time{}
		h.mu.Unlock()
	}
}

// failed takes note of a failure of a call that began then. Calls that fail together are one doubt.
func (h *health) failed(f failure, began time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.state.Up || f.weight == nothing {
		return
	}
	if f.weight == doubt && (h.doubted.IsZero() || began.Before(h.doubted)) {
		if h.doubted.IsZero() {
			h.doubted = time.Now()
		}
		return
	}
	h.state = Health{Since: time.Now(), Error: f.text}
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// still notes why it is still down.
func (h *health) still(why string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state.Error = why
}

func (h *health) up() Health {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state, h.doubted = Health{Up: true, Since: time.Now()}, time.Time{}
	return h.state
}

// begin finds out how it is at first.
func (r *Redis) begin() {
	l := r.newLink()
	r.link.Store(l)
	if f := r.prove(l); f != nil {
		r.health.state = Health{Since: time.Now(), Error: f.text}
		r.health.wake <- struct{}{}
		return
	}
	r.tell(r.health.up())
}

// watchHealth tells of changes, and tries whether Redis can be used again, until the store is closed.
func (r *Redis) watchHealth() {
	var came time.Time // when it was up last
	pause := firstPause
	review := time.NewTicker(jittered(reviewed))
	defer review.Stop()
	for {
		select {
		case <-r.stop.Done():
			return
		case <-review.C:
			r.reviewMaster()
			continue
		case <-r.health.wake:
		}
		h := r.health.now()
		r.tell(h)
		if h.Since.Sub(came) > steady {
			pause = firstPause
		}
		if !r.recover(&pause) {
			return
		}
		came = time.Now()
	}
}

// jittered is d, or up to a half less or more, so that replicas do not come at once.
func jittered(d time.Duration) time.Duration { return d/2 + rand.N(d) }

// recover returns when Redis can be used again, or with false when the store is closed. pause grows with each probe.
func (r *Redis) recover(pause *time.Duration) bool {
	timer := time.NewTimer(jittered(*pause))
	defer timer.Stop()
	for {
		select {
		case <-r.stop.Done():
			return false
		case <-timer.C:
		}
		*pause = min(2**pause, lastPause)
		l := r.newLink()
		f := r.prove(l)
		if f == nil {
			former := r.link.Swap(l)
			r.tell(r.health.up())
			former.close()
			return true
		}
		l.close()
		r.health.still(f.text)
		timer.Reset(jittered(*pause))
	}
}

// prove writes, twice: the second time, when there is a connection, it must not take longer than Take may.
func (r *Redis) prove(l *link) *failure {
	for _, within := range []time.Duration{r.cfg.CallTimeout, r.cfg.Timeout} {
		ctx, cancel := context.WithTimeout(r.stop, within)
		var all []invocation
		for _, tag := range r.tags() {
			all = append(all, invocation{keys: []string{r.keys.in(tag, ":w")}, args: []any{random(), proofTTL.Milliseconds()}})
		}
		began := time.Now()
		_, err := pipeline(ctx, l.client, r.scripts["prove"], all)
		cancel()
		r.meter.took("probe", time.Since(began))
		if err != nil {
			f := classify(err)
			r.meter.failed("probe", f.kind)
			return &f
		}
	}
	return nil
}

// reviewMaster gives up a master that the Sentinels have replaced: it may still answer, but to a part of the replicas only.
func (r *Redis) reviewMaster() {
	if r.cfg.Mode != Sentinel || !r.Health().Up {
		return
	}
	ctx, cancel := context.WithTimeout(r.stop, r.cfg.CallTimeout)
	defer cancel()
	has := r.link.Load().master.Load()
	is, err := r.master(ctx)
	if err == nil && has != nil && *has != is {
		r.health.failed(failure{kindUnreachable, "the Sentinels have made another one the master", down}, time.Now())
	}
}

// tell logs a change, and hands it on. Changes are told one after the other.
func (r *Redis) tell(h Health) {
	log := r.cfg.Logger.With(logging.FieldComponent, "store")
	if h.Up {
		log.Info("the store can be used")
	} else {
		log.Warn("the store cannot be used: each replica goes by what it knows itself", logging.FieldCode, errs.StoreUnavailable.String(),
			logging.FieldError, h.Error, logging.FieldAdvice, errs.StoreUnavailable.Info().Advice)
	}
	r.cfg.OnHealth(h)
}
