package auth

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

// revocationStore is a store as all replicas see it.
type revocationStore struct {
	clock *clock

	mu      sync.Mutex
	life    int // another one after each flush
	version int
	all     map[string]SharedRevocation
	listed  int // times that a whole list was sent
}

func newRevocationStore(clock *clock) *revocationStore {
	return &revocationStore{clock: clock, all: map[string]SharedRevocation{}}
}

func (s *revocationStore) flush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.life++
	s.version = 0
	clear(s.all)
}

// reach is the store as one replica reaches it.
type reach struct {
	*revocationStore
	down atomic.Bool
	lost atomic.Bool // what is asked is done, but the answer never comes
}

func (r *reach) problem() error {
	if r.down.Load() || r.lost.Load() {
		return errs.New(errs.StoreUnavailable, "down")
	}
	return nil
}

func (r *reach) PutRevocations(ctx context.Context, list ...SharedRevocation) error {
	if r.down.Load() || ctx.Err() != nil {
		return errs.New(errs.StoreUnavailable, "down")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, each := range list {
		if len(each.Data) > maxShared {
			return errs.New(errs.StoreUnavailable, "too long")
		}
		if !r.all[each.ID].Removed && r.clock.now().Before(each.Until) {
			r.all[each.ID] = each
			r.version++
		}
	}
	return r.problem()
}

func (r *reach) Revocations(ctx context.Context, known string) ([]SharedRevocation, string, error) {
	if err := r.problem(); err != nil {
		return nil, "", err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	version := fmt.Sprint(r.life, ".", r.version)
	if version == known {
		return nil, known, ctx.Err()
	}
	list := []SharedRevocation{}
	for id, each := range r.all {
		if r.clock.now().Before(each.Until) {
			list = append(list, each)
		} else {
			delete(r.all, id)
		}
	}
	r.listed++
	return list, version, ctx.Err()
}

// replica is the revocations of one.
type replica struct {
	*Revocations
	store *reach
	set   *metrics.Set
}

func newReplica(t testing.TB, clock *clock, store *revocationStore, cfg RevocationsConfig) *replica {
	r := &replica{store: &reach{revocationStore: store}, set: metrics.NewSet()}
	cfg.Shared, cfg.Metrics = r.store, r.set
	r.Revocations = newRevocations(t, clock, cfg)
	return r
}

func (r *replica) sync(t testing.TB) bool {
	changed, err := r.Sync(t.Context())
	require.NoError(t, err)
	return changed
}

func tenant(name string) Identity { return Identity{Tenant: name} }

// Verifies: R4.5
func TestARevocationCountsAtAllReplicas(t *testing.T) {
	clock := newClock()
	store := newRevocationStore(clock)
	a, b := newReplica(t, clock, store, RevocationsConfig{}), newReplica(t, clock, store, RevocationsConfig{})
	require.False(t, a.sync(t))
	require.False(t, b.sync(t))
	told := make(chan Revocation, 1)
	defer b.Subscribe(func(n Revocation) { told <- n })()
	who := Identity{Tenant: "t", Subject: "s <&>", Issuer: "i", TokenID: "j", IssuedAt: clock.now().Add(-time.Minute)}
	added, err := a.Add(Revocation{Subject: "s <&>", Issuer: "i", Reason: "left", By: "ann", IssuedBefore: clock.now()})
	require.NoError(t, err)
	require.NoError(t, b.Check(who))
	require.True(t, b.sync(t))
	require.ErrorIs(t, b.Check(who), errs.TokenRevoked)
	require.Equal(t, added.ID, (<-told).ID)
	require.Len(t, b.List(), 1)
	require.Equal(t, revocationText(added), revocationText(b.List()[0]), "in all it says")

	listed := store.listed
	require.False(t, a.sync(t))
	for range 10 {
		require.False(t, a.sync(t))
		require.False(t, b.sync(t))
	}
	require.Equal(t, listed+1, store.listed, "what has not changed is not sent again")

	// It may be removed anywhere, and is so everywhere.
	_, err = b.Remove(added.ID)
	require.NoError(t, err)
	require.ErrorIs(t, a.Check(who), errs.TokenRevoked)
	require.True(t, a.sync(t))
	require.NoError(t, a.Check(who))
	_, err = a.Add(Revocation{ID: added.ID, Tenant: "t"})
	require.ErrorIs(t, err, errs.BadRequest)
}

func revocationText(n Revocation) string {
	return fmt.Sprint(n.ID, n.TokenID, n.Subject, n.Tenant, n.Issuer, n.Reason, n.By, n.At.UnixNano(), n.Until.UnixNano(), n.IssuedBefore.UnixNano())
}

// Verifies: R4.5
func TestARevocationHoldsWithoutTheStoreAndIsToldLater(t *testing.T) {
	clock := newClock()
	store := newRevocationStore(clock)
	a, b := newReplica(t, clock, store, RevocationsConfig{}), newReplica(t, clock, store, RevocationsConfig{})
	a.store.down.Store(true)
	_, err := a.Add(Revocation{Tenant: "t"})
	require.NoError(t, err)
	require.ErrorIs(t, a.Check(tenant("t")), errs.TokenRevoked, "in force here at once")
	require.Contains(t, text(a.set), "fairlead_gateway_revocations_unshared 1\n")
	_, err = a.Sync(t.Context())
	require.ErrorIs(t, err, errs.StoreUnavailable)
	b.sync(t)
	require.NoError(t, b.Check(tenant("t")))
	a.store.down.Store(false)
	a.sync(t)
	require.Contains(t, text(a.set), "fairlead_gateway_revocations_unshared 0\n")
	require.True(t, b.sync(t))
	require.ErrorIs(t, b.Check(tenant("t")), errs.TokenRevoked)

	store.flush()
	c := newReplica(t, clock, store, RevocationsConfig{})
	c.sync(t)
	require.NoError(t, c.Check(tenant("t")))
	b.sync(t)
	c.sync(t)
	require.ErrorIs(t, c.Check(tenant("t")), errs.TokenRevoked)
}

func TestFilesOfReplicasAreMergedBothWays(t *testing.T) {
	clock := newClock()
	store := newRevocationStore(clock)
	files := []string{filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")}
	open := func(i int) *replica { return newReplica(t, clock, store, RevocationsConfig{File: files[i]}) }
	a, b := open(0), open(1)
	gone, err := a.Add(Revocation{Tenant: "gone"})
	require.NoError(t, err)
	b.sync(t)
	_, err = a.Add(Revocation{Tenant: "a"})
	require.NoError(t, err)
	_, err = a.Remove(gone.ID)
	require.NoError(t, err)
	_, err = b.Add(Revocation{Tenant: "b"})
	require.NoError(t, err)

	// All that is left are the files, of which b's holds what a has removed.
	store.flush()
	require.ErrorIs(t, open(1).Check(tenant("gone")), errs.TokenRevoked)
	a, b = open(0), open(1)
	for _, r := range []*replica{b, a, b} {
		r.sync(t)
	}
	for _, r := range []*replica{a, b, open(0), open(1)} {
		require.Len(t, r.List(), 2)
		require.ErrorIs(t, r.Check(tenant("a")), errs.TokenRevoked)
		require.ErrorIs(t, r.Check(tenant("b")), errs.TokenRevoked)
		require.NoError(t, r.Check(tenant("gone")), "what was removed stays so")
	}
	clock.move(48 * time.Hour)
	a.sync(t)
	require.Empty(t, a.common.removed)
	require.Empty(t, a.byID)
	require.Empty(t, a.common.pending)
	require.Empty(t, open(1).common.removed)
}

func TestSharedRevocationsAreBounded(t *testing.T) {
	clock := newClock()
	store := newRevocationStore(clock)
	var all []*replica
	for range 3 {
		all = append(all, newReplica(t, clock, store, RevocationsConfig{Max: 10}))
	}
	for i, r := range all { // each has room when it adds
		for j := range 10 {
			_, err := r.Add(Revocation{TokenID: fmt.Sprint(i, "-", j), Until: clock.now().Add(time.Hour)})
			require.NoError(t, err)
		}
		_, err := r.Add(Revocation{TokenID: "one more"})
		require.ErrorIs(t, err, errs.RequestLimit)
	}
	for _, r := range all {
		changed, err := r.Sync(t.Context())
		require.ErrorIs(t, err, errs.RequestLimit)
		require.True(t, changed, "what fits is in force all the same")
		require.Len(t, r.List(), 20)
		listed := store.listed
		_, err = r.Sync(t.Context())
		require.NoError(t, err)
		require.Equal(t, listed, store.listed, "it is not asked for the same over and over")
	}
	for range 10 {
		_, err := all[0].Remove(all[0].List()[0].ID)
		require.NoError(t, err)
	}
	_, err := all[0].Remove(all[0].List()[0].ID)
	require.ErrorIs(t, err, errs.RequestLimit)
	for range 2 {
		for _, r := range all {
			r.sync(t)
		}
	}
	for _, r := range all {
		require.Len(t, r.List(), 20, "there is room again")
	}

	_, err = all[0].Add(Revocation{Tenant: strings.Repeat("t", maxTenantBytes)})
	require.ErrorIs(t, err, errs.BadRequest, "too long to be shared")
}

func TestSharedRevocationsThatMakeNoSense(t *testing.T) {
	clock := newClock()
	store := newRevocationStore(clock)
	r := newReplica(t, clock, store, RevocationsConfig{})
	for i, data := range []string{"", "{", "[]", `{"id":"other","tenant":"t","until":"2100-01-01T00:00:00Z"}`, `{"id":"X","until":"2100-01-01T00:00:00Z"}`,
		`{"id":"X","tenant":"a\u001b[2J","until":"2100-01-01T00:00:00Z"}`, strings.Repeat(" ", maxShared+1)} {
		id := strconv.Itoa(i)
		store.all[id] = SharedRevocation{ID: id, Until: clock.now().Add(time.Hour), Data: []byte(strings.ReplaceAll(data, "X", id))}
	}
	store.all["good"] = SharedRevocation{ID: "good", Until: clock.now().Add(time.Hour), Data: []byte(`{"id":"good","tenant":"t","until":"2100-01-01T00:00:00Z"}`)}
	changed, err := r.Sync(t.Context())
	require.ErrorIs(t, err, errs.Internal)
	require.True(t, changed)
	require.Len(t, r.List(), 1)
	var none *Revocations
	changed, err = none.Sync(t.Context())
	require.False(t, changed)
	require.NoError(t, err)
}

// However replicas add, remove, restart, and lose the store or its answers, and it its memory: whatever is known to a replica
// that reaches the store counts everywhere after one Sync of each, and what was removed never comes back there.
//
// Verifies: R4.5
func TestRevocationsOfReplicasConverge(t *testing.T) {
	for i := range 60 {
		seed := rand.Uint64()
		restarts := i%30 == 0 // few, since each change is made sure to be on disk
		t.Run(fmt.Sprint(seed), func(t *testing.T) { converge(t, rand.New(rand.NewPCG(seed, 0)), restarts) })
	}
}

func converge(t *testing.T, random *rand.Rand, restarts bool) {
	clock := newClock()
	store := newRevocationStore(clock)
	var all []*replica
	var files []string
	for i := range 3 {
		files = append(files, "")
		if restarts {
			files[i] = filepath.Join(t.TempDir(), strconv.Itoa(i))
		}
		all = append(all, newReplica(t, clock, store, RevocationsConfig{File: files[i]}))
	}
	until, removed := map[string]time.Time{}, map[string]bool{} // by tenant, which is the id too
	n := 0
	for range 8 {
		for range 25 {
			i := random.IntN(3)
			r := all[i]
			switch random.IntN(12) {
			case 0, 1, 2:
				id := strconv.Itoa(n)
				n++
				until[id] = clock.now().Add(time.Duration(1+random.IntN(48)) * time.Hour)
				_, err := r.Add(Revocation{ID: id, Tenant: id, Until: until[id]})
				require.NoError(t, err)
			case 3, 4:
				if list := r.List(); len(list) > 0 {
					id := list[random.IntN(len(list))].ID
					removed[id] = true
					_, err := r.Remove(id)
					require.NoError(t, err)
				}
			case 5:
				r.store.down.Store(random.IntN(2) == 0)
			case 6:
				r.store.lost.Store(random.IntN(2) == 0)
			case 7:
				if random.IntN(4) == 0 {
					store.flush()
				}
			case 8:
				clock.move(time.Duration(random.IntN(4)) * time.Hour)
			case 9:
				if !restarts {
					continue
				}
				all[i] = newReplica(t, clock, store, RevocationsConfig{File: files[i]})
				all[i].store.down.Store(r.store.down.Load())
			default:
				_, _ = r.Sync(t.Context())
			}
		}
		for _, r := range all {
			r.store.down.Store(false)
			r.store.lost.Store(false)
			r.sync(t) // what could not be told is told now: the last change
		}
		for _, r := range all {
			r.sync(t)
			for id, end := range until {
				err := r.Check(tenant(id))
				if !removed[id] && clock.now().Before(end) {
					require.ErrorIs(t, err, errs.TokenRevoked, id)
				} else {
					require.NoError(t, err, id)
				}
			}
		}
	}
}

// What each replica pays every two seconds while nothing changes, and for a change.
func BenchmarkSyncRevocations(b *testing.B) {
	clock := newClock()
	store := newRevocationStore(clock)
	r, other := newReplica(b, clock, store, RevocationsConfig{}), newReplica(b, clock, store, RevocationsConfig{})
	for i := range 50_000 {
		_, err := other.Add(Revocation{TokenID: strconv.Itoa(i)})
		require.NoError(b, err)
	}
	r.sync(b)
	require.Len(b, r.List(), 50_000)
	b.Run("unchanged", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			r.sync(b)
		}
	})
	b.Run("one of 50000 changed", func(b *testing.B) {
		n := 0
		for b.Loop() {
			n++
			_, err := other.Add(Revocation{TokenID: fmt.Sprint("more", n)})
			require.NoError(b, err)
			require.True(b, r.sync(b))
		}
	})
}
