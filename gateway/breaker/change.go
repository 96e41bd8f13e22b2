package breaker

import (
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// Reason says why a circuit changed.
type Reason string

// The reasons for a change.
const (
	ReasonFailures       Reason = "failures"        // so many consecutive ones that it opened
	ReasonProbe          Reason = "probe"           // a call tries whether the backend is well again
	ReasonProbeSucceeded Reason = "probe_succeeded" // it closed
	ReasonProbeFailed    Reason = "probe_failed"    // it stays open
	ReasonOperator       Reason = "operator"        // somebody chose a mode
)

// Change is something that happened to a circuit.
type Change struct {
	Backend  string
	From, To State // equal when an operator's choice of a mode changes nothing for the next call
	Mode     Mode  // from now on
	Reason   Reason
	By       string // who chose the mode; "breaker" for what the circuit does by itself, "replica " and a name for what another replica's did
	At       time.Time
	Failure  Failure // the last one; zero: none so far
}

// Failure is one that counted against a backend.
type Failure struct {
	Code errs.Code
	Text string // at most 512 bytes
	At   time.Time
}

// Counts are what became of the calls to one backend.
type Counts struct {
	Succeeded uint64
	Failed    uint64 // for which the backend is to blame
	Neutral   uint64 // that failed for another reason
	Refused   uint64 // that the circuit refused
	Opened    uint64 // times that the circuit opened by itself; not those that another replica told of
}

// Info is all that is known about one circuit.
type Info struct {
	Backend     string
	State       State
	Mode        Mode
	Probing     bool      // a probe is under way
	Consecutive int       // failures in a row
	OpenedAt    time.Time // zero unless the circuit opened by itself and is not closed again
	OpenedBy    string    // with Config.Shared: the replica whose calls opened it, or failed at last; empty like OpenedAt
	RetryAt     time.Time // from when on a call may be the probe; zero like OpenedAt
	LastFailure Failure   // zero: none so far
	LastChange  Change    // zero: none so far
	Counts      Counts
}

// Info describes the backend's circuit; one without calls so far is closed.
func (b *Breaker) Info(backend string) Info {
	c := b.known(backend)
	if c == nil {
		return Info{Backend: backend, State: Closed, Mode: Auto}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	i := Info{Backend: backend, State: c.stateLocked(time.Now()), Mode: c.mode, Probing: c.probing, Consecutive: c.consecutive,
		LastFailure: c.lastFailure, LastChange: c.lastChange, Counts: c.counts}
	if c.open {
		i.OpenedAt, i.RetryAt = c.openedAt, c.since.Add(c.retryAfter)
		i.OpenedBy = c.common.by
	}
	return i
}

// Forget drops the circuit of a backend that is no longer configured, with its metrics. Calls that are still under way
// count for nothing. What hystrix keeps for it stays, and is used again when the backend comes back.
func (b *Breaker) Forget(backend string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.circuits[backend]
	if c == nil {
		return
	}
	delete(b.circuits, backend)
	for _, what := range []string{"opened_total", "refused_total", "open"} {
		b.metrics.UnregisterMetric(metricName(what, backend))
	}
	c.forget()
}

// Watch has fn called after each change of a circuit, on the goroutine whose call caused it and with no lock held: fn must
// be quick, and may call the Breaker. stop ends that.
func (b *Breaker) Watch(fn func(backend string)) (stop func()) { return b.watchers.Add(fn) }

// itself is who makes changes that no one has decided.
const itself = "breaker"

// changedLocked remembers and tells a change; it returns true.
func (c *circuit) changedLocked(from, to State, reason Reason, by string) bool {
	if by == "" {
		by = itself
	}
	c.lastChange = Change{Backend: c.backend, From: from, To: to, Mode: c.mode, Reason: reason, By: by, At: time.Now(), Failure: c.lastFailure}
	switch {
	case reason == ReasonOperator:
		c.log.Warn("an operator changed what the breaker does", logging.FieldState, string(to), "mode", string(c.mode), "by", by)
	case to == Closed:
		c.log.Info("the backend is used again", logging.FieldState, string(to), logging.FieldReason, string(reason), "by", by)
	case reason == ReasonProbeFailed:
		c.log.Warn("the backend is not well yet", logging.FieldState, string(to), logging.FieldCode, c.lastFailure.Code.String(), "by", by)
	case reason == ReasonFailures && by != itself:
		c.log.Warn("the backend is left alone: its circuit was opened by "+by, logging.FieldState, string(to), logging.FieldCode, c.lastFailure.Code.String(), "by", by)
	}
	c.breaker.events.add(c.lastChange)
	return true
}

// bounded cuts a text that a backend may have had a part in.
func bounded(s string) string {
	const most = 512
	if len(s) > most {
		s = s[:most-len("…")] + "…"
	}
	return strings.ToValidUTF8(s, "?")
}

// maxEvents bounds the changes that wait for OnChange.
const maxEvents = 1024

// events tells changes to OnChange, in their order and on a goroutine of its own that lives while there are any.
type events struct {
	tell func(Change) // nil: nobody listens
	log  *slog.Logger

	mu      sync.Mutex
	queue   []Change
	telling bool
	closed  bool
	work    sync.WaitGroup
}

func (e *events) add(change Change) {
	if e.tell == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return
	}
	if len(e.queue) == maxEvents {
		e.log.Error("a change of a circuit is not told: too many wait to be", logging.FieldComponent, "breaker", logging.FieldBackend, change.Backend)
		return
	}
	e.queue = append(e.queue, change)
	if !e.telling {
		e.telling = true
		e.work.Go(e.run)
	}
}

func (e *events) run() {
	for {
		e.mu.Lock()
		if len(e.queue) == 0 {
			e.telling = false
			e.queue = nil
			e.mu.Unlock()
			return
		}
		next := e.queue[0]
		e.queue = e.queue[1:]
		e.mu.Unlock()
		e.one(next)
	}
}

func (e *events) one(change Change) {
	defer func() {
		if r := recover(); r != nil {
			e.log.Error("telling a change of a circuit panicked", logging.FieldComponent, "breaker", logging.FieldBackend, change.Backend,
				logging.FieldError, fmt.Sprint(r), logging.FieldStack, string(debug.Stack()))
		}
	}()
	e.tell(change)
}

// close waits until all changes so far are told; later ones are not.
func (e *events) close() {
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	e.work.Wait()
}
