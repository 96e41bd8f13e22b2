package session

import (
	"context"
	"sync"
	"time"

	"fairlead/gateway/store"
	"fairlead/shared/errs"
	"fairlead/shared/link"
)

// ways are the ways to the owners of tunnels that somebody calls now, by the owners' IDs. Few call one owner at once: its port
// has few places for those whom it does not know yet, and who waits here loses no time of reach.
type ways struct {
	mu sync.Mutex
	to map[string]*way
}

// way is what is known of the way to one owner while it is called.
type way struct {
	turns    *turns
	users    int // guarded by ways.mu
	mu       sync.Mutex
	answered time.Time // when it answered last
	failed   time.Time // when a call failed last, to which there was no answer
	since    time.Time // when that call was made
}

// mostCalls bounds the calls of one owner at once.
const mostCalls = 32

func (w *ways) enter(owner string) (one *way, leave func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.to == nil {
		w.to = map[string]*way{}
	}
	one = w.to[owner]
	if one == nil {
		one = &way{turns: newTurns(mostCalls)}
		w.to[owner] = one
	}
	one.users++
	return one, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if one.users--; one.users == 0 {
			delete(w.to, owner)
		}
	}
}

// bring calls the owner of a tunnel when it is its turn. OwnerUnreachable means that the owner has answered nobody since; one that
// is merely slow has answered others, which is OwnerUnknown: the tunnel is there, and the sidecar is to try again.
func (l *leases) bring(ctx context.Context, hs *link.Handshake, t store.Tunnel, a Arrival) (func(context.Context) error, error) {
	w, leave := l.ways.enter(t.Owner)
	defer leave()
	came := time.Now()
	give, err := w.turns.take(ctx, a.Who.Tenant)
	if err != nil {
		return nil, err
	}
	defer give()
	if err := w.triedSince(came); err != nil {
		return nil, err
	}
	began := time.Now()
	reaching, cancel := context.WithTimeout(ctx, reach)
	defer cancel()
	carry, err := l.r.cfg.Replicas.Peers.Bring(reaching, store.Replica{ID: t.Owner, Name: t.Name, Address: t.Address}, a, hs)
	return carry, w.told(err, began)
}

// triedSince spares a caller that had to wait what others have tried meanwhile in vain.
func (w *way) triedSince(came time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failed.After(came) && w.answered.Before(w.since) {
		return errs.New(errs.OwnerUnreachable, "it did not answer another call")
	}
	return nil
}

// told takes note of how a call that began then has ended.
func (w *way) told(err error, began time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch errs.CodeOf(err) {
	case errs.OwnerUnreachable:
		if !w.answered.Before(began) {
			return errs.Wrap(errs.OwnerUnknown, err, "the owner is slow, but answers others")
		}
		w.failed, w.since = time.Now(), began
	case errs.PeerRefused, errs.OwnerUnknown, errs.Canceled, errs.Internal: // nothing of the owner
	default:
		w.answered = time.Now()
	}
	return err
}
