package app

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"fairlead/gateway/session"
	"fairlead/gateway/store"
	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// What replicas tell each other while they run.

// storeHealth takes note of a store that can be used again, or not any more.
func (a *App) storeHealth(store.Health) { a.tellHealth() }

// tellHealth lets the replica announce itself now.
func (a *App) tellHealth() { signal(a.health) }

// signal leaves a token in a channel that holds one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// jittered is up to a fifth less than d, so that replicas do not act together.
func jittered(d time.Duration) time.Duration { return d - rand.N(d/5) }

// share keeps this replica in the directory and takes from the store what others have put there, until ctx ends.
func (a *App) share(ctx context.Context) error {
	news := make(chan struct{}, 1)
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		_ = a.store.Watch(ctx, func(e store.Event) { a.heard(e, news) }) // it ends with ctx
	}()
	defer func() { <-watching }()
	defer a.withdraw()
	announce, pull := time.NewTimer(0), time.NewTimer(jittered(pullEvery))
	defer announce.Stop()
	defer pull.Stop()
	var holds string // the store's incarnation
	var twin string  // that was warned of
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.health:
			a.limits.SetDegraded(!a.store.Health().Up)
			a.announce(ctx, &holds)
			a.pull(ctx)
		case <-announce.C:
			a.announce(ctx, &holds)
			a.warnOfTwin(&twin)
			announce.Reset(jittered(announceEvery))
		case <-news:
			a.pull(ctx)
		case <-pull.C:
			a.pull(ctx)
			pull.Reset(jittered(pullEvery))
		}
	}
}

// heard takes an event. It must not block.
func (a *App) heard(e store.Event, news chan struct{}) {
	switch e.Kind {
	case store.TunnelFenced:
		a.sessions.Fenced(e.Name)
	case store.ReplicaChanged:
		a.tellHealth()
	case store.Missed:
		a.sessions.Refresh()
		signal(news)
	default:
		signal(news)
	}
}

// announce enters this replica in the directory and reads who else is there.
func (a *App) announce(ctx context.Context, holds *string) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	self, c := a.self, a.sessions.Counts()
	self.Draining, self.Tunnels, self.Streams = a.stopping.Load(), c.Tunnels, c.Streams
	if err := a.store.Announce(ctx, self, announceTTL); err != nil {
		return // the store has said it
	}
	if list, err := a.store.Replicas(ctx); err == nil {
		a.known.Store(&list)
		a.sessions.Know(list)
		a.limits.SetShare(cmp.Or(a.config().Store.Replicas, len(list)))
	}
	if now, err := a.store.Incarnation(ctx); err == nil && now != *holds {
		if *holds != "" {
			a.log.Warn("the store has lost what it held; this replica puts there again what it knows", logging.FieldCode, errs.StoreUnavailable.String())
			a.limits.Restore()
		}
		*holds = now
		a.sessions.Refresh()
		a.pull(ctx) // circuits and revocations are compared, both ways
	}
}

// warnOfTwin says once that another process has this one's name. One that is there only because it ended without a word, and
// this one has taken its place, is not meant.
func (a *App) warnOfTwin(warned *string) {
	known := a.known.Load()
	if known == nil || time.Since(a.started) < 2*announceTTL {
		return
	}
	if other, ok := twinOf(a.self, *known); ok && other.ID != *warned {
		*warned = other.ID
		a.log.Warn("another replica has the name of this one: give each its own with --instance, or nobody can tell them apart",
			"name", a.self.Name, "address", other.Address, "started", other.Started.UTC().Format(time.RFC3339))
	}
}

// twinOf finds another process by the same name.
func twinOf(self store.Replica, list []store.Replica) (twin store.Replica, ok bool) {
	for _, r := range list {
		if r.Name == self.Name && r.ID != self.ID {
			return r, true
		}
	}
	return twin, false
}

// withdraw takes this replica out of the directory.
func (a *App) withdraw() {
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	_ = a.store.Withdraw(ctx, a.self.ID) // it expires by itself
}

// pull takes what other replicas have decided, and tells the store what it does not know.
func (a *App) pull(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	changed, err := a.revocations.Sync(ctx)
	if err != nil && !errors.Is(err, errs.StoreUnavailable) && !errors.Is(err, errs.Canceled) { // else the store has said it
		a.log.Error("revocations were not compared with those of other replicas", logging.Error(err)...)
	}
	if changed {
		tunnels, streams := a.sessions.Enforce(a.revoked)
		a.log.Info("revocations of other replicas are in force", "revocations", len(a.revocations.List()), "ended", tunnels+streams)
	}
	_ = a.breaker.Sync(ctx)
}

func (a *App) balance(ctx context.Context) error {
	b := a.config().Balance
	return a.sessions.Balance(ctx, session.Balance{MaxAge: b.MaxAge, Tolerance: b.Tolerance, PerMinute: b.PerMinute})
}
