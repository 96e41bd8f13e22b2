package limit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"fairlead/shared/errs"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"))
}

type clock struct{ at atomic.Int64 }

func (c *clock) now() time.Time       { return time.Unix(1_800_000_000, c.at.Load()) }
func (c *clock) move(d time.Duration) { c.at.Add(int64(d)) }

func newLimiter(t testing.TB, cfg Config) (*Limiter, *clock) {
	c := &clock{}
	cfg.Now = c.now
	l, err := New(cfg)
	require.NoError(t, err)
	return l, c
}

func tiers(t Tier) map[string]Tier { return map[string]Tier{DefaultTier: t} }

// Verifies: R4.3
func TestOpenRatePerTenant(t *testing.T) {
	set := metrics.NewSet()
	l, clock := newLimiter(t, Config{Metrics: set, Tiers: map[string]Tier{
		DefaultTier: {OpensPerMinute: 100, Burst: 100},
		"small":     {OpensPerMinute: 60, Burst: 5},
	}})
	granted := func(tenant, tier string, tries int) (n int) {
		for range tries {
			if _, err := l.Open(tenant, tier); err == nil {
				n++
			} else {
				require.ErrorIs(t, err, errs.OpenRate)
			}
		}
		return n
	}
	require.Equal(t, 100, granted("a", "", 150))
	require.Equal(t, 5, granted("b", "small", 10), "another tenant has its own rate")
	require.Equal(t, 100, granted("c", "no such tier", 101))

	_, err := l.Open("a", "")
	require.Equal(t, 600*time.Millisecond, errs.From(err).RetryAfter.Truncate(10*time.Millisecond))
	status, body := errs.HTTP(err)
	var answer errs.Answer
	require.NoError(t, json.Unmarshal(body, &answer))
	require.Equal(t, 429, status)
	require.Equal(t, "FL-S411", answer.Code)
	require.InDelta(t, 600, answer.RetryAfterMS, 2)

	clock.move(errs.From(err).RetryAfter)
	require.Equal(t, 1, granted("a", "", 3), "the time that was told suffices")
	clock.move(30 * time.Second)
	require.Equal(t, 50, granted("a", "", 150))
	clock.move(time.Hour)
	require.Equal(t, 100, granted("a", "", 150), "never more than the burst")

	var text bytes.Buffer
	set.WritePrometheus(&text)
	require.Contains(t, text.String(), `fairlead_gateway_limit_refusals_total{limit="opens"} `)
}

func TestSlots(t *testing.T) {
	l, _ := newLimiter(t, Config{Tiers: map[string]Tier{
		DefaultTier: {Tunnels: 3, Streams: 2},
		"free":      {},
	}})
	cases := map[errs.Code]struct {
		take  func(tenant, tier string) (func(), error)
		limit int
	}{
		errs.TunnelLimit: {l.Tunnel, 3},
		errs.StreamLimit: {l.Open, 2},
	}
	for code, c := range cases {
		var releases []func()
		for range c.limit {
			release, err := c.take("a", "")
			require.NoError(t, err)
			releases = append(releases, release)
		}
		release, err := c.take("a", "")
		require.ErrorIs(t, err, code)
		require.Nil(t, release)
		require.Contains(t, err.Error(), fmt.Sprintf(`tenant "a" has %d`, c.limit))
		_, err = c.take("b", "")
		require.NoError(t, err, "another tenant has its own slots")
		for range 1000 {
			_, err = c.take("c", "free")
			require.NoError(t, err)
		}
		releases[0]()
		releases[0]() // gives back nothing more
		_, err = c.take("a", "")
		require.NoError(t, err)
		_, err = c.take("a", "")
		require.ErrorIs(t, err, code)
	}
	tunnels, streams := l.Usage("a")
	require.Equal(t, []int{3, 2}, []int{tunnels, streams})
	tunnels, streams = l.Usage("nobody")
	require.Equal(t, []int{0, 0}, []int{tunnels, streams})
}

func TestRefusalsTakeNothing(t *testing.T) {
	l, _ := newLimiter(t, Config{Tiers: tiers(Tier{OpensPerMinute: 2, Burst: 2, Streams: 1})})
	release, err := l.Open("a", "")
	require.NoError(t, err)
	for range 10 {
		_, err = l.Open("a", "")
		require.ErrorIs(t, err, errs.StreamLimit)
	}
	release()
	release, err = l.Open("a", "") // the rate was not used up by the refusals
	require.NoError(t, err)
	release()
	for range 10 {
		_, err = l.Open("a", "")
		require.ErrorIs(t, err, errs.OpenRate)
	}
	_, streams := l.Usage("a")
	require.Zero(t, streams)
}

func TestTiersChangeWhileTenantsHoldSlots(t *testing.T) {
	l, clock := newLimiter(t, Config{Tiers: map[string]Tier{DefaultTier: {OpensPerMinute: 60, Burst: 4, Streams: 2}, "gold": {OpensPerMinute: 600, Burst: 10}}})
	first, err := l.Open("a", "")
	require.NoError(t, err)
	_, err = l.Open("a", "")
	require.NoError(t, err)
	_, err = l.Open("a", "")
	require.ErrorIs(t, err, errs.StreamLimit)
	for range 8 {
		_, err = l.Open("a", "gold")
		require.NoError(t, err)
	}
	_, err = l.Open("a", "gold")
	require.ErrorIs(t, err, errs.OpenRate, "what was used of the rate carries over")
	clock.move(time.Second)
	for range 10 {
		_, err = l.Open("a", "gold")
		require.NoError(t, err, "the faster rate holds by now")
	}

	require.ErrorIs(t, l.SetTiers(map[string]Tier{"gold": {}}), errs.ConfigInvalid)
	require.ErrorIs(t, l.SetTiers(tiers(Tier{Streams: -1})), errs.ConfigInvalid)
	_, err = l.Open("a", "")
	require.ErrorIs(t, err, errs.StreamLimit, "a refused change changes nothing")
	require.NoError(t, l.SetTiers(tiers(Tier{Streams: 21})))
	_, err = l.Open("a", "")
	require.NoError(t, err)
	_, err = l.Open("a", "gold") // gone, so it counts as the default
	require.ErrorIs(t, err, errs.StreamLimit)
	first()
	_, err = l.Open("a", "")
	require.NoError(t, err)

	require.NoError(t, l.SetTiers(tiers(Tier{OpensPerMinute: 60, Burst: 3})))
	for range 3 { // who had no rate starts with a full one
		_, err = l.Open("a", "")
		require.NoError(t, err)
	}
	_, err = l.Open("a", "")
	require.ErrorIs(t, err, errs.OpenRate)
}

func TestTenantsAreBounded(t *testing.T) {
	l, clock := newLimiter(t, Config{MaxTenants: 8, Tiers: tiers(Tier{OpensPerMinute: 60, Burst: 2, Streams: 5})})
	release, err := l.Open("holder", "")
	require.NoError(t, err)
	for i := range 1000 {
		done, err := l.Open(fmt.Sprint("t", i), "")
		require.NoError(t, err)
		done()
		require.LessOrEqual(t, l.Tracked(), 8)
	}
	_, streams := l.Usage("holder")
	require.Equal(t, 1, streams, "one that holds slots is never forgotten")
	release()
	_, streams = l.Usage("holder")
	require.Zero(t, streams)

	// Who has used up its rate is kept while there are others that lose nothing.
	for range 2 {
		_, _ = l.Open("spender", "")
	}
	clock.move(100 * time.Millisecond)
	for i := range 7 { // each as it was before it came: these recover first
		done, err := l.Tunnel(fmt.Sprint("quiet", i), "")
		require.NoError(t, err)
		done()
	}
	for i := range 20 {
		done, err := l.Tunnel(fmt.Sprint("late", i), "")
		require.NoError(t, err)
		done()
	}
	_, err = l.Open("spender", "")
	require.ErrorIs(t, err, errs.OpenRate)
}

func TestTooManyTenantsWithSlots(t *testing.T) {
	l, _ := newLimiter(t, Config{MaxTenants: 2, Tiers: tiers(Tier{})})
	first, err := l.Tunnel("a", "")
	require.NoError(t, err)
	_, err = l.Open("b", "")
	require.NoError(t, err)
	for _, take := range []func(string, string) (func(), error){l.Open, l.Tunnel} {
		_, err = take("c", "")
		require.ErrorIs(t, err, errs.MemoryLimit)
	}
	first()
	_, err = l.Open("c", "")
	require.NoError(t, err)
	require.Equal(t, 2, l.Tracked())
}

func TestIdleTenantsAreForgotten(t *testing.T) {
	l, clock := newLimiter(t, Config{MaxTenants: 64, Tiers: tiers(Tier{OpensPerMinute: 60})})
	for i := range 20 {
		release, err := l.Open(fmt.Sprint("t", i), "")
		require.NoError(t, err)
		release()
	}
	require.Equal(t, 20, l.Tracked())
	clock.move(tenantIdle)
	for range 20 { // each newcomer takes the place of one that is idle
		_, err := l.Open(fmt.Sprint("u", l.now().UnixNano()), "")
		require.NoError(t, err)
		clock.move(time.Nanosecond)
	}
	require.Equal(t, 20, l.Tracked())
}

func TestNewRefusesBadConfiguration(t *testing.T) {
	for _, cfg := range []Config{{}, {Tiers: tiers(Tier{Burst: -1})}, {Tiers: tiers(Tier{}), MaxTenants: -1}, {Tiers: tiers(Tier{}), HandshakesPerMinute: -1}} {
		_, err := New(cfg)
		require.ErrorIs(t, err, errs.ConfigInvalid)
	}
}

// Whatever is taken and given back in whatever order, what is counted is what is held, and never above the limit.
func TestSlotsAreCountedExactly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l, err := New(Config{MaxTenants: 4, Tiers: tiers(Tier{Tunnels: 2, Streams: 3})})
		if err != nil {
			t.Fatal(err)
		}
		type slot struct {
			tenant, kind string
			release      func()
			open         bool
		}
		var slots []*slot
		held := map[string]int{}
		limits := map[string]int{"tunnel": 2, "stream": 3}
		t.Repeat(map[string]func(*rapid.T){
			"take": func(t *rapid.T) {
				s := &slot{tenant: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "tenant"), kind: rapid.SampledFrom([]string{"tunnel", "stream"}).Draw(t, "kind"), open: true}
				take := map[string]func(string, string) (func(), error){"tunnel": l.Tunnel, "stream": l.Open}[s.kind]
				var err error
				s.release, err = take(s.tenant, "")
				if (err == nil) != (held[s.tenant+s.kind] < limits[s.kind]) {
					t.Fatalf("%v with %d held", err, held[s.tenant+s.kind])
				}
				if err == nil {
					held[s.tenant+s.kind]++
					slots = append(slots, s)
				}
			},
			"release": func(t *rapid.T) {
				if len(slots) == 0 {
					return // nothing held
				}
				s := rapid.SampledFrom(slots).Draw(t, "slot")
				s.release()
				if s.open {
					s.open = false
					held[s.tenant+s.kind]--
				}
			},
			"": func(t *rapid.T) {
				for _, name := range []string{"a", "b", "c"} {
					tunnels, streams := l.Usage(name)
					if tunnels != held[name+"tunnel"] || streams != held[name+"stream"] {
						t.Fatalf("%s: %d tunnels, %d streams", name, tunnels, streams)
					}
				}
			},
		})
	})
}

func TestConcurrentOpensKeepTheLimits(t *testing.T) {
	l, _ := newLimiter(t, Config{MaxTenants: 4, Tiers: tiers(Tier{Streams: 7})})
	var workers sync.WaitGroup
	var now, most atomic.Int64
	for range 16 {
		workers.Go(func() {
			for range 500 {
				release, err := l.Open("a", "")
				if err != nil {
					continue
				}
				n := now.Add(1)
				for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
				}
				now.Add(-1)
				release()
				release()
			}
		})
		workers.Go(func() { // others come and go, and make the shard forget
			for i := range 200 {
				if release, err := l.Tunnel(fmt.Sprint("other", i%9), ""); err == nil {
					release()
				}
			}
		})
	}
	workers.Wait()
	require.LessOrEqual(t, most.Load(), int64(7))
	_, streams := l.Usage("a")
	require.Zero(t, streams)
}

func TestRealClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, err := New(Config{Tiers: tiers(Tier{OpensPerMinute: 60, Burst: 1})})
		require.NoError(t, err)
		_, err = l.Open("a", "")
		require.NoError(t, err)
		_, err = l.Open("a", "")
		require.ErrorIs(t, err, errs.OpenRate)
		<-time.After(errs.From(err).RetryAfter)
		_, err = l.Open("a", "")
		require.NoError(t, err)
	})
}

// goroutines of a benchmark; the hot path is shared by all tunnels.
const goroutines = 64

func BenchmarkOpen(b *testing.B) {
	names := make([]string, 1000)
	for i := range names {
		names[i] = fmt.Sprint("tenant/", i)
	}
	run := func(name string, tenants int) {
		b.Run(name, func(b *testing.B) {
			l, err := New(Config{Tiers: tiers(Tier{OpensPerMinute: 1 << 40, Burst: 1 << 40, Streams: 1 << 20})})
			require.NoError(b, err)
			b.ReportAllocs()
			b.SetParallelism(goroutines / runtime.GOMAXPROCS(0))
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
	run("one tenant", 1)
	run("1000 tenants", 1000)
}
