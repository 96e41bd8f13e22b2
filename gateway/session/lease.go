package session

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"fairlead/gateway/store"
	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/logging"
)

// Replicas is how a Registry is one of several that work as one.
type Replicas struct {
	Store store.Store   // where tunnels' owners are known; nil: there are no others
	Self  store.Replica // ID, Name, Address and Started of this one
	Peers Peers         // nil: others cannot be reached
}

// Times of leases. A record outlives its owner by far, so that others can say what has become of it; and an owner that is cut
// off from the store is found by it.
const (
	leaseTTL     = time.Hour
	lostTTL      = 10 * time.Minute // of one that is lost
	leaseRefresh = 20 * time.Second // within this an owner that was given up learns of it, if it did not hear
	leaseBatch   = 500              // records in one call
	storeWait    = 500 * time.Millisecond
	mostEnded    = 16_384 // tunnels whose end the store was not told yet
)

// leases keeps the records of the tunnels that this replica owns. They are fenced: the store refuses one that another
// replica has given up, and the tunnel ends then. Without a store that can be asked, tunnels go on: whoever cannot reach it
// cannot give them up either. A nil leases keeps none.
type leases struct {
	r       *Registry
	store   store.Store
	self    store.Replica
	log     *slog.Logger
	known   atomic.Pointer[directory] // as seen last; nil: never
	twin    atomic.Bool               // another process has this one's name, and lives
	finding *turns                    // of those that ask the store for a tunnel
	asking  *turns                    // of those that look for a tunnel at every replica
	ways    ways                      // to other replicas
	hurry   chan struct{}             // refresh now
	flushed chan struct{}             // there are ends to tell

	telling sync.Mutex // held while the store is told of ends
	mu      sync.Mutex
	ended   []store.Tunnel // to be told; taken away from by whoever holds telling

	losses, untold *metrics.Counter
}

func newLeases(r *Registry, cfg Config) *leases {
	l := &leases{r: r, store: cfg.Replicas.Store, self: cfg.Replicas.Self, log: cfg.Logger, finding: newTurns(mostFinding), asking: newTurns(mostAsking), hurry: make(chan struct{}, 1), flushed: make(chan struct{}, 1),
		losses: cfg.Metrics.NewCounter("fairlead_gateway_lease_losses_total"),
		untold: cfg.Metrics.NewCounter("fairlead_gateway_tunnel_ends_untold_total")}
	return l
}

// record is what the store is to know of a tunnel.
func (l *leases) record(s *session, epoch uint64) store.Tunnel {
	who, st := s.who.Identity(), s.tunnel.Stats()
	return store.Tunnel{ID: s.id(), Owner: l.self.ID, Name: l.self.Name, Address: l.self.Address, Epoch: max(epoch, st.Epoch),
		Tenant: who.Tenant, Subject: who.Subject, Issuer: who.Issuer, Made: s.since, Streams: st.Streams}
}

// begin enters a new tunnel.
func (l *leases) begin(ctx context.Context, s *session) {
	if l == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, storeWait)
	defer cancel()
	l.held(l.hold(ctx, l.record(s, 1)))
}

// raise gives the lease the epoch of a lane that is to come. It fails when the tunnel was given up, or a newer lane is on its
// way; a store that cannot be asked stops nobody.
func (l *leases) raise(ctx context.Context, s *session, epoch uint64) error {
	if l == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, storeWait)
	defer cancel()
	refused, err := l.hold(ctx, l.record(s, epoch))
	if err != nil || len(refused) == 0 {
		return nil // hold has logged the error
	}
	if l.held(refused, nil); refused[0].Lost != nil {
		return lost(refused[0])
	}
	return errs.New(errs.Displaced, "lane %d comes after lane %d", epoch, refused[0].Epoch)
}

// hold asks the store; that it cannot be asked is its own to say.
func (l *leases) hold(ctx context.Context, records ...store.Tunnel) (refused []store.Tunnel, err error) {
	refused, err = l.store.Hold(ctx, leaseTTL, records...)
	if err != nil {
		l.log.Debug("leases were not refreshed", append(logging.Error(err), "tunnels", len(records))...)
	}
	return refused, err
}

// held ends the tunnels whose leases are lost.
func (l *leases) held(refused []store.Tunnel, err error) {
	for _, t := range refused {
		s := l.r.named(t.ID)
		switch {
		case err != nil || s == nil:
		case t.Lost == nil && t.Owner == l.self.ID: // a newer lane was faster
		default:
			l.losses.Inc()
			s.log.Error("lease lost: another replica has given the tunnel up", logging.FieldCode, errs.LeaseLost.String(), "by", by(t))
			s.tunnel.Close(errs.New(errs.LeaseLost, "replica %s has given the tunnel up", by(t)))
		}
	}
}

func by(t store.Tunnel) string {
	if t.Lost == nil {
		return t.Name
	}
	return t.Lost.By
}

// end leaves word of why a tunnel is over.
func (l *leases) end(s *session) {
	if l == nil {
		return
	}
	t := l.record(s, 0)
	e := errs.From(s.tunnel.Err())
	t.Lost = &store.Ending{Code: e.Code, Reason: e.Text(), By: l.self.Name, At: l.r.cfg.Now()}
	l.mu.Lock()
	if len(l.ended) < mostEnded {
		l.ended = append(l.ended, t)
	} else {
		l.untold.Inc()
	}
	l.mu.Unlock()
	notify(l.flushed)
}

// notify leaves a token in a channel that holds one.
func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// tell tells the store of tunnels that are over. What it cannot be told now waits; what nobody asks about for as long as a record is
// kept is not worth telling.
func (l *leases) tell(ctx context.Context) {
	l.telling.Lock()
	defer l.telling.Unlock()
	for {
		l.mu.Lock()
		batch := l.ended[:min(len(l.ended), leaseBatch)]
		l.mu.Unlock()
		if len(batch) == 0 {
			return
		}
		if err := l.store.End(ctx, lostTTL, batch...); err != nil {
			l.drop(l.r.cfg.Now().Add(-lostTTL))
			return
		}
		l.mu.Lock()
		l.ended = slices.Clone(l.ended[len(batch):])
		l.mu.Unlock()
	}
}

func (l *leases) drop(before time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.ended) > 0 && l.ended[0].Lost.At.Before(before) {
		l.ended = l.ended[1:]
		l.untold.Inc()
	}
}

// refresh holds all leases for another while.
func (l *leases) refresh(ctx context.Context) {
	var batch []store.Tunnel
	flush := func() bool {
		if len(batch) == 0 {
			return true
		}
		refused, err := l.hold(ctx, batch...)
		l.held(refused, err)
		batch = batch[:0]
		return err == nil || l.store.Health().Up // else it is of no use to go on
	}
	for _, s := range l.r.snapshot() {
		if s.tunnel.Err() != nil {
			continue
		}
		if batch = append(batch, l.record(s, 0)); len(batch) == leaseBatch && !flush() {
			return
		}
	}
	flush()
}

// run refreshes leases and tells of ends, until ctx ends.
func (l *leases) run(ctx context.Context) {
	next := time.NewTimer(jittered(leaseRefresh))
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.flushed:
			l.tell(ctx)
			continue
		case <-l.hurry:
		case <-next.C:
		}
		next.Reset(jittered(leaseRefresh))
		l.refresh(ctx)
		l.tell(ctx)
	}
}

// jittered is up to a quarter less than d, so that replicas do not act together.
func jittered(d time.Duration) time.Duration { return d - rand.N(d/4) }

// Share runs what keeps the tunnels' leases, until ctx ends.
func (r *Registry) Share(ctx context.Context) error {
	if r.leases != nil {
		r.leases.run(ctx)
	}
	return nil
}

// Refresh holds all leases anew, soon: something may have been missed.
func (r *Registry) Refresh() {
	if r.leases != nil {
		notify(r.leases.hurry)
	}
}

// Fenced takes the news that a replica has given a tunnel up; if it is one of this replica, its lease is looked at.
func (r *Registry) Fenced(id string) {
	if r.leases != nil && r.named(id) != nil {
		notify(r.leases.hurry)
	}
}

// named finds a tunnel by its ID in hexadecimal.
func (r *Registry) named(name string) *session {
	id, err := link.ParseID(name)
	if err != nil {
		return nil
	}
	return r.find(id)
}
