package store_test

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/gateway/store"
	"fairlead/shared/errs"
)

// world is shared state that nobody else uses.
type world struct {
	open  func() store.Store // another client of it
	brief bool               // what differs from others is how it is reached: leave out what takes long
}

const (
	brief    = 50 * time.Millisecond // for what is to expire
	patience = 20 * time.Second      // for what must happen
	often    = 5 * time.Millisecond
)

func name(i int) string { return fmt.Sprintf("n%03d", i) }

// contract is what every store has to fulfil.
func contract(t *testing.T, create func(*testing.T) *world) {
	long := []string{"many revocations", "takes like memory", "tunnels like a model"}
	for _, test := range []struct {
		name string
		run  func(*testing.T, *world)
	}{
		{"replicas", replicas}, {"tunnels", tunnels}, {"many tunnels", manyTunnels}, {"races for a tunnel", tunnelRaces},
		{"tunnels like a model", tunnelModel}, {"slots", slots}, {"rates", rates}, {"takes like memory", takesLikeMemory},
		{"takes at once", takesAtOnce}, {"circuits", circuits}, {"probes", probes}, {"revocations", revocations},
		{"many revocations", manyRevocations}, {"host keys", hostKeys}, {"events", events}, {"incarnation", incarnation},
		{"names", names}, {"expiry", expiry}, {"canceled and closed", canceledAndClosed},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := create(t)
			if w.brief && slices.Contains(long, test.name) {
				t.Skip("takes long")
			}
			test.run(t, w)
		})
	}
}

// now is a time as stores keep it.
func now() time.Time { return time.Now().UTC().Round(0) }

func replicas(t *testing.T, w *world) {
	a, b, ctx := w.open(), w.open(), t.Context()
	list, err := a.Replicas(ctx)
	require.NoError(t, err)
	require.Empty(t, list)
	one := store.Replica{ID: "gw-1/aa", Name: "gw-1", Address: "10.0.0.1:9444", Version: "1.2", Started: now(), Tunnels: 3, Streams: 4}
	two := store.Replica{ID: "gw-0/bb", Name: "gw-0", Started: now()}
	require.NoError(t, a.Announce(ctx, one, time.Minute))
	require.NoError(t, b.Announce(ctx, two, time.Minute))
	list, err = b.Replicas(ctx)
	require.NoError(t, err)
	require.Equal(t, []store.Replica{two, one}, list)
	one.Draining, one.Tunnels = true, 2
	require.NoError(t, a.Announce(ctx, one, time.Minute))
	require.NoError(t, b.Withdraw(ctx, two.ID))
	require.NoError(t, b.Withdraw(ctx, two.ID), "again")
	list, err = a.Replicas(ctx)
	require.NoError(t, err)
	require.Equal(t, []store.Replica{one}, list)
}

func tunnelOf(owner string, epoch uint64) store.Tunnel {
	return store.Tunnel{ID: "00ff", Owner: owner, Name: "gw", Address: "10.0.0.1:9444", Epoch: epoch, Tenant: "t", Subject: "s", Issuer: "i",
		Made: now(), Streams: 2}
}

func ending(by string) store.Ending {
	return store.Ending{Code: errs.OwnerUnreachable, Reason: "could not reach \"it\"\n", By: by, At: now()}
}

func hold(t require.TestingT, ctx context.Context, s store.Store, tunnels ...store.Tunnel) []store.Tunnel {
	refused, err := s.Hold(ctx, time.Minute, tunnels...)
	require.NoError(t, err)
	return refused
}

func find(t require.TestingT, ctx context.Context, s store.Store, id string) (store.Tunnel, bool) {
	found, ok, err := s.Find(ctx, id)
	require.NoError(t, err)
	return found, ok
}

func tunnels(t *testing.T, w *world) {
	a, b, ctx := w.open(), w.open(), t.Context()
	_, ok := find(t, ctx, a, "00ff")
	require.False(t, ok)
	_, fenced, err := a.Fence(ctx, "00ff", 0, ending("gw"), time.Minute)
	require.NoError(t, err)
	require.False(t, fenced, "it is not there")
	_, ok = find(t, ctx, a, "00ff")
	require.False(t, ok, "a fence makes no record")

	const high = math.MaxUint64 - 1 // as a float it would be another one
	held := tunnelOf("a", high)
	held.Lost = &store.Ending{Reason: "not looked at"}
	require.Empty(t, hold(t, ctx, a, held))
	held.Lost = nil
	found, ok := find(t, ctx, b, "00ff")
	require.True(t, ok)
	require.Equal(t, held, found)

	lower, other := tunnelOf("a", high-1), tunnelOf("b", math.MaxUint64)
	require.Equal(t, []store.Tunnel{held}, hold(t, ctx, a, lower), "an earlier epoch")
	require.Equal(t, []store.Tunnel{held}, hold(t, ctx, b, other), "another owner")
	held.Streams = 7
	require.Empty(t, hold(t, ctx, a, held), "the same epoch refreshes")

	found, fenced, err = b.Fence(ctx, "00ff", high-1, ending("b"), time.Minute)
	require.NoError(t, err)
	require.False(t, fenced, "another epoch than was seen")
	require.Equal(t, held, found)
	held.Epoch++
	require.Empty(t, hold(t, ctx, a, held))
	why := ending("b")
	found, fenced, err = b.Fence(ctx, "00ff", held.Epoch, why, time.Minute)
	require.NoError(t, err)
	require.True(t, fenced)
	held.Lost = &why
	require.Equal(t, held, found)

	found, fenced, err = a.Fence(ctx, "00ff", held.Epoch, ending("c"), time.Minute)
	require.NoError(t, err)
	require.False(t, fenced, "it is lost already")
	require.Equal(t, held, found)
	require.Equal(t, []store.Tunnel{held}, hold(t, ctx, a, held), "what is lost stays lost")
	ended := tunnelOf("a", held.Epoch)
	ended.Lost = &store.Ending{Reason: "another one"}
	require.NoError(t, a.End(ctx, time.Minute, ended))
	found, _ = find(t, ctx, a, "00ff")
	require.Equal(t, held, found)

	absent := tunnelOf("a", 3)
	absent.ID, absent.Lost = "0100", &why
	require.NoError(t, a.End(ctx, time.Minute, absent))
	found, ok = find(t, ctx, b, "0100")
	require.True(t, ok)
	require.Equal(t, absent, found)

	mine, theirs := tunnelOf("a", 5), tunnelOf("b", 5)
	mine.ID, theirs.ID = "0200", "0300"
	require.Empty(t, hold(t, ctx, a, mine))
	require.Empty(t, hold(t, ctx, b, theirs))
	claimed := theirs
	mine.Lost, claimed.Owner, claimed.Lost = &why, "a", &why
	require.NoError(t, a.End(ctx, time.Minute, mine, claimed))
	found, _ = find(t, ctx, b, "0200")
	require.Equal(t, mine, found)
	found, _ = find(t, ctx, b, "0300")
	require.Equal(t, theirs, found, "another's is left alone")
}

func manyTunnels(t *testing.T, w *world) {
	s, ctx := w.open(), t.Context()
	var all []store.Tunnel
	for i := range 1200 {
		one := tunnelOf("a", 1)
		one.ID = name(i)
		all = append(all, one)
	}
	other := all[1100]
	other.Owner = "b"
	hold(t, ctx, s, other)
	require.Equal(t, []store.Tunnel{other}, hold(t, ctx, s, all...), "one is refused, the others are held")
	for _, i := range []int{0, 499, 500, 999, 1199} {
		found, ok := find(t, ctx, s, name(i))
		require.True(t, ok)
		require.Equal(t, all[i], found)
	}
	for i := range all {
		all[i].Lost = &store.Ending{Reason: "over"}
	}
	require.NoError(t, s.End(ctx, time.Minute, all...))
	require.Len(t, hold(t, ctx, s, all...), len(all))
	require.Empty(t, hold(t, ctx, s))
}

// Of a lane that its owner accepts and fences by others, all that saw the same epoch, exactly one wins.
func tunnelRaces(t *testing.T, w *world) {
	clients := []store.Store{w.open(), w.open(), w.open()}
	owners := 0
	for round := range 30 {
		id := name(round)
		first := tunnelOf("a", 1)
		first.ID = id
		hold(t, t.Context(), clients[0], first)
		var won atomic.Int32
		var owner atomic.Bool
		var group sync.WaitGroup
		group.Go(func() {
			next := first
			next.Epoch = 2
			refused, err := clients[0].Hold(t.Context(), time.Minute, next)
			if assert.NoError(t, err) && len(refused) == 0 {
				won.Add(1)
				owner.Store(true)
			}
		})
		for i := range 6 {
			group.Go(func() {
				_, fenced, err := clients[i%3].Fence(t.Context(), id, 1, ending(name(i)), time.Minute)
				if assert.NoError(t, err) && fenced {
					won.Add(1)
				}
			})
		}
		group.Wait()
		require.EqualValues(t, 1, won.Load())
		found, ok := find(t, t.Context(), clients[1], id)
		require.True(t, ok)
		if owner.Load() {
			owners++
			require.Nil(t, found.Lost)
			require.EqualValues(t, 2, found.Epoch)
		} else {
			require.NotNil(t, found.Lost)
			require.EqualValues(t, 1, found.Epoch)
		}
	}
	t.Logf("the owner won %d of 30", owners)
}

func circuits(t *testing.T, w *world) {
	a, b, ctx := w.open(), w.open(), t.Context()
	one := store.Circuit{Backend: "git", Open: true, By: "gw-1", Since: now(), Retry: now(), Failures: 5, Code: errs.OwnerGone, Changed: now()}
	two := store.Circuit{Backend: "db", Mode: "open", By: "admin", Since: now(), Retry: now(), Changed: now()}
	require.NoError(t, a.PutCircuit(ctx, one, time.Minute))
	require.NoError(t, b.PutCircuit(ctx, two, time.Minute))
	one.Open = false
	require.NoError(t, b.PutCircuit(ctx, one, time.Minute))
	list, err := a.Circuits(ctx)
	require.NoError(t, err)
	require.Equal(t, []store.Circuit{two, one}, list)
}

func probes(t *testing.T, w *world) {
	a, b, ctx := w.open(), w.open(), t.Context()
	claim := func(s store.Store, by string) bool {
		claimed, err := s.ClaimProbe(ctx, "git", by, time.Minute)
		require.NoError(t, err)
		return claimed
	}
	require.True(t, claim(a, "a"))
	require.False(t, claim(b, "b"))
	require.True(t, claim(a, "a"), "again")
	require.NoError(t, b.ReleaseProbe(ctx, "git", "b"))
	require.False(t, claim(b, "b"), "what one does not have one cannot release")
	require.NoError(t, a.ReleaseProbe(ctx, "git", "a"))
	require.True(t, claim(b, "b"))

	var claims atomic.Int32
	var group sync.WaitGroup
	for i := range 20 {
		group.Go(func() {
			claimed, err := []store.Store{a, b}[i%2].ClaimProbe(ctx, "db", name(i), time.Minute)
			if assert.NoError(t, err) && claimed {
				claims.Add(1)
			}
		})
	}
	group.Wait()
	require.EqualValues(t, 1, claims.Load())
}

func hostKeys(t *testing.T, w *world) {
	clients := []store.Store{w.open(), w.open(), w.open()}
	pinned := make([]string, 30)
	var group sync.WaitGroup
	for i := range pinned {
		group.Go(func() {
			var err error
			pinned[i], err = clients[i%3].PinHostKey(t.Context(), "10.0.0.1:22", "ssh-ed25519 "+name(i))
			assert.NoError(t, err)
		})
	}
	group.Wait()
	for _, key := range pinned {
		require.True(t, strings.HasPrefix(key, "ssh-ed25519 n0"))
		require.Equal(t, pinned[0], key)
	}
	other, err := clients[0].PinHostKey(t.Context(), "10.0.0.2:22", "ssh-ed25519 other")
	require.NoError(t, err)
	require.Equal(t, "ssh-ed25519 other", other)
}

func incarnation(t *testing.T, w *world) {
	a, err := w.open().Incarnation(t.Context())
	require.NoError(t, err)
	require.NotEmpty(t, a)
	b, err := w.open().Incarnation(t.Context())
	require.NoError(t, err)
	require.Equal(t, a, b)
}

func canceledAndClosed(t *testing.T, w *world) {
	s := w.open()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for op, call := range everything(s) {
		require.ErrorIs(t, call(ctx), errs.Canceled, op)
	}
	require.NoError(t, s.Close())
	require.NoError(t, s.Close(), "again")
	for op, call := range everything(s) {
		require.ErrorIs(t, call(t.Context()), errs.StoreUnavailable, op)
	}
	require.NoError(t, s.Watch(t.Context(), func(store.Event) {}))
}

// everything is a call of every method but Watch, Health and Close.
func everything(s store.Store) map[string]func(context.Context) error {
	one := tunnelOf("a", 1)
	slot := store.Slot{Tenant: "t", Kind: store.StreamSlots, ID: "1"}
	return map[string]func(context.Context) error{
		"announce": func(ctx context.Context) error { return s.Announce(ctx, store.Replica{ID: "a"}, time.Minute) },
		"withdraw": func(ctx context.Context) error { return s.Withdraw(ctx, "a") },
		"replicas": func(ctx context.Context) error { _, err := s.Replicas(ctx); return err },
		"hold":     func(ctx context.Context) error { _, err := s.Hold(ctx, time.Minute, one); return err },
		"find":     func(ctx context.Context) error { _, _, err := s.Find(ctx, one.ID); return err },
		"fence": func(ctx context.Context) error {
			_, _, err := s.Fence(ctx, one.ID, 1, ending("b"), time.Minute)
			return err
		},
		"end": func(ctx context.Context) error { return s.End(ctx, time.Minute, one) },
		"take": func(ctx context.Context) error {
			_, err := s.Take(ctx, store.Ask{Slot: slot, Lease: time.Minute})
			return err
		},
		"return":        func(ctx context.Context) error { return s.Return(ctx, slot) },
		"renew":         func(ctx context.Context) error { return s.Renew(ctx, time.Minute, slot) },
		"held":          func(ctx context.Context) error { _, _, err := s.Held(ctx, "t"); return err },
		"put_circuit":   func(ctx context.Context) error { return s.PutCircuit(ctx, store.Circuit{Backend: "b"}, time.Minute) },
		"circuits":      func(ctx context.Context) error { _, err := s.Circuits(ctx); return err },
		"claim_probe":   func(ctx context.Context) error { _, err := s.ClaimProbe(ctx, "b", "a", time.Minute); return err },
		"release_probe": func(ctx context.Context) error { return s.ReleaseProbe(ctx, "b", "a") },
		"put_revocations": func(ctx context.Context) error {
			return s.PutRevocations(ctx, store.Revocation{ID: "r", Until: time.Now().Add(time.Minute)})
		},
		"revocations":  func(ctx context.Context) error { _, _, err := s.Revocations(ctx, ""); return err },
		"pin_host_key": func(ctx context.Context) error { _, err := s.PinHostKey(ctx, "b:22", "k"); return err },
		"incarnation":  func(ctx context.Context) error { _, err := s.Incarnation(ctx); return err },
	}
}
