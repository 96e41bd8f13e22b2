package limit_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/stretchr/testify/require"

	"fairlead/gateway/limit"
	"fairlead/gateway/store"
	"fairlead/shared/errs"
	"fairlead/shared/testbed"
)

// counted is what replicas share, in a store.
type counted struct{ store.Limits }

func (c counted) Take(ctx context.Context, a limit.Ask) (limit.Grant, error) {
	g, err := c.Limits.Take(ctx, store.Ask{Slot: store.Slot(a.Slot), Limit: a.Limit, Rate: store.Rate(a.Rate), Lease: a.Lease})
	return limit.Grant(g), err
}

func (c counted) Return(ctx context.Context, slots ...limit.Slot) error {
	return c.Limits.Return(ctx, inStore(slots)...)
}

func (c counted) Renew(ctx context.Context, lease time.Duration, slots ...limit.Slot) error {
	return c.Limits.Renew(ctx, lease, inStore(slots)...)
}

func inStore(slots []limit.Slot) []store.Slot {
	list := make([]store.Slot, len(slots))
	for i, s := range slots {
		list[i] = store.Slot(s)
	}
	return list
}

// redisReplicas makes three replicas over one Redis.
func redisReplicas(t *testing.T, r *testbed.Redis, lease time.Duration, tier limit.Tier) (all []*limit.Limiter, stores []*store.Redis) {
	for i := range 3 {
		var made atomic.Pointer[limit.Limiter]
		s, err := store.NewRedis(store.RedisConfig{Addresses: []string{r.Addr()}, Timeout: 10 * time.Second, CallTimeout: 10 * time.Second,
			OnHealth: func(h store.Health) {
				if l := made.Load(); l != nil { // the first is told before there is a limiter
					l.SetDegraded(!h.Up)
				}
			}})
		require.NoError(t, err)
		l, err := limit.New(limit.Config{Shared: counted{s}, Replica: fmt.Sprint("gw-", i), Timeout: 10 * time.Second, Lease: lease,
			Tiers: map[string]limit.Tier{limit.DefaultTier: tier}, Metrics: metrics.NewSet()})
		require.NoError(t, err)
		made.Store(l)
		l.SetShare(3)
		l.SetDegraded(!s.Health().Up)
		ctx, cancel := context.WithCancel(context.Background())
		var running sync.WaitGroup
		running.Go(func() { _ = l.Run(ctx) })
		t.Cleanup(func() {
			cancel()
			running.Wait()
			require.NoError(t, s.Close())
		})
		all, stores = append(all, l), append(stores, s)
	}
	return all, stores
}

// flood takes at all replicas at once, and returns what was granted at each.
func flood(all []*limit.Limiter, take func(*limit.Limiter) (func(), error)) [][]func() {
	granted := make([][]func(), len(all))
	var callers sync.WaitGroup
	var mu sync.Mutex
	for i, l := range all {
		for range 8 {
			callers.Go(func() {
				for range 20 {
					if release, err := take(l); err == nil {
						mu.Lock()
						granted[i] = append(granted[i], release)
						mu.Unlock()
					}
				}
			})
		}
	}
	callers.Wait()
	return granted
}

func count(granted [][]func()) (n int) {
	for _, some := range granted {
		n += len(some)
	}
	return n
}

func giveBack(granted [][]func()) {
	for _, some := range granted {
		for _, release := range some {
			release()
		}
	}
}

// Three replicas over a Redis grant the limit and no more; without it their shares and no more; and when it is back, empty, they
// tell it what they hold.
//
// Verifies: R4.8
func TestReplicasOverRedis(t *testing.T) {
	r, err := testbed.StartRedis(t.Context(), testbed.RedisConfig{Dir: t.TempDir()})
	require.NoError(t, err)
	t.Cleanup(r.Stop)
	all, stores := redisReplicas(t, r, 9*time.Second, limit.Tier{OpensPerMinute: 1, Burst: 60, Streams: 30, Tunnels: 6})
	open := func(l *limit.Limiter) (func(), error) { return l.Open("a", "") }
	tunnel := func(l *limit.Limiter) (func(), error) { return l.Tunnel("a", "") }
	held := func(wantTunnels, wantStreams int) func() bool {
		return func() bool {
			inTunnels, inStreams, err := all[0].SharedUsage(t.Context(), "a")
			return err == nil && inTunnels == wantTunnels && inStreams == wantStreams
		}
	}

	opened, connected := flood(all, open), flood(all, tunnel)
	require.Equal(t, 30, count(opened))
	require.Equal(t, 6, count(connected))
	require.True(t, held(6, 30)())
	giveBack(opened)
	require.Eventually(t, held(6, 0), 30*time.Second, 10*time.Millisecond)
	more := 0
	for range 90 { // what is left of the burst, one after the other
		release, err := all[more%3].Open("a", "")
		if err != nil {
			require.ErrorIs(t, err, errs.OpenRate)
			break
		}
		more++
		release()
	}
	require.InDelta(t, 30, more, 2, "and 1 a minute")
	giveBack(connected)
	require.Eventually(t, held(0, 0), 30*time.Second, 10*time.Millisecond)

	r.Kill()
	for i, s := range stores {
		require.Eventually(t, func() bool {
			_, _, _ = all[i].SharedUsage(t.Context(), "a")
			return !s.Health().Up
		}, 30*time.Second, 10*time.Millisecond)
	}
	for i, some := range flood(all, func(l *limit.Limiter) (func(), error) { return l.Open("b", "") }) {
		require.Len(t, some, 10, "replica %d", i)
	}
	connected = flood(all, tunnel)
	for i, some := range connected {
		require.Len(t, some, 2, "replica %d", i)
	}

	require.NoError(t, r.Start(t.Context()))
	require.Eventually(t, held(6, 0), time.Minute, 10*time.Millisecond, "what is held is told")
	_, err = all[1].Tunnel("a", "")
	require.ErrorIs(t, err, errs.TunnelLimit)
	giveBack(connected)
	require.Eventually(t, held(0, 0), time.Minute, 10*time.Millisecond)
}
