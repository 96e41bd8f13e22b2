// Package breaker keeps one circuit per backend: after so many consecutive failures the backend is left alone, and after
// a while a single call may try whether it is well again.
//
// It stands on hystrix-go, which knows circuits, half-open and the single probe, but not "consecutive": it opens on a
// percentage of a rolling window, so that one success among many failures keeps a circuit closed. Circuits therefore run
// with settings under which they never open by themselves; this package counts consecutive failures and, on the last
// one, changes the settings for the moment in which hystrix looks at them. Nothing else in fairlead imports hystrix.
package breaker

import (
	"context"
	"crypto/rand"
	"log/slog"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"fairlead/shared/errs"
	"fairlead/shared/notify"
)

// State is what a circuit does with calls.
type State string

// The states of a circuit.
const (
	Closed   State = "closed"    // calls go through
	Open     State = "open"      // calls are refused at once
	HalfOpen State = "half-open" // the next call is the probe, or the probe is under way
)

// Mode is what an operator decided about a circuit.
type Mode string

// The modes of a circuit.
const (
	Auto        Mode = "auto"   // failures and probes decide
	ForceOpen   Mode = "open"   // every call is refused
	ForceClosed Mode = "closed" // every call goes through, and none counts
)

// Config says how circuits behave.
type Config struct {
	Instance   string        // name of this gateway; only for telling circuits apart
	Failures   int           // consecutive failures that open a circuit; 0: 5
	RetryAfter time.Duration // how long an open circuit refuses before it probes; at least 1ms; 0: 60s
	OnChange   func(Change)  // told of each change, one after another, on a goroutine of its own: it may take its time. nil: nobody
	Logger     *slog.Logger  // changes of state; nil: silent
	Metrics    *metrics.Set  // nil: counted nowhere

	Shared   Shared        // what circuits of several replicas have in common, see there; nil: each is on its own
	Replica  string        // name of this replica, for the others; needed with Shared
	ProbeFor time.Duration // with Shared: longer than any probe takes; a probe is ended then. At least 1s; 0: 1m
}

// Breaker holds the circuits. It is safe for concurrent use. How many calls run at a time is not its business. hystrix
// keeps two goroutines and some 20 KB for each circuit until the process ends, so circuits are named by what is
// configured, never by what a request says. Close it when OnChange is set.
type Breaker struct {
	prefix     string
	failures   int
	retryAfter time.Duration
	log        *slog.Logger
	metrics    *metrics.Set
	events     *events

	watchers notify.List[string] // told the backend whose circuit has changed

	share *sharing // nil: nothing is shared

	mu       sync.Mutex
	circuits map[string]*circuit
	heard    map[string]heard // what the store had at the last Sync, for circuits that come into being
}

// New makes a Breaker without circuits; each comes into being with the first call to its backend. The error is
// errs.ConfigInvalid.
func New(cfg Config) (*Breaker, error) {
	if cfg.Failures < 0 {
		return nil, errs.New(errs.ConfigInvalid, "breaker.failures is %d: it may not be negative", cfg.Failures)
	}
	if cfg.RetryAfter < 0 || (cfg.RetryAfter > 0 && cfg.RetryAfter < time.Millisecond) {
		return nil, errs.New(errs.ConfigInvalid, "breaker.retry_after is %s: it must be at least 1ms", cfg.RetryAfter)
	}
	share, err := newSharing(cfg)
	if err != nil {
		return nil, err
	}
	b := &Breaker{
		// hystrix keeps circuits by name for the whole process: two gateways in one process must not meet there.
		prefix:     cfg.Instance + "/" + rand.Text() + "/",
		failures:   orDefault(cfg.Failures, 5),
		retryAfter: orDefault(cfg.RetryAfter, time.Minute),
		log:        cfg.Logger,
		metrics:    cfg.Metrics,
		share:      share,
		circuits:   make(map[string]*circuit),
	}
	if b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	if b.metrics == nil {
		b.metrics = metrics.NewSet()
	}
	b.events = &events{tell: cfg.OnChange, log: b.log}
	return b, nil
}

func orDefault[T int | time.Duration](value, otherwise T) T {
	if value == 0 {
		return otherwise
	}
	return value
}

// Do runs fn, unless the backend's circuit is open: then it returns errs.CircuitOpen at once, with RetryAfter. fn should
// be a dial with its handshake and never a whole stream, must respect its context, and may run on another goroutine; Do
// returns after it has. What fn returns is returned as it is; whether it counts is decided by Countable. A panic in fn
// becomes errs.Panicked.
func (b *Breaker) Do(ctx context.Context, backend string, fn func(context.Context) error) error {
	_, err := b.circuit(backend).do(ctx, fn, false)
	return err
}

// Try is Do for a call that would have to wait for its turn, unless the circuit is closed: then it does nothing and
// returns false. Otherwise there is nothing to wait for: fn is refused at once, or is the probe.
func (b *Breaker) Try(ctx context.Context, backend string, fn func(context.Context) error) (bool, error) {
	return b.circuit(backend).do(ctx, fn, true)
}

// Closed reports whether calls go through.
func (b *Breaker) Closed(backend string) bool { return b.State(backend) == Closed }

// Close waits until OnChange was told of all changes; later ones it is not told of. Circuits work on.
func (b *Breaker) Close() { b.events.close() }

// State tells what the backend's circuit does with the next call; Closed for a backend without calls so far.
func (b *Breaker) State(backend string) State {
	c := b.known(backend)
	if c == nil {
		return Closed
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stateLocked(time.Now())
}

// SetMode overrules the backend's circuit, or gives it back to itself with Auto, which begins with a closed circuit and
// no failures. by is who decided so. The error is errs.BadRequest, for a mode that does not exist.
func (b *Breaker) SetMode(backend string, mode Mode, by string) error {
	switch mode {
	case Auto, ForceOpen, ForceClosed:
	default:
		return errs.New(errs.BadRequest, "the breaker of backend %q cannot be %q: it can be open, closed or auto", backend, string(mode))
	}
	b.circuit(backend).setMode(mode, by)
	return nil
}

// Mode tells what was decided about the backend's circuit.
func (b *Breaker) Mode(backend string) Mode {
	c := b.known(backend)
	if c == nil {
		return Auto
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mode
}

// known returns the backend's circuit; nil for one without calls so far, unless another replica has told of it.
func (b *Breaker) known(backend string) *circuit {
	b.mu.Lock()
	c := b.circuits[backend]
	told, ok := b.heard[backend]
	b.mu.Unlock()
	if c == nil && ok && (told.Open || told.mode() != Auto) {
		return b.circuit(backend)
	}
	return c
}

func (b *Breaker) circuit(backend string) *circuit {
	b.mu.Lock()
	c := b.circuits[backend]
	if c != nil {
		b.mu.Unlock()
		return c
	}
	c = newCircuit(b, backend)
	b.circuits[backend] = c
	told, ok := b.heard[backend]
	changed := ok && c.adopt(told)
	b.mu.Unlock()
	if changed {
		b.watchers.Tell(backend)
	}
	return c
}

// Countable reports whether err speaks against the backend: it could not be reached, did not answer, or did not let the
// gateway in. What a caller did (canceled), what lies behind the backend (a refused target) and our own limits do not.
func Countable(err error) bool {
	switch errs.CodeOf(err) {
	case errs.BackendUnreachable, errs.BackendTimeout, errs.HostKeyRefused, errs.BackendAuth, errs.SSHHandshake:
		return true
	}
	return false
}
