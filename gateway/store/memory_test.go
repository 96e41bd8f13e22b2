package store_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"fairlead/gateway/store"
)

func TestMemory(t *testing.T) {
	contract(t, func(t *testing.T) *world {
		m := store.NewMemory(store.MemoryConfig{})
		t.Cleanup(func() { require.NoError(t, m.Close()) })
		return &world{open: func() store.Store { return m }}
	})
}

// clock is moved by hand.
type clock struct{ at time.Time }

func (c *clock) now() time.Time       { return c.at }
func (c *clock) move(d time.Duration) { c.at = c.at.Add(d) }

// Whatever has expired takes no room, whoever comes next.
func TestMemoryForgets(t *testing.T) {
	c := &clock{at: time.Now()}
	m := store.NewMemory(store.MemoryConfig{Now: c.now})
	for i := range 100 {
		fill(t, m, name(i))
	}
	require.Equal(t, 7*100, m.Size())
	c.move(15 * time.Minute)
	_, err := m.Incarnation(t.Context())
	require.NoError(t, err)
	require.Equal(t, 100, m.Size(), "host keys")
	c.move(90 * 24 * time.Hour)
	_, err = m.Incarnation(t.Context())
	require.NoError(t, err)
	require.Zero(t, m.Size())
}

// fill puts one of everything, for a minute at most.
func fill(t *testing.T, s store.Store, name string) {
	ctx := t.Context()
	require.NoError(t, s.Announce(ctx, store.Replica{ID: name}, time.Minute))
	_, err := s.Hold(ctx, time.Minute, store.Tunnel{ID: name})
	require.NoError(t, err)
	rate := store.Rate{Tier: "a", PerMinute: 60, Burst: 2}
	g, err := s.Take(ctx, store.Ask{Slot: store.Slot{Tenant: name, Kind: store.StreamSlots, ID: "1"}, Rate: rate, Lease: time.Minute})
	require.NoError(t, err)
	require.True(t, g.Granted)
	require.NoError(t, s.PutCircuit(ctx, store.Circuit{Backend: name}, time.Minute))
	_, err = s.ClaimProbe(ctx, name, "me", time.Minute)
	require.NoError(t, err)
	require.NoError(t, s.PutRevocations(ctx, store.Revocation{ID: name, Until: time.Now().Add(time.Minute)}))
	_, err = s.PinHostKey(ctx, name, "ssh-ed25519 AAAA")
	require.NoError(t, err)
}

// As in package limit: in no window are there more opens than one tier allows that was named, nor more of one tier than that
// tier allows; and who is told to wait is served after it.
func TestOpensOfSeveralTiersGainNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rates := map[string]store.Rate{}
		for _, tier := range []string{"bronze", "silver", "gold"} {
			rates[tier] = store.Rate{Tier: tier, PerMinute: rapid.IntRange(1, 600).Draw(t, "rate"), Burst: rapid.IntRange(1, 30).Draw(t, "burst")}
		}
		c := &clock{at: time.Now()}
		m := store.NewMemory(store.MemoryConfig{Now: c.now})
		take := func(tier string) store.Grant {
			g, err := m.Take(t.Context(), store.Ask{Slot: store.Slot{Tenant: "a", Kind: store.StreamSlots, ID: "1"}, Rate: rates[tier], Lease: time.Hour})
			require.NoError(t, err)
			return g
		}
		type grant struct {
			tier string
			at   time.Time
		}
		var grants []grant
		for range rapid.IntRange(1, 30).Draw(t, "rounds") {
			tier := rapid.SampledFrom([]string{"bronze", "silver", "gold"}).Draw(t, "tier")
			for range rapid.IntRange(1, 12).Draw(t, "opens") {
				if take(tier).Granted {
					grants = append(grants, grant{tier, c.now()})
				}
			}
			c.move(time.Duration(rapid.IntRange(0, 3000).Draw(t, "pause")) * time.Millisecond)
		}
		most := func(r store.Rate, d time.Duration) float64 {
			return float64(r.Burst) + float64(r.PerMinute)*d.Minutes() + 1e-4
		}
		named := map[string]bool{}
		for i, last := range grants {
			named[last.tier] = true
			own := 0
			for j := i; j >= 0; j-- {
				if grants[j].tier == last.tier {
					own++
				}
				window, best := last.at.Sub(grants[j].at), 0.0
				for tier := range named {
					best = max(best, most(rates[tier], window))
				}
				require.LessOrEqual(t, float64(i-j+1), best, "of all, within %v", window)
				require.LessOrEqual(t, float64(own), most(rates[last.tier], window), "of %s, within %v", last.tier, window)
			}
		}
		for tier := range rates {
			g := store.Grant{Granted: true}
			for range 31 { // a full burst, and one
				if g = take(tier); !g.Granted {
					break
				}
			}
			require.False(t, g.Granted)
			require.Positive(t, g.Wait)
			require.LessOrEqual(t, g.Wait, time.Duration(31/float64(rates[tier].PerMinute)*float64(time.Minute))+2*time.Millisecond)
			c.move(g.Wait)
			require.True(t, take(tier).Granted, "%s, told to wait for %v", tier, g.Wait)
		}
	})
}
