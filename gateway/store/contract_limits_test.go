package store_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"fairlead/gateway/store"
)

func slot(tenant, kind, id string) store.Slot { return store.Slot{Tenant: tenant, Kind: kind, ID: id} }

func slots(t *testing.T, w *world) {
	a, b, ctx := w.open(), w.open(), t.Context()
	take := func(s store.Store, kind, id string) store.Grant {
		g, err := s.Take(ctx, store.Ask{Slot: slot("t", kind, id), Limit: 2, Lease: time.Minute})
		require.NoError(t, err)
		return g
	}
	held := func(tunnels, streams int) {
		t.Helper()
		haveTunnels, haveStreams, err := b.Held(ctx, "t")
		require.NoError(t, err)
		require.Equal(t, [2]int{tunnels, streams}, [2]int{haveTunnels, haveStreams})
	}
	held(0, 0)
	require.Equal(t, store.Grant{Granted: true, Held: 1}, take(a, store.StreamSlots, "1"))
	require.Equal(t, store.Grant{Granted: true, Held: 2}, take(b, store.StreamSlots, "2"))
	require.Equal(t, store.Grant{Full: true, Held: 2}, take(a, store.StreamSlots, "3"))
	require.Equal(t, store.Grant{Granted: true, Held: 2}, take(a, store.StreamSlots, "1"), "it is held already")
	require.Equal(t, store.Grant{Granted: true, Held: 1}, take(a, store.TunnelSlots, "1"), "another kind")
	held(1, 2)
	require.NoError(t, b.Return(ctx, slot("t", store.StreamSlots, "1"), slot("t", store.StreamSlots, "9"), slot("t", store.TunnelSlots, "1"), slot("u", store.TunnelSlots, "1")))
	require.NoError(t, b.Return(ctx))
	held(0, 1)
	require.Equal(t, store.Grant{Granted: true, Held: 2}, take(a, store.StreamSlots, "3"))
	require.NoError(t, a.Renew(ctx, time.Minute, slot("t", store.StreamSlots, "4"), slot("t", store.StreamSlots, "2"), slot("t", store.TunnelSlots, "5")))
	require.NoError(t, a.Renew(ctx, time.Minute))
	held(1, 3)
	require.Equal(t, store.Grant{Full: true, Held: 3}, take(a, store.StreamSlots, "5"))
	g, err := a.Take(ctx, store.Ask{Slot: slot("t", store.StreamSlots, "6"), Lease: time.Minute})
	require.NoError(t, err)
	require.Equal(t, store.Grant{Granted: true, Held: 4}, g, "no limit")

	var many []store.Slot
	for i := range 2500 {
		many = append(many, slot("many", store.StreamSlots, name(i)))
	}
	require.NoError(t, a.Renew(ctx, time.Minute, many...))
	_, streams, err := b.Held(ctx, "many")
	require.NoError(t, err)
	require.Equal(t, len(many), streams)
	require.NoError(t, b.Return(ctx, many[1:]...))
	_, streams, err = b.Held(ctx, "many")
	require.NoError(t, err)
	require.Equal(t, 1, streams)
}

func rates(t *testing.T, w *world) {
	s, ctx := w.open(), t.Context()
	n := 0
	take := func(limit int, rate store.Rate) store.Grant {
		n++
		g, err := s.Take(ctx, store.Ask{Slot: slot("t", store.StreamSlots, name(n)), Limit: limit, Rate: rate, Lease: time.Minute})
		require.NoError(t, err)
		return g
	}
	slow := store.Rate{Tier: "slow", PerMinute: 1, Burst: 3}
	for left := 2; left >= 0; left-- {
		g := take(0, slow)
		require.True(t, g.Granted)
		require.Equal(t, left, g.Remaining)
		require.Equal(t, left == 0, g.Wait > 0)
		require.InDelta(t, (3-left)*60, g.Reset.Seconds(), 10)
	}
	g := take(0, slow)
	require.False(t, g.Granted)
	require.False(t, g.Full)
	require.Equal(t, 3, g.Held, "a refusal takes nothing")
	require.Zero(t, g.Remaining)
	require.InDelta(t, 60, g.Wait.Seconds(), 10)
	require.Zero(t, g.Wait%time.Millisecond)

	wide := store.Rate{Tier: "wide", PerMinute: 1, Burst: 5}
	g = take(3, wide)
	require.Equal(t, [3]bool{false, true}, [3]bool{g.Granted, g.Full})
	require.Equal(t, 2, g.Remaining, "opens of one tier count in all")
	g = take(4, wide)
	require.True(t, g.Granted)
	require.Equal(t, 1, g.Remaining)
	wide.Burst = 7
	require.Equal(t, 2, take(0, wide).Remaining, "what was used carries over when a tier changes")
	require.True(t, take(0, store.Rate{Tier: "free"}).Granted, "a tier without a rate")
	require.Equal(t, 1, take(0, wide).Remaining)

	fast := store.Rate{Tier: "fast", PerMinute: 60_000, Burst: 1}
	var waited time.Duration
	require.Eventually(t, func() bool {
		n++
		g, err := s.Take(ctx, store.Ask{Slot: slot("u", store.StreamSlots, "1"), Rate: fast, Lease: time.Minute})
		waited = g.Wait
		return err == nil && g.Granted && n > 20
	}, patience, often, "opens come back")
	require.LessOrEqual(t, waited, 3*time.Millisecond)
}

// Redis and Memory answer alike, whatever tiers a tenant names.
func takesLikeMemory(t *testing.T, w *world) {
	s := w.open()
	round := 0
	rapid.Check(t, func(t *rapid.T) {
		round++
		model := store.NewMemory(store.MemoryConfig{})
		var rates []store.Rate
		for i := range 4 {
			rates = append(rates, store.Rate{Tier: name(i), PerMinute: rapid.IntRange(0, 4).Draw(t, "rate"), Burst: rapid.IntRange(1, 9).Draw(t, "burst")})
		}
		for range rapid.IntRange(1, 25).Draw(t, "takes") {
			ask := store.Ask{
				Slot:  slot("tenant-"+name(round), store.StreamSlots, name(rapid.IntRange(0, 20).Draw(t, "slot"))),
				Limit: rapid.IntRange(0, 12).Draw(t, "limit"), Rate: rapid.SampledFrom(rates).Draw(t, "tier"), Lease: time.Minute,
			}
			if rapid.IntRange(0, 9).Draw(t, "change") == 0 {
				ask.Rate.Burst++
			}
			want, err := model.Take(t.Context(), ask)
			require.NoError(t, err)
			got, err := s.Take(t.Context(), ask)
			require.NoError(t, err)
			require.InDelta(t, want.Wait.Seconds(), got.Wait.Seconds(), 10)
			require.InDelta(t, want.Reset.Seconds(), got.Reset.Seconds(), 10)
			want.Wait, want.Reset, got.Wait, got.Reset = 0, 0, 0, 0
			require.Equal(t, want, got, "%+v", ask)
		}
	})
}

// takesAtOnce: however many ask, no more than the limit, and no less, is granted.
func takesAtOnce(t *testing.T, w *world) {
	clients := []store.Store{w.open(), w.open(), w.open()}
	ctx := t.Context()
	run := func(tenant string, limit int, rate store.Rate) int {
		var granted atomic.Int32
		var group sync.WaitGroup
		for i := range 50 {
			group.Go(func() {
				for j := range 4 {
					g, err := clients[(i+j)%3].Take(ctx, store.Ask{Slot: slot(tenant, store.StreamSlots, name(i*4+j)), Limit: limit, Rate: rate, Lease: time.Minute})
					if assert.NoError(t, err) && g.Granted {
						granted.Add(1)
					}
				}
			})
		}
		group.Wait()
		return int(granted.Load())
	}
	require.Equal(t, 40, run("limit", 40, store.Rate{}))
	_, streams, err := clients[0].Held(ctx, "limit")
	require.NoError(t, err)
	require.Equal(t, 40, streams)
	began := time.Now()
	granted := run("rate", 0, store.Rate{Tier: "a", PerMinute: 1, Burst: 35})
	require.GreaterOrEqual(t, granted, 35)
	require.LessOrEqual(t, granted, 35+int(time.Since(began).Minutes()))
	require.Equal(t, 20, run("both", 20, store.Rate{Tier: "a", PerMinute: 1, Burst: 35}))
}
