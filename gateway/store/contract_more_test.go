package store_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"fairlead/gateway/store"
	"fairlead/shared/errs"
)

func revocations(t *testing.T, w *world) {
	a, b, ctx := w.open(), w.open(), t.Context()
	list := func(s store.Store, known string) ([]store.Revocation, string) {
		list, version, err := s.Revocations(ctx, known)
		require.NoError(t, err)
		return list, version
	}
	none, empty := list(a, "")
	require.Empty(t, none)
	none, again := list(a, empty)
	require.Nil(t, none)
	require.Equal(t, empty, again)

	until := now().Add(time.Hour)
	one := store.Revocation{ID: "1", Until: until, Data: []byte{0, 1, '\n', 255}}
	two := store.Revocation{ID: "2", Until: until, Data: bytes.Repeat([]byte("x"), 4<<10)}
	require.NoError(t, a.PutRevocations(ctx, two, one, store.Revocation{ID: "3", Until: now().Add(-time.Second)}))
	all, version := list(b, empty)
	require.Equal(t, []store.Revocation{one, two}, all)
	require.NotEqual(t, empty, version)
	none, again = list(a, version)
	require.Nil(t, none)
	require.Equal(t, version, again)
	require.NoError(t, b.PutRevocations(ctx, one, two))
	_, again = list(a, version)
	require.Equal(t, version, again, "nothing has changed")

	removed := one
	removed.Removed = true
	require.NoError(t, b.PutRevocations(ctx, removed))
	require.NoError(t, a.PutRevocations(ctx, one))
	all, again = list(a, version)
	require.Equal(t, []store.Revocation{removed, two}, all, "what was removed stays so")
	require.NotEqual(t, version, again)
	two.Data = []byte("other")
	require.NoError(t, a.PutRevocations(ctx, two))
	require.NoError(t, a.PutRevocations(ctx))
	all, _ = list(b, again)
	require.Equal(t, []store.Revocation{removed, two}, all)
}

func manyRevocations(t *testing.T, w *world) {
	s, until := w.open(), now().Add(time.Hour)
	var all []store.Revocation
	for i := range store.MaxRevocations {
		all = append(all, store.Revocation{ID: fmt.Sprintf("%05d", i), Until: until})
	}
	require.NoError(t, s.PutRevocations(t.Context(), all...))
	require.ErrorIs(t, s.PutRevocations(t.Context(), store.Revocation{ID: "more", Until: until}), errs.StoreUnavailable)
	all[7].Removed = true
	require.NoError(t, s.PutRevocations(t.Context(), all[7]), "those that are there can be changed")
	list, _, err := s.Revocations(t.Context(), "")
	require.NoError(t, err)
	require.Len(t, list, store.MaxRevocations)
	require.True(t, list[7].Removed)
	require.True(t, s.Health().Up)
}

// watch gathers events until the test ends.
func watch(t *testing.T, s store.Store) (events func() []store.Event) {
	var mu sync.Mutex
	var got []store.Event
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- s.Watch(ctx, func(e store.Event) {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, e)
		})
	}()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
	return func() []store.Event {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(got)
	}
}

// watching waits until events of others are seen: from then on none is missed.
func watching(t *testing.T, s store.Store, events ...func() []store.Event) {
	from := map[int]int{}
	for i, seen := range events {
		from[i] = len(seen())
	}
	n := 0
	for i, seen := range events {
		require.Eventually(t, func() bool {
			n++
			if err := s.PutCircuit(t.Context(), store.Circuit{Backend: "warm", Failures: n, Changed: now()}, time.Minute); err != nil {
				return false
			}
			return slices.Contains(seen()[from[i]:], store.Event{Kind: store.CircuitChanged, Name: "warm"})
		}, patience, often)
	}
}

func events(t *testing.T, w *world) {
	a, b, ctx := w.open(), w.open(), t.Context()
	seenA, seenB := watch(t, a), watch(t, b)
	watching(t, a, seenA, seenB)
	replica := store.Replica{ID: "gw/1\"\n", Name: "gw"}
	require.NoError(t, a.Announce(ctx, replica, time.Minute))
	replica.Tunnels = 5
	require.NoError(t, a.Announce(ctx, replica, time.Minute), "of which nobody needs to know")
	replica.Draining = true
	require.NoError(t, a.Announce(ctx, replica, time.Minute))
	require.NoError(t, a.Withdraw(ctx, replica.ID))
	require.NoError(t, a.Withdraw(ctx, replica.ID))
	hold(t, ctx, a, tunnelOf("a", 1))
	_, _, err := b.Fence(ctx, "00ff", 2, ending("b"), time.Minute)
	require.NoError(t, err)
	_, _, err = b.Fence(ctx, "00ff", 1, ending("b"), time.Minute)
	require.NoError(t, err)
	revoked := store.Revocation{ID: "r", Until: now().Add(time.Hour)}
	require.NoError(t, a.PutRevocations(ctx, revoked))
	require.NoError(t, b.PutRevocations(ctx, revoked))
	circuit := store.Circuit{Backend: "git", Open: true, Changed: now()}
	require.NoError(t, b.PutCircuit(ctx, circuit, time.Minute))
	require.NoError(t, b.PutCircuit(ctx, circuit, time.Minute))
	require.NoError(t, b.PutCircuit(ctx, store.Circuit{Backend: "last"}, time.Minute))
	for _, seen := range []func() []store.Event{seenA, seenB} {
		var got []store.Event
		require.Eventually(t, func() bool {
			got = slices.DeleteFunc(seen(), func(e store.Event) bool { return e.Name == "warm" })
			return len(got) > 0 && got[len(got)-1].Name == "last"
		}, patience, often)
		require.Equal(t, []store.Event{
			{Kind: store.ReplicaChanged, Name: replica.ID}, {Kind: store.ReplicaChanged, Name: replica.ID}, {Kind: store.ReplicaChanged, Name: replica.ID},
			{Kind: store.TunnelFenced, Name: "00ff"}, {Kind: store.RevocationChanged, Name: "r"},
			{Kind: store.CircuitChanged, Name: "git"}, {Kind: store.CircuitChanged, Name: "last"},
		}, got)
	}
}

// names: whatever they are made of, they are told apart and come back as they were.
func names(t *testing.T, w *world) {
	s, ctx := w.open(), t.Context()
	hostile := []string{
		"", " ", "a", "A", "{a}", "}{", "a:b", "a:", ":a", "*", "a\nb", "a\r\nDEL x", "a\x00b", "a\x00", "\"", "\\", "ä", "a\u0308", "日本", "</script>",
		strings.Repeat("x", 64), strings.Repeat("x", 65), strings.Repeat("x", 10_000), strings.Repeat("x", 10_001),
		"~" + strings.Repeat("0", 43), "'); redis.call('flushall') --", "streams", "00ff:streams", "%s%d", "=a",
	}
	for i, n := range hostile {
		require.NoError(t, s.Announce(ctx, store.Replica{ID: n, Name: n}, time.Minute))
		one := tunnelOf(n, 1)
		one.ID, one.Tenant, one.Subject, one.Streams = n, n, n, i
		require.Empty(t, hold(t, ctx, s, one), "%.20q", n)
		g, err := s.Take(ctx, store.Ask{Slot: slot(n, store.StreamSlots, n), Rate: store.Rate{Tier: n, PerMinute: 1, Burst: 2}, Lease: time.Minute})
		require.NoError(t, err)
		require.Equal(t, [3]int{1, 1, 1}, [3]int{g.Held, g.Remaining, len(fmt.Sprint(g.Granted)) - 3}, "%.20q", n)
		require.NoError(t, s.Renew(ctx, time.Minute, slot("all", store.TunnelSlots, n)))
		require.NoError(t, s.PutCircuit(ctx, store.Circuit{Backend: n, Failures: i}, time.Minute))
		claimed, err := s.ClaimProbe(ctx, n, n, time.Minute)
		require.NoError(t, err)
		require.True(t, claimed, "%.20q", n)
		require.NoError(t, s.PutRevocations(ctx, store.Revocation{ID: n, Until: now().Add(time.Minute)}))
		pinned, err := s.PinHostKey(ctx, n, name(i))
		require.NoError(t, err)
		require.Equal(t, name(i), pinned)
	}
	for i, n := range hostile {
		found, ok := find(t, ctx, s, n)
		require.True(t, ok)
		require.Equal(t, [4]string{n, n, n, n}, [4]string{found.ID, found.Owner, found.Tenant, found.Subject})
		require.Equal(t, i, found.Streams)
	}
	tunnels, _, err := s.Held(ctx, "all")
	require.NoError(t, err)
	require.Equal(t, len(hostile), tunnels)
	all, err := s.Replicas(ctx)
	require.NoError(t, err)
	require.Len(t, all, len(hostile))
	open, err := s.Circuits(ctx)
	require.NoError(t, err)
	require.Len(t, open, len(hostile))
	for _, c := range open {
		require.Equal(t, hostile[c.Failures], c.Backend)
	}
	revoked, _, err := s.Revocations(ctx, "")
	require.NoError(t, err)
	require.Len(t, revoked, len(hostile))
	for _, bytes := range []string{"\xff", "\xfe", "\xff\xfe"} { // not UTF-8: told apart at least
		g, err := s.Take(ctx, store.Ask{Slot: slot(bytes, store.StreamSlots, bytes), Limit: 1, Lease: time.Minute})
		require.NoError(t, err)
		require.True(t, g.Granted)
	}
}

func expiry(t *testing.T, w *world) {
	s, ctx := w.open(), t.Context()
	gone := func(what string, is func() bool) {
		t.Helper()
		require.Eventually(t, is, patience, often, what)
	}
	require.NoError(t, s.Announce(ctx, store.Replica{ID: "stays"}, time.Minute))
	require.NoError(t, s.Announce(ctx, store.Replica{ID: "goes"}, brief))
	gone("a replica", func() bool {
		list, err := s.Replicas(ctx)
		return err == nil && len(list) == 1 && list[0].ID == "stays"
	})
	_, err := s.Hold(ctx, brief, tunnelOf("a", 2))
	require.NoError(t, err)
	gone("a tunnel", func() bool { _, ok := find(t, ctx, s, "00ff"); return !ok })
	require.Empty(t, hold(t, ctx, s, tunnelOf("b", 1)), "nobody remembers the other")
	_, fenced, err := s.Fence(ctx, "00ff", 1, ending("b"), brief)
	require.NoError(t, err)
	require.True(t, fenced)
	gone("a lost tunnel", func() bool { _, ok := find(t, ctx, s, "00ff"); return !ok })

	for i, lease := range []time.Duration{time.Minute, brief} {
		g, err := s.Take(ctx, store.Ask{Slot: slot("t", store.StreamSlots, name(i)), Limit: 2, Lease: lease})
		require.NoError(t, err)
		require.True(t, g.Granted)
	}
	gone("a slot", func() bool {
		g, err := s.Take(ctx, store.Ask{Slot: slot("t", store.StreamSlots, "next"), Limit: 2, Lease: time.Minute})
		return err == nil && g.Granted
	})
	require.NoError(t, s.Renew(ctx, brief, slot("t", store.TunnelSlots, "1")))
	gone("a renewed slot", func() bool {
		tunnels, streams, err := s.Held(ctx, "t")
		return err == nil && tunnels == 0 && streams == 2
	})
	require.NoError(t, s.PutCircuit(ctx, store.Circuit{Backend: "b"}, brief))
	gone("a circuit", func() bool { list, err := s.Circuits(ctx); return err == nil && len(list) == 0 })
	claimed, err := s.ClaimProbe(ctx, "b", "a", brief)
	require.NoError(t, err)
	require.True(t, claimed)
	gone("a claim", func() bool { claimed, err := s.ClaimProbe(ctx, "b", "b", time.Minute); return err == nil && claimed })
	require.NoError(t, s.PutRevocations(ctx, store.Revocation{ID: "1", Until: time.Now().Add(brief)}, store.Revocation{ID: "2", Until: time.Now().Add(time.Hour)}))
	gone("a revocation", func() bool {
		list, _, err := s.Revocations(ctx, "")
		return err == nil && len(list) == 1 && list[0].ID == "2"
	})
}

// tunnelModel compares with what Tunnels says, in its simplest form.
func tunnelModel(t *testing.T, w *world) {
	clients := []store.Store{w.open(), w.open()}
	round := 0
	rapid.Check(t, func(t *rapid.T) {
		round++
		ctx := t.Context()
		model := map[string]store.Tunnel{}
		for range rapid.IntRange(1, 20).Draw(t, "steps") {
			s := rapid.SampledFrom(clients).Draw(t, "client")
			id := fmt.Sprintf("%d-%d", round, rapid.IntRange(0, 1).Draw(t, "id"))
			one := tunnelOf(rapid.SampledFrom([]string{"a", "b"}).Draw(t, "owner"), rapid.Uint64Range(0, 4).Draw(t, "epoch"))
			one.ID = id
			was, there := model[id]
			switch rapid.IntRange(0, 3).Draw(t, "what") {
			case 0:
				refused := hold(t, ctx, s, one)
				if there && (was.Lost != nil || was.Owner != one.Owner || was.Epoch > one.Epoch) {
					require.Equal(t, []store.Tunnel{was}, refused)
				} else {
					require.Empty(t, refused)
					model[id] = one
				}
			case 1:
				why := ending(name(rapid.IntRange(0, 99).Draw(t, "by")))
				got, fenced, err := s.Fence(ctx, id, one.Epoch, why, time.Minute)
				require.NoError(t, err)
				require.Equal(t, there && was.Lost == nil && was.Epoch == one.Epoch, fenced)
				if fenced {
					was.Lost = &why
					model[id] = was
				}
				require.Equal(t, was, got)
			case 2:
				one.Lost = &store.Ending{Code: errs.DrainEnded, By: one.Owner, At: now()}
				require.NoError(t, s.End(ctx, time.Minute, one))
				if !there || was.Lost == nil && was.Owner == one.Owner {
					one.Epoch = max(one.Epoch, was.Epoch)
					model[id] = one
				}
			}
			got, ok := find(t, ctx, s, id)
			require.Equal(t, len(model[id].ID) > 0, ok)
			require.Equal(t, model[id], got)
			require.GreaterOrEqual(t, got.Epoch, was.Epoch)
		}
	})
}
