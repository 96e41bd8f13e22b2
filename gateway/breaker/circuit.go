package breaker

import (
	"context"
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
	breaker    *Breaker
	backend    string
	name       string // of the hystrix circuit
	failures   int
	retryAfter time.Duration
	log        *slog.Logger

	opened, refused *metrics.Counter

	mu          sync.Mutex
	mode        Mode
	open        bool
	consecutive int       // countable failures since the last success
	asking      bool      // a call asks hystrix whether it may be the probe
	probing     bool      // a probe is under way
	again       bool      // the last probe proved nothing (its caller left): the next call is a probe, without asking hystrix
	openedAt    time.Time // when it opened
	since       time.Time // when it opened, or when the last probe began
	epoch       int       // grows with each setMode, so that calls from before count no more
	forgotten   bool      // nothing that happens here matters any more
	counts      Counts
	lastFailure Failure
	lastChange  Change
	common      common // with other replicas
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
		breaker:    b,
		backend:    backend,
		name:       b.prefix + backend,
		failures:   b.failures,
		retryAfter: b.retryAfter,
		log:        b.log.With(logging.FieldComponent, "breaker", logging.FieldBackend, backend),
		mode:       Auto,
		opened:     b.metrics.GetOrCreateCounter(metricName("opened_total", backend)),
		refused:    b.metrics.GetOrCreateCounter(metricName("refused_total", backend)),
	}
	b.metrics.GetOrCreateGauge(metricName("open", backend), c.gauge)
	c.settings(false)
	return c
}

func metricName(what, backend string) string {
	return telemetry.Name("fairlead_gateway_breaker_"+what, "backend", backend)
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
	c.counts.Refused++
	if c.mode == ForceOpen {
		return errs.New(errs.CircuitOpen, "backend %q was switched off by an operator", c.backend)
	}
	wait := max(c.retryAfter-time.Since(c.since), min(time.Second, c.retryAfter))
	if c.common.by != "" && c.common.by != c.breaker.replica() {
		return errs.New(errs.CircuitOpen, "backend %q failed %d times in a row at replica %s, at last with %s, and is tried again in %s",
			c.backend, c.consecutive, c.common.by, c.lastFailure.Code, wait.Round(time.Millisecond)).After(wait)
	}
	return errs.New(errs.CircuitOpen, "backend %q failed %d times in a row, at last with %s, and is tried again in %s",
		c.backend, c.consecutive, c.lastFailure.Code, wait.Round(time.Millisecond)).After(wait)
}

// admission is how a call may proceed.
type admission struct {
	refusal error // not at all
	closed  bool  // like every other call
	ask     bool  // if the other replicas leave it to us, and hystrix makes it the probe
	again   bool  // with ask: without asking hystrix
	probe   bool  // it is the probe
	epoch   int
	version uint64 // common.version
}

// admit decides about a call, and asks hystrix only for one at a time, and only when it is time for a probe.
func (c *circuit) admit() admission {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := admission{epoch: c.epoch, version: c.common.version}
	switch {
	case c.mode == ForceOpen:
		a.refusal = c.refusalLocked()
	case c.mode == ForceClosed || !c.open:
		a.closed = true
	case c.probing || c.asking:
		a.refusal = c.refusalLocked()
	case c.again && c.breaker.share == nil:
		c.again = false
		c.beginProbeLocked()
		a.probe = true
	case !c.again && time.Since(c.since) < c.retryAfter || time.Now().Before(c.common.elsewhere):
		a.refusal = c.refusalLocked()
	default:
		c.asking = true
		a.ask, a.again = true, c.again
	}
	return a
}

func (c *circuit) beginProbeLocked() {
	c.probing = true
	c.since = time.Now()
	c.log.Info("trying whether the backend is well again", logging.FieldState, string(HalfOpen))
}

// do runs fn when the circuit lets it. With unlessClosed a closed circuit runs nothing and returns false.
//
// A closed circuit does without hystrix, which would let every call through but spend two goroutines on each: a seventh of
// what an open costs the gateway.
func (c *circuit) do(ctx context.Context, fn func(context.Context) error, unlessClosed bool) (bool, error) {
	a := c.admit()
	switch {
	case a.refusal != nil:
		return true, a.refusal
	case a.closed && unlessClosed:
		return false, nil
	case a.ask && c.breaker.share != nil:
		return c.elected(ctx, a, fn, unlessClosed)
	case a.ask:
		return true, c.throughHystrix(ctx, a, fn)
	}
	err := c.guard(ctx, fn)
	c.settle(err, a)
	return true, err
}

func (c *circuit) throughHystrix(ctx context.Context, a admission, fn func(context.Context) error) error {
	var result error
	ran := false
	// Without the caller's cancellation, so that hystrix answers only when fn has returned: no dial is left running.
	err := hystrix.DoC(context.WithoutCancel(ctx), c.name, func(context.Context) error {
		ran = true
		if result = c.start(&a); result == nil {
			result = c.guard(ctx, fn)
			c.settle(result, a)
		}
		return context.Canceled // ignored by hystrix; settle has told it
	}, nil)
	if ran {
		return result
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if a.epoch == c.epoch {
		c.asking = false
	}
	if err == hystrix.ErrCircuitOpen || err == hystrix.ErrMaxConcurrency {
		return c.refusalLocked()
	}
	return errs.Wrap(errs.Internal, err, "the breaker of backend %q failed", c.backend)
}

// start makes the call the probe that hystrix let through, unless an operator or another replica was faster.
func (c *circuit) start(a *admission) error {
	c.mu.Lock()
	if a.epoch != c.epoch {
		defer c.mu.Unlock()
		if c.mode == ForceOpen {
			return c.refusalLocked()
		}
		return nil // by the operator's word, or another replica's, the circuit is closed
	}
	c.asking = false
	if a.version != c.common.version { // another replica's probe has failed meanwhile
		defer c.mu.Unlock()
		return c.refusalLocked()
	}
	a.probe, c.again = true, false
	c.beginProbeLocked()
	c.changedLocked(Open, HalfOpen, ReasonProbe, "")
	c.mu.Unlock()
	c.breaker.watchers.Tell(c.backend)
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
func (c *circuit) settle(err error, a admission) {
	c.mu.Lock()
	changed := c.settleLocked(err, outcomeOf(err), a)
	c.mu.Unlock()
	if changed {
		c.breaker.watchers.Tell(c.backend)
	}
}

func (c *circuit) settleLocked(err error, o outcome, a admission) (changed bool) {
	c.noteLocked(err, o)
	if a.epoch != c.epoch || c.mode != Auto || c.forgotten {
		return false
	}
	if a.probe {
		c.probing = false
	}
	switch {
	case a.probe && o == neutral:
		c.again = true
	case a.probe && o == success:
		c.closeLocked()
		c.shareLocked("")
		return c.changedLocked(HalfOpen, Closed, ReasonProbeSucceeded, "")
	case a.probe:
		c.shareLocked("")
		return c.changedLocked(HalfOpen, Open, ReasonProbeFailed, "")
	case c.open:
		// A late outcome from before the opening: it stays open.
	case o == success:
		c.consecutive = 0
	case o == failure:
		if c.consecutive++; c.consecutive >= c.failures {
			c.tripLocked()
			c.shareLocked("")
			return c.changedLocked(Closed, Open, ReasonFailures, "")
		}
	}
	return false
}

// noteLocked counts a call for those who look on.
func (c *circuit) noteLocked(err error, o outcome) {
	switch o {
	case success:
		c.counts.Succeeded++
	case failure:
		c.counts.Failed++
		e := errs.From(err)
		c.lastFailure = Failure{Code: e.Code, Text: bounded(e.Text()), At: time.Now()}
	default:
		c.counts.Neutral++
	}
}
