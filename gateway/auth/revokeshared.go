package auth

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"sync/atomic"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// SharedRevocation is a revocation as replicas share it.
type SharedRevocation struct {
	ID      string
	Until   time.Time
	Removed bool   // before its time
	Data    []byte // the Revocation in JSON, at most 4 KiB; none with Removed
}

// SharedRevocations is where replicas share them. Errors mean that it cannot be asked now.
//
// A revocation counts where it is made at once, and at the others from their next Sync on. It never changes, but may be
// removed, and stays so. Whatever a replica knows and the store does not, be it that the store was away or has lost
// everything, the replica tells it again. Each keeps all, with a file also over a restart, and goes by them whether the store
// is there or not.
type SharedRevocations interface {
	// PutRevocations adds or replaces; one that was removed stays so.
	PutRevocations(ctx context.Context, list ...SharedRevocation) error
	// Revocations lists those that have not expired, removed ones too, and names what it has listed. When nothing has
	// changed since known, list is nil and version is known.
	Revocations(ctx context.Context, known string) (list []SharedRevocation, version string, err error)
}

const (
	maxShared   = 4096 // bytes of SharedRevocation.Data
	shareBatch  = 500  // that are put at once
	shareWithin = time.Second
	commonRoom  = 2 // times Max, for what replicas have added while each had room
)

// commonRevocations is what Revocations know of other replicas; Revocations.mu guards it, but for turn and waiting.
type commonRevocations struct {
	removed map[string]time.Time // until when they would have been in force: they must not come back
	pending map[string]uint64    // ids that the store must be told of, each time by another number
	marks   uint64               // the last number
	version string               // of the store's list that was merged last; empty: of none
	full    bool                 // it held more than there was room for
	waiting atomic.Int64         // of pending
	turn    chan struct{}        // holds a token while nobody is in Sync
}

func (c *commonRevocations) init() {
	c.removed, c.pending, c.turn = map[string]time.Time{}, map[string]uint64{}, make(chan struct{}, 1)
	c.turn <- struct{}{}
}

// markLocked notes that the store must be told of one, in force or removed.
func (r *Revocations) markLocked(id string) {
	if r.cfg.Shared == nil {
		return
	}
	r.common.marks++
	r.common.pending[id] = r.common.marks
	r.common.waiting.Store(int64(len(r.common.pending)))
}

func (r *Revocations) unmarkLocked(id string) {
	delete(r.common.pending, id)
	r.common.waiting.Store(int64(len(r.common.pending)))
}

// purgeCommonLocked drops what has ended for everybody.
func (r *Revocations) purgeCommonLocked(now time.Time) {
	maps.DeleteFunc(r.common.removed, func(_ string, until time.Time) bool { return !now.Before(until) })
	for id := range r.common.pending {
		if _, removed := r.common.removed[id]; !removed && r.byID[id] == nil {
			r.unmarkLocked(id)
		}
	}
}

// removed are those that the file must remember as such.
func (r *Revocations) removed() map[string]time.Time {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return maps.Clone(r.common.removed)
}

// encode is a revocation as it is shared.
func (n *Revocation) encode() (SharedRevocation, error) {
	var data bytes.Buffer
	to := json.NewEncoder(&data)
	to.SetEscapeHTML(false)
	if err := to.Encode(n); err != nil {
		return SharedRevocation{}, errs.Wrap(errs.Internal, err, "the revocation %s cannot be written as JSON", quote(n.ID))
	}
	if data.Len() > maxShared {
		return SharedRevocation{}, errs.New(errs.BadRequest, "the revocation has %d bytes: %d can be shared with other replicas", data.Len(), maxShared)
	}
	return SharedRevocation{ID: n.ID, Until: n.Until, Data: data.Bytes()}, nil
}

// decode reads one that another replica shares.
func (e SharedRevocation) decode(now time.Time) (Revocation, error) {
	var n Revocation
	if len(e.Data) > maxShared {
		return n, errs.New(errs.BadRequest, "it has %d bytes", len(e.Data))
	}
	if err := json.Unmarshal(e.Data, &n); err != nil {
		return n, err
	}
	if n.ID != e.ID || n.ID == "" {
		return n, errs.New(errs.BadRequest, "it says that its id is %s", quote(n.ID))
	}
	return n, n.problem(now)
}

func (r *Revocations) shareable(n *Revocation) error {
	if r.cfg.Shared == nil {
		return nil
	}
	_, err := n.encode()
	return err
}

// share tells the store of one. If it does not listen, the next Sync tells it.
func (r *Revocations) share(id string) {
	if r.cfg.Shared == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), shareWithin)
	defer cancel()
	if err := r.put(ctx, []string{id}); err != nil {
		r.cfg.Logger.Warn("other replicas are not told of a revocation yet", append(logging.Error(err), logging.FieldComponent, "auth", "revocation", id)...)
	}
}

// put tells the store of some that are pending.
func (r *Revocations) put(ctx context.Context, ids []string) error {
	var list []SharedRevocation
	marks := make(map[string]uint64, len(ids))
	r.mu.RLock()
	for _, id := range ids {
		mark, pending := r.common.pending[id]
		if !pending {
			continue
		}
		marks[id] = mark
		if until, removed := r.common.removed[id]; removed {
			list = append(list, SharedRevocation{ID: id, Until: until, Removed: true})
		} else if n := r.byID[id]; n != nil {
			if one, err := n.encode(); err == nil {
				list = append(list, one)
			} else { // from a file of before replicas shared anything
				r.cfg.Logger.Error("a revocation holds at this replica only", append(logging.Error(err), logging.FieldComponent, "auth", "revocation", id)...)
			}
		}
	}
	r.mu.RUnlock()
	if len(list) > 0 {
		if err := r.cfg.Shared.PutRevocations(ctx, list...); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, mark := range marks {
		if r.common.pending[id] == mark { // it was not removed meanwhile
			r.unmarkLocked(id)
		}
	}
	return nil
}

// putAll tells the store of all that are pending.
func (r *Revocations) putAll(ctx context.Context) error {
	r.mu.RLock()
	ids := make([]string, 0, len(r.common.pending))
	for id := range r.common.pending {
		ids = append(ids, id)
	}
	r.mu.RUnlock()
	for len(ids) > 0 {
		n := min(len(ids), shareBatch)
		if err := r.put(ctx, ids[:n]); err != nil {
			return err
		}
		ids = ids[n:]
	}
	return nil
}

// Sync takes over what other replicas have revoked and removed, and tells the store what it does not know. Call it at
// intervals, which bound how long a revocation takes to count everywhere, and when the store tells of a change. When nothing
// has changed it is one question. changed says that something came into force or ended: whoever is revoked now is to be ended
// by the caller, also with an error. Errors are the store's, errs.Canceled, errs.RequestLimit when the store holds more than
// there is room for (twice RevocationsConfig.Max): those that did not fit are not in force here; and errs.Internal for
// some that cannot be understood, which are not in force here either.
func (r *Revocations) Sync(ctx context.Context) (changed bool, err error) {
	if r == nil || r.cfg.Shared == nil {
		return false, nil
	}
	select {
	case <-r.common.turn:
		defer func() { r.common.turn <- struct{}{} }()
	case <-ctx.Done():
		return false, errs.Wrap(errs.Canceled, ctx.Err(), "revocations were not compared with those of other replicas")
	}
	known := r.known()
	list, version, err := r.cfg.Shared.Revocations(ctx, known)
	if err != nil {
		return false, err
	}
	var problem error
	if list != nil || version != known || known == "" {
		changed, problem = r.merge(list, version)
	}
	return changed, errors.Join(problem, r.putAll(ctx))
}

// known is which list need not be sent again.
func (r *Revocations) known() string {
	now := r.cfg.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Sub(r.purged) >= purgeEvery {
		r.purge(now)
	}
	if r.common.full && len(r.byID) < commonRoom*r.cfg.Max {
		return "" // there is room again
	}
	return r.common.version
}
