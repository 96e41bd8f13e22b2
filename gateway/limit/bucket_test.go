package limit

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"fairlead/shared/errs"
)

// grant is an open that was granted.
type grant struct {
	tier string
	at   time.Time
}

// atMost says how many opens a tier alone gives within d, at most.
func atMost(t Tier, d time.Duration) float64 {
	return float64(t.Burst) + float64(t.OpensPerMinute)*d.Minutes() + 1e-6
}

// Whatever tiers the tokens of a tenant name, in whatever order: in no window are there more opens than one tier allows
// that was named, nor more with tokens of one tier than that tier allows; and who is told to wait is served after it.
//
// Verifies: R4.3
func TestTokensOfSeveralTiersGainNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		names := []string{DefaultTier, "silver", "gold"}
		all := map[string]Tier{}
		for _, name := range names {
			all[name] = Tier{OpensPerMinute: rapid.IntRange(1, 600).Draw(t, "rate"), Burst: rapid.IntRange(1, 30).Draw(t, "burst")}
		}
		c := &clock{}
		l, err := New(Config{Tiers: all, Now: c.now})
		if err != nil {
			t.Fatal(err)
		}
		var grants []grant
		for range rapid.IntRange(1, 80).Draw(t, "rounds") {
			name := rapid.SampledFrom(names).Draw(t, "tier")
			for range rapid.IntRange(1, 12).Draw(t, "opens") {
				if _, err := l.Open("a", name); err == nil {
					grants = append(grants, grant{name, c.now()})
				}
			}
			c.move(time.Duration(rapid.IntRange(0, 3000).Draw(t, "pause")) * time.Millisecond)
		}
		named := map[string]bool{}
		for i, last := range grants {
			named[last.tier] = true
			total, own := 0, 0
			for j := i; j >= 0; j-- {
				total++
				if grants[j].tier == last.tier {
					own++
				}
				window := last.at.Sub(grants[j].at)
				best := 0.0
				for name := range named {
					best = max(best, atMost(all[name], window))
				}
				if float64(total) > best {
					t.Fatalf("%d opens within %v, where the best tier of %v gives %.1f", total, window, all, best)
				}
				if most := atMost(all[last.tier], window); float64(own) > most {
					t.Fatalf("%d opens of %s within %v, where it gives %.1f", own, last.tier, window, most)
				}
			}
		}
		for _, name := range names {
			var err error
			for range 31 { // a full burst, and one
				if _, err = l.Open("a", name); err != nil {
					break
				}
			}
			e := errs.From(err)
			longest := time.Duration(31/float64(all[name].OpensPerMinute)*float64(time.Minute)) + time.Millisecond
			if e == nil || e.Code != errs.OpenRate || e.RetryAfter <= 0 || e.RetryAfter > longest {
				t.Fatalf("%v, told to wait for %v, of at most %v", err, e.RetryAfter, longest)
			}
			c.move(e.RetryAfter)
			if _, err := l.Open("a", name); err != nil {
				t.Fatalf("%s, told to wait for %v, after that: %v; %+v", name, e.RetryAfter, err, l.shard("a").byName["a"].Value.(*tenant).opens)
			}
		}
	})
}

func TestTokensOfSeveralTiersShareSlots(t *testing.T) {
	l, _ := newLimiter(t, Config{Tiers: map[string]Tier{DefaultTier: {Streams: 2, Tunnels: 1}, "gold": {Streams: 5, Tunnels: 3}}})
	granted := func(take func(string, string) (func(), error), tiers ...string) (n int) {
		for range 10 {
			for _, tier := range tiers {
				if _, err := take("a", tier); err == nil {
					n++
				}
			}
		}
		return n
	}
	require.Equal(t, 5, granted(l.Open, DefaultTier, "gold"), "as many as the best tier gives alone")
	require.Equal(t, 3, granted(l.Tunnel, "gold", DefaultTier))
}

func TestRefusalsSayWhereOneStands(t *testing.T) {
	l, clock := newLimiter(t, Config{Tiers: tiers(Tier{OpensPerMinute: 60, Burst: 5, Streams: 8, Tunnels: 1}), HandshakesPerMinute: 30, HandshakeBurst: 3})
	require.Equal(t, errs.Quota{Limit: 5, Remaining: 5}, l.Standing("a", ""), "of one who never came")
	require.Zero(t, l.Tracked(), "asking makes nobody known")
	for left := 4; left >= 0; left-- {
		_, err := l.Open("a", "")
		require.NoError(t, err)
		require.Equal(t, errs.Quota{Limit: 5, Remaining: uint32(left), ResetMS: uint32(5-left) * 1000}, l.Standing("a", ""))
	}
	clock.move(500 * time.Millisecond)
	_, err := l.Open("a", "")
	e := errs.From(err)
	require.Equal(t, errs.OpenRate, e.Code)
	require.Equal(t, &errs.Quota{Limit: 5, Remaining: 0, ResetMS: 4500}, e.Quota)
	require.InDelta(t, 500, e.RetryAfter.Milliseconds(), 1)

	clock.move(time.Minute)
	for range 3 {
		_, err = l.Open("a", "")
		require.NoError(t, err)
	}
	_, err = l.Open("a", "")
	e = errs.From(err)
	require.Equal(t, errs.StreamLimit, e.Code)
	require.Equal(t, &errs.Quota{Limit: 8}, e.Quota, "comes back only when a stream ends")
	require.Positive(t, e.RetryAfter)

	_, err = l.Tunnel("a", "")
	require.NoError(t, err)
	_, err = l.Tunnel("a", "")
	e = errs.From(err)
	require.Equal(t, errs.TunnelLimit, e.Code)
	require.Equal(t, &errs.Quota{Limit: 1}, e.Quota)
	require.Positive(t, e.RetryAfter)

	for range 3 {
		require.NoError(t, l.Handshake(nth(1)))
	}
	e = errs.From(l.Handshake(nth(1)))
	require.Equal(t, errs.HandshakeLimit, e.Code)
	require.Equal(t, &errs.Quota{Limit: 3, ResetMS: 6000}, e.Quota)
	require.InDelta(t, 2000, e.RetryAfter.Milliseconds(), 1)
}

func TestStandingOfTheUnlimited(t *testing.T) {
	l, _ := newLimiter(t, Config{Tiers: map[string]Tier{DefaultTier: {}, "small": {OpensPerMinute: 1}}, Exempt: []Exemption{{Tenants: []string{"ops"}, Limits: []string{Opens}}}})
	for range 2 { // unknown, then known
		require.Zero(t, l.Standing("a", ""))
		require.Zero(t, l.Standing("ops", "small"))
		for _, name := range []string{"a", "ops"} {
			_, err := l.Open(name, "")
			require.NoError(t, err)
		}
	}
	require.Equal(t, errs.Quota{Limit: 1, Remaining: 1}, l.Standing("a", "small"))
}

// Buckets are kept for tiers that tokens have named, and no longer than their tiers are there.
func TestBucketsAreBounded(t *testing.T) {
	all := tiers(Tier{OpensPerMinute: 60})
	for i := range 50 {
		all[fmt.Sprint("t", i)] = Tier{OpensPerMinute: 60}
	}
	l, _ := newLimiter(t, Config{Tiers: all})
	for i := range 1000 {
		_, _ = l.Open("a", fmt.Sprint("t", i))
	}
	buckets := func() int {
		s := l.shard("a")
		return len(s.byName["a"].Value.(*tenant).opens.all)
	}
	require.Equal(t, 51, buckets())
	require.NoError(t, l.SetTiers(tiers(Tier{OpensPerMinute: 60})))
	require.Equal(t, 1, buckets())
	_, err := l.Open("a", "t1")
	require.ErrorIs(t, err, errs.OpenRate, "what was used stays used")
}
