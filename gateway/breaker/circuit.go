package breaker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/afex/hystrix-go/hystrix"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
	"fairlead/shared/telemetry"
)

// circuit is one backend's. hystrix decides who may call while it is open, and who is the probe; the fields say why and
// since when.
//
// Every call tells hystrix "canceled", which it ignores, and reports its true outcome here, under the lock and in the
// order of the outcomes. Left to itself hystrix reports after the caller has its answer, so that a probe's caller could
// still be refused, and a success from before the opening could close the circuit again.
type circuit struct {
	backend    string
	name       string // of the hystrix circuit
	failures   int
	retryAfter time.Duration
	log        *slog.Logger
	slots      chan struct{} // one for each call under way; hystrix would refuse where we rather wait

	opened, refused *metrics.Counter

	mu          sync.Mutex
	mode        Mode
	open        bool
	consecutive int       // countable failures since the last success
	probing     bool      // a probe is under way
	again       bool      // the last probe proved nothing (its caller left): the next call is a probe, without asking hystrix
	since       time.Time // when it opened, or when the last probe began
	epoch       int       // grows with each setMode, so that calls from before count no more
}

// outcome of a call, as far as a circuit cares.
type outcome int

const (
	neutral outcome = iota // says nothing about the backend
	success
	failure
)

func newCircuit(b *Breaker, backend string) *circuit {
	c := &circuit{
		backend:    backend,
		name:       b.prefix + backend,
		failures:   b.failures,
		retryAfter: b.retryAfter,
		log:        b.log.With(logging.FieldComponent, "breaker", logging.FieldBackend, backend),
		slots:      make(chan struct{}, b.concurrent),
		mode:       Auto,
		opened:     b.metrics.GetOrCreateCounter(telemetry.Name("fairlead_gateway_breaker_opened_total", "backend", backend)),
		refused:    b.metrics.GetOrCreateCounter(telemetry.Name("fairlead_gateway_breaker_refused_total", "backend", backend)),
	}
	b.metrics.GetOrCreateGauge(telemetry.Name("fairlead_gateway_breaker_open", "backend", backend), c.gauge)
	c.settings(false)
	return c
}

// gauge is 0 for closed, 1 for half-open and 2 for open.
func (c *circuit) gauge() float64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch c.stateLocked(time.Now()) {
	case Open:
		return 2
	case HalfOpen:
		return 1
	}
	return 0
}

// settings of the hystrix circuit: ones that never open it, or ones that open it as soon as hystrix looks. A rate of
// errors is never over 100 % and never under -1 %; a plain small percentage would not do, since it is measured over ten
// seconds that may hold thousands of successes.
func (c *circuit) settings(opening bool) {
	percent := 101
	if opening {
		percent = -1
	}
	hystrix.ConfigureCommand(c.name, hystrix.CommandConfig{
		Timeout:                int((24 * time.Hour).Milliseconds()), // fn bounds itself; hystrix would leave it running
		MaxConcurrentRequests:  2 * cap(c.slots),                     // a ticket comes back a moment after our slot
		RequestVolumeThreshold: 1,
		SleepWindow:            int(c.retryAfter.Milliseconds()),
		ErrorPercentThreshold:  percent,
	})
}

func (c *circuit) stateLocked(now time.Time) State {
	switch {
	case c.mode == ForceOpen:
		return Open
	case c.mode == ForceClosed || !c.open:
		return Closed
	case c.probing || c.again || now.Sub(c.since) >= c.retryAfter:
		return HalfOpen
	}
	return Open
}

// refusalLocked is the answer of an open circuit.
func (c *circuit) refusalLocked() error {
	c.refused.Inc()
	if c.mode == ForceOpen {
		return errs.New(errs.CircuitOpen, "backend %q was switched off by an operator", c.backend)
	}
	wait := max(c.retryAfter-time.Since(c.since), min(time.Second, c.retryAfter))
	return errs.New(errs.CircuitOpen, "backend %q failed %d times in a row and is tried again in %s", c.backend, c.consecutive, wait.Round(time.Millisecond)).After(wait)
}

// admission is how a call may proceed.
type admission struct {
	refusal error // not at all
	direct  bool  // without asking hystrix
	wasOpen bool  // the circuit was open when the call came
	probe   bool  // it is the probe (only with direct; else hystrix decides)
	epoch   int
}

// admit refuses at once what hystrix would refuse anyway, so that it need not wait for a slot.
func (c *circuit) admit() admission {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := admission{epoch: c.epoch, wasOpen: c.open}
	switch {
	case c.mode == ForceOpen:
		a.refusal = c.refusalLocked()
	case c.mode == ForceClosed:
		a.direct = true
	case c.open && c.probing:
		a.refusal = c.refusalLocked()
	case c.open && c.again:
		c.again = false
		c.beginProbeLocked()
		a.direct, a.probe = true, true
	case c.open && time.Since(c.since) < c.retryAfter:
		a.refusal = c.refusalLocked()
	}
	return a
}

func (c *circuit) beginProbeLocked() {
	c.probing = true
	c.since = time.Now()
	c.log.Info("trying whether the backend is well again", logging.FieldState, string(HalfOpen))
}

func (c *circuit) do(ctx context.Context, fn func(context.Context) error) error {
	a := c.admit()
	if a.refusal != nil {
		return a.refusal
	}
	if a.direct {
		err := c.guard(ctx, fn)
		c.settle(outcomeOf(err), a)
		return err
	}
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		code := errs.Canceled
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			code = errs.OpenTimeout
		}
		return errs.Wrap(code, ctx.Err(), "gave up waiting for a turn to dial backend %q", c.backend)
	}
	if !a.wasOpen {
		return c.whileClosed(ctx, a, fn)
	}
	return c.throughHystrix(ctx, a, fn)
}

// whileClosed runs fn without hystrix, which lets every call through a closed circuit but spends two goroutines on each:
// a seventh of what an open costs the gateway.
func (c *circuit) whileClosed(ctx context.Context, a admission, fn func(context.Context) error) error {
	if refusal := c.start(&a); refusal != nil {
		return refusal
	}
	err := c.guard(ctx, fn)
	c.settle(outcomeOf(err), a)
	return err
}

func (c *circuit) throughHystrix(ctx context.Context, a admission, fn func(context.Context) error) error {
	var result error
	ran := false
	// Without the caller's cancellation, so that hystrix answers only when fn has returned: no dial is left running.
	err := hystrix.DoC(context.WithoutCancel(ctx), c.name, func(context.Context) error {
		ran = true
		if result = c.start(&a); result == nil {
			result = c.guard(ctx, fn)
			c.settle(outcomeOf(result), a)
		}
		return context.Canceled // ignored by hystrix; settle has told it
	}, nil)
	if ran {
		return result
	}
	if err == hystrix.ErrCircuitOpen {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.refusalLocked()
	}
	return errs.Wrap(errs.Internal, err, "the breaker of backend %q failed", c.backend)
}

// start decides what a call is that hystrix let through. It refuses calls that came while the circuit was closed and
// begin now that it is open: they are not the probe.
func (c *circuit) start(a *admission) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !c.open || c.mode == ForceClosed:
		return nil
	case !a.wasOpen || c.probing:
		return c.refusalLocked()
	}
	a.probe = true
	c.beginProbeLocked()
	return nil
}

// guard runs fn and turns its panic into an error: it may run on a goroutine of hystrix, where a panic ends the process.
func (c *circuit) guard(ctx context.Context, fn func(context.Context) error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = errs.Wrap(errs.Panicked, fmt.Errorf("%v\n%s", r, debug.Stack()), "dialing backend %q panicked", c.backend)
		}
	}()
	return fn(ctx)
}

func outcomeOf(err error) outcome {
	switch {
	case err == nil:
		return success
	case Countable(err):
		return failure
	}
	return neutral
}

// settle takes a call's outcome into account.
func (c *circuit) settle(o outcome, a admission) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a.epoch != c.epoch || c.mode != Auto {
		return
	}
	if a.probe {
		c.probing = false
	}
	switch {
	case a.probe && o == neutral:
		c.again = true
	case a.probe && o == success:
		c.closeLocked("probe_succeeded")
	case c.open:
		// A failed probe, or a late outcome from before the opening: it stays open.
	case o == success:
		c.consecutive = 0
	case o == failure:
		if c.consecutive++; c.consecutive >= c.failures {
			c.tripLocked()
		}
	}
}
