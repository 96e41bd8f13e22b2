package breaker

import (
	"cmp"
	"context"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// Circuit is what replicas tell each other about a backend's circuit.
type Circuit struct {
	Backend  string
	Open     bool
	Mode     string    // what an operator decided; empty: nothing
	By       string    // the replica where it changed, or the operator
	Since    time.Time // when it changed, by the clock of where it did
	Retry    time.Time // when a probe may be made; only its distance from Changed is relied on
	Failures int
	Code     errs.Code // of the last failure
	Changed  time.Time // when this was put, by the clock of who put it

	// Version orders changes without clocks: each is made from the last one that its replica knew of, and one higher; what an
	// operator decides is higher than all that failures and probes have changed before. Only changes that were made without
	// knowing of each other can have the same: then the later Since counts.
	Version uint64
}

// Shared is where replicas tell each other. Errors mean that it cannot be asked now.
//
// What is told are changes, of which each replica takes over those that are newer than its own: a circuit that opened or
// closed, and what an operator chose. Failures are counted by each replica by itself, so that a circuit opens everywhere when
// it would at one of them. A store that forgets, or was overwritten with something older, is told again by whoever knows better.
type Shared interface {
	// PutCircuit replaces what is known of a backend's, for as long as ttl.
	PutCircuit(ctx context.Context, c Circuit, ttl time.Duration) error
	// Circuits lists all.
	Circuits(ctx context.Context) ([]Circuit, error)
	// ClaimProbe makes by the only one to probe a backend, until ttl is over or it is released.
	ClaimProbe(ctx context.Context, backend, by string, ttl time.Duration) (claimed bool, err error)
	// ReleaseProbe ends the claim, if by has it.
	ReleaseProbe(ctx context.Context, backend, by string) error
}

const (
	keepCircuit = 24 * time.Hour      // in the store; then whoever knows it puts it again
	keepMode    = 30 * 24 * time.Hour // also when all replicas are down
	tellWithin  = 5 * time.Second     // one round of Run
	maxHeard    = 10_000              // circuits that the store is believed to have
	maxNames    = 1024                // bytes of a backend's name, and of who changed it
)

// sharing is what a Breaker needs to share.
type sharing struct {
	store    Shared
	replica  string
	probeFor time.Duration
	turn     chan struct{} // holds a token while nobody is in Sync
	wake     chan struct{} // holds a token when Run has something to tell
}

// newSharing returns nil when nothing is shared.
func newSharing(cfg Config) (*sharing, error) {
	if cfg.Shared == nil {
		return nil, nil
	}
	if cfg.Replica == "" || len(cfg.Replica) > maxNames {
		return nil, errs.New(errs.ConfigInvalid, "a breaker that shares needs the name of its replica, of at most %d bytes", maxNames)
	}
	s := &sharing{store: cfg.Shared, replica: cfg.Replica, probeFor: cmp.Or(cfg.ProbeFor, time.Minute), turn: make(chan struct{}, 1), wake: make(chan struct{}, 1)}
	if s.probeFor < time.Second {
		return nil, errs.New(errs.ConfigInvalid, "a breaker's probe must be given at least 1s, not %s", s.probeFor)
	}
	s.turn <- struct{}{}
	return s, nil
}

func (b *Breaker) replica() string {
	if b.share == nil {
		return ""
	}
	return b.share.replica
}

// poke has Run tell what there is to tell.
func (s *sharing) poke() {
	select {
	case s.wake <- struct{}{}:
	default: // it will look
	}
}

// Run tells the other replicas of changes here, as they happen, until ctx ends; then it returns nil. What the store does not
// take it leaves to the next Sync. Without Config.Shared it does nothing.
func (b *Breaker) Run(ctx context.Context) error {
	if b.share == nil {
		<-ctx.Done()
		return nil
	}
	failing := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-b.share.wake:
		}
		round, cancel := context.WithTimeout(ctx, tellWithin)
		err := b.Sync(round)
		cancel()
		if err != nil && !failing && ctx.Err() == nil {
			b.log.Warn("other replicas are not told of circuits for now", append(logging.Error(err), logging.FieldComponent, "breaker")...)
		}
		failing = err != nil
	}
}

// Sync takes over what other replicas have changed, and tells the store what it does not know, or not any more. Call it at
// intervals, and when the store tells of a change. Without Config.Shared it does nothing. Errors are the store's.
func (b *Breaker) Sync(ctx context.Context) error {
	s := b.share
	if s == nil {
		return nil
	}
	select {
	case <-s.turn:
		defer func() { s.turn <- struct{}{} }()
	case <-ctx.Done():
		return errs.Wrap(errs.Canceled, ctx.Err(), "circuits were not compared with those of other replicas")
	}
	list, err := s.store.Circuits(ctx)
	if err != nil {
		return err
	}
	circuits := b.hear(list, time.Now())
	for _, c := range circuits {
		if err := c.tell(ctx); err != nil {
			return err
		}
	}
	return nil
}

// heard is what another replica told, and when this one heard of it first.
type heard struct {
	Circuit
	at time.Time
}

// hear takes over what the store has, and returns the circuits that there are.
func (b *Breaker) hear(list []Circuit, now time.Time) []*circuit {
	all := make(map[string]heard, min(len(list), maxHeard))
	b.mu.Lock()
	for _, told := range list {
		if !told.valid() || len(all) == maxHeard {
			continue
		}
		at := now
		if before, ok := b.heard[told.Backend]; ok && before.order(told) == 0 {
			at = before.at
		}
		all[told.Backend] = heard{told, at}
	}
	b.heard = all
	circuits := make([]*circuit, 0, len(b.circuits))
	for _, c := range b.circuits {
		circuits = append(circuits, c)
	}
	b.mu.Unlock()
	for _, c := range circuits {
		told, ok := all[c.backend]
		if ok && c.adopt(told) {
			b.watchers.Tell(c.backend)
		}
		c.compare(told.Circuit)
	}
	return circuits
}

// valid reports whether a circuit that was told of makes sense.
func (t Circuit) valid() bool {
	switch t.mode() {
	case Auto, ForceOpen, ForceClosed:
	default:
		return false
	}
	return t.Backend != "" && len(t.Backend) <= maxNames && len(t.By) <= maxNames && t.Version > 0 && t.Version <= maxVersion && t.Failures >= 0
}

func (t Circuit) mode() Mode { return cmp.Or(Mode(t.Mode), Auto) }

// order compares two changes of one circuit: it is positive when t is the newer one. It is total, so that all replicas come
// to the same one, in whatever order they hear of them.
func (t Circuit) order(o Circuit) int {
	open := func(c Circuit) int {
		if c.Open {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(t.Version, o.Version), t.Since.Compare(o.Since), cmp.Compare(t.Mode, o.Mode), cmp.Compare(open(t), open(o)), cmp.Compare(t.By, o.By))
}
