package limit

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

// All replicas together grant what one would: not one tunnel, stream or open more under a flood on all of them, and all of it.
//
// Verifies: R4.8
func TestReplicasGrantTheLimitTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, all := newReplicas(t, 3, Config{Tiers: tiers(Tier{Tunnels: 5, Streams: 7})})
		for k, take := range map[kind]func(*replica) (func(), error){
			tunnels: func(r *replica) (func(), error) { return r.Tunnel("a", "") },
			streams: func(r *replica) (func(), error) { return r.Open("a", "") },
		} {
			limit, code := 7, errs.StreamLimit
			if k == tunnels {
				limit, code = 5, errs.TunnelLimit
			}
			for range 3 { // what is given back is granted again
				releases := make(chan func(), 1000)
				var wrong atomic.Int64
				var flood sync.WaitGroup
				for i := range 60 {
					flood.Go(func() {
						for range 10 {
							release, err := take(all[i%3])
							if err == nil {
								releases <- release
							} else if errs.CodeOf(err) != code {
								wrong.Add(1)
							}
						}
					})
				}
				flood.Wait()
				close(releases)
				require.Len(t, releases, limit)
				require.Zero(t, wrong.Load())
				for release := range releases {
					release()
				}
				<-time.After(fullFor) // for who was refused
			}
		}
		_, err := all[0].Open("b", "")
		require.NoError(t, err)
		inTunnels, inStreams, err := all[2].SharedUsage(t.Context(), "b")
		require.NoError(t, err)
		require.Equal(t, []int{0, 1}, []int{inTunnels, inStreams}, "another replica sees it")
	})
}

// Verifies: R4.3
func TestReplicasShareTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, all := newReplicas(t, 3, Config{Tiers: tiers(Tier{OpensPerMinute: 60, Burst: 10})})
		granted := func() (n int) {
			for i := range 60 {
				if release, err := all[i%3].Open("a", ""); err == nil {
					n++
					release()
				}
			}
			return n
		}
		require.Equal(t, 10, granted())
		<-time.After(5 * time.Second)
		require.Equal(t, 5, granted())

		_, err := all[1].Open("a", "")
		e := errs.From(err)
		require.Equal(t, errs.OpenRate, e.Code)
		require.Equal(t, errs.Quota{Limit: 10, ResetMS: 10_000}, *e.Quota)
		require.Equal(t, time.Second+time.Millisecond, e.RetryAfter)
		takes := all[1].sent.takes.Load()
		for range 1000 {
			_, err := all[1].Open("a", "")
			require.ErrorIs(t, err, errs.OpenRate)
		}
		require.Equal(t, takes, all[1].sent.takes.Load(), "who is told to wait costs no round trip")
		<-time.After(e.RetryAfter)
		_, err = all[1].Open("a", "")
		require.NoError(t, err, "the time that was told suffices")
		require.EqualValues(t, 0, all[1].Standing("a", "").Remaining)
		require.EqualValues(t, 10, all[1].Standing("a", "").Limit)

		<-time.After(3 * time.Second)
		_, err = all[2].Open("a", "")
		require.NoError(t, err)
		require.EqualValues(t, 2, all[2].Standing("a", "").Remaining, "of what all replicas have left")
	})
}

func TestRefusalsOfAllReplicasTellQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, all := newReplicas(t, 2, Config{Tiers: tiers(Tier{Tunnels: 3})})
		releases, _ := takeAll(all[0].Tunnel, "a")
		require.Len(t, releases, 3)
		_, err := all[1].Tunnel("a", "")
		e := errs.From(err)
		require.Equal(t, errs.TunnelLimit, e.Code)
		require.Contains(t, err.Error(), `tenant "a" has 3 tunnels, of 3 that its tier allows`)
		require.Equal(t, errs.Quota{Limit: 3}, *e.Quota)
		require.GreaterOrEqual(t, e.RetryAfter, tunnelRetry/2)
		for range 1000 {
			_, err = all[1].Tunnel("a", "")
			require.ErrorIs(t, err, errs.TunnelLimit)
		}
		require.EqualValues(t, 1, all[1].sent.takes.Load(), "a flood is cheap also where the tenant holds nothing")
		releases[0]()
		<-time.After(fullFor)
		_, err = all[1].Tunnel("a", "")
		require.NoError(t, err)
		_, err = all[0].Tunnel("a", "")
		require.ErrorIs(t, err, errs.TunnelLimit)
	})
}

func TestWhoHasNoLimitCostsNoRoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := map[string]Tier{DefaultTier: {OpensPerMinute: 1, Burst: 1, Tunnels: 1, Streams: 1}, "free": {}}
		c, replicas := newReplicas(t, 1, Config{Tiers: all, Exempt: []Exemption{{Tenants: []string{"ops"}}, {Tenants: []string{"batch"}, Limits: []string{Opens, Streams}}}})
		r := replicas[0]
		var releases []func()
		for range 20 {
			for _, who := range [][2]string{{"ops", ""}, {"a", "free"}, {"batch", ""}} {
				release, err := r.Open(who[0], who[1])
				require.NoError(t, err)
				releases = append(releases, release)
			}
			release, err := r.Tunnel("ops", "")
			require.NoError(t, err)
			releases = append(releases, release)
		}
		releaseAll(releases)
		synctest.Wait()
		require.Zero(t, r.sent.takes.Load())
		require.Zero(t, r.sent.returns.Load())

		// Those that are open when limits come count from the next renewal on.
		_, err := r.Open("a", "free")
		require.NoError(t, err)
		require.NoError(t, r.Apply(map[string]Tier{DefaultTier: {Streams: 9}, "free": {Streams: 5}}, nil))
		require.Zero(t, c.held("a")[streams])
		<-time.After(defaultLease / 3)
		require.Equal(t, 1, c.held("a")[streams])
	})
}

// Many calls of one tenant are under way at once.
func TestCallsOfATenantDoNotWaitForEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, all := newReplicas(t, 1, Config{Tiers: tiers(Tier{OpensPerMinute: 6000, Burst: 1000, Streams: 1000})})
		r := all[0]
		r.latency = 10 * time.Millisecond
		start := time.Now()
		var callers sync.WaitGroup
		var failed atomic.Int64
		for range 500 {
			callers.Go(func() {
				if _, err := r.Open("a", ""); err != nil {
					failed.Add(1)
				}
			})
		}
		callers.Wait()
		require.Zero(t, failed.Load())
		require.Equal(t, 20*time.Millisecond, time.Since(start), "one round trip")
		_, open := r.Usage("a")
		require.Equal(t, 500, open)
	})
}

// A hostile tenant, or thousands of them: no more memory than is allowed, and another tenant's opens cost what they always
// do.
//
// Verifies: R4.1, R10.7
func TestHostileTenantsAndOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const crowd = 2000
		c, all := newReplicas(t, 3, Config{MaxTenants: 256, Tiers: tiers(Tier{OpensPerMinute: 60, Burst: 20, Streams: 10, Tunnels: 2})})
		holders, _ := takeAll(all[0].Open, "hostile")
		require.Len(t, holders, 10)
		var opened, asked int64
		for i := range crowd {
			for _, r := range all {
				_, err := r.Open("hostile", "")
				require.ErrorIs(t, err, errs.StreamLimit)
				if release, err := r.Open(fmt.Sprint("crowd/", i), ""); err == nil {
					release()
				}
				require.LessOrEqual(t, r.Tracked(), 256)
			}
			if i%(crowd/5) == 0 {
				r := all[i%3]
				before := r.sent.takes.Load()
				release, err := r.Open("other", "")
				require.NoError(t, err)
				asked += r.sent.takes.Load() - before
				opened++
				release()
			}
		}
		require.Equal(t, opened, asked, "one round trip for each")
		require.LessOrEqual(t, all[1].sent.takes.Load()+all[2].sent.takes.Load(), int64(2*crowd+10), "the hostile tenant costs next to none")
		releaseAll(holders)
		synctest.Wait()
		require.Equal(t, [kinds]int{}, c.held(""))
		for _, r := range all {
			require.Zero(t, r.shared.returns.waiting.Load())
			require.Empty(t, r.shared.returns.tenants)
		}
	})
}

func TestNewRefusesBadSharing(t *testing.T) {
	for _, cfg := range []Config{{Timeout: -1}, {Lease: -1}} {
		cfg.Tiers = tiers(Tier{})
		_, err := New(cfg)
		require.ErrorIs(t, err, errs.ConfigInvalid)
	}
	l, _ := newLimiter(t, Config{Tiers: tiers(Tier{Tunnels: 2})}) // nobody shares: nothing changes
	l.SetShare(3)
	l.SetDegraded(true)
	l.Restore()
	releases, _ := takeAll(l.Tunnel, "a")
	require.Len(t, releases, 2)
	inTunnels, _, err := l.SharedUsage(t.Context(), "a")
	require.NoError(t, err)
	require.Equal(t, 2, inTunnels)
}

func text(r *replica) string {
	var b bytes.Buffer
	r.set.WritePrometheus(&b)
	return b.String()
}

// instant grants everything at once.
type instant struct{}

func (instant) Take(context.Context, Ask) (Grant, error)            { return Grant{Granted: true}, nil }
func (instant) Return(context.Context, ...Slot) error               { return nil }
func (instant) Renew(context.Context, time.Duration, ...Slot) error { return nil }
func (instant) Held(context.Context, string) (int, int, error)      { return 0, 0, nil }

func BenchmarkOpenShared(b *testing.B) {
	run := func(name string, degraded bool, tenants int) {
		b.Run(name, func(b *testing.B) {
			l, err := New(Config{Shared: instant{}, Tiers: tiers(Tier{OpensPerMinute: 1 << 40, Burst: 1 << 40, Streams: 1 << 20})})
			require.NoError(b, err)
			ctx, cancel := context.WithCancel(b.Context())
			var running sync.WaitGroup
			running.Go(func() { _ = l.Run(ctx) })
			defer running.Wait()
			defer cancel()
			l.SetDegraded(degraded)
			names := make([]string, tenants)
			for i := range names {
				names[i] = fmt.Sprint("tenant/", i)
			}
			b.ReportAllocs()
			b.SetParallelism(goroutines / runtime.GOMAXPROCS(0))
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for i := 0; pb.Next(); i++ {
					release, err := l.Open(names[i%tenants], DefaultTier)
					if err != nil {
						b.Error(err)
						return
					}
					release()
				}
			})
		})
	}
	run("one tenant", false, 1)
	run("1000 tenants", false, 1000)
	run("alone", true, 1000)
}
