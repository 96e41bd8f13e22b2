package limit

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"fairlead/shared/link"
)

func TestMemoryOfATenant(t *testing.T) {
	process := link.NewBudget(1000, nil)
	l, _ := newLimiter(t, Config{MaxTenants: 2, Memory: process, Tiers: map[string]Tier{DefaultTier: {Memory: 100}, "gold": {Memory: 300}, "free": {}}})
	a, releaseA := l.Budget("a", "")
	require.EqualValues(t, 100, a.Limit())
	again, releaseAgain := l.Budget("a", "no such tier")
	require.Same(t, a, again, "all tunnels of a tenant share one")
	b, releaseB := l.Budget("b", "")
	require.NotSame(t, a, b)
	free, release := l.Budget("a", "free")
	require.Same(t, process, free)
	release()

	gold, releaseGold := l.Budget("a", "gold")
	require.Same(t, a, gold)
	require.EqualValues(t, 300, a.Limit(), "that of the best tier")
	require.NoError(t, l.SetTiers(map[string]Tier{DefaultTier: {Memory: 200}, "gold": {Memory: 500}}))
	require.EqualValues(t, 500, a.Limit())
	require.EqualValues(t, 200, b.Limit())
	releaseGold()
	releaseGold()
	require.EqualValues(t, 200, a.Limit())
	require.NoError(t, l.SetTiers(tiers(Tier{})))
	require.EqualValues(t, int64(math.MaxInt64), a.Limit())
	require.NoError(t, l.SetTiers(tiers(Tier{Memory: 100})))

	releaseA()
	other, releaseOther := l.Budget("c", "") // both tenants hold memory: nobody is forgotten for this one
	require.EqualValues(t, 100, other.Limit())
	require.Equal(t, 2, l.Tracked())
	releaseOther()
	fresh, releaseFresh := l.Budget("a", "")
	require.Same(t, a, fresh, "one tunnel still has it")
	releaseAgain()
	releaseFresh()
	fresh, releaseFresh = l.Budget("a", "")
	require.NotSame(t, a, fresh, "dropped with the last")
	releaseFresh()
	releaseB()
	_, err := l.Tunnel("c", "")
	require.NoError(t, err)
	_, err = l.Tunnel("d", "")
	require.NoError(t, err, "whoever holds nothing any more can be forgotten")
}

func TestMemoryWithoutLimits(t *testing.T) {
	l, _ := newLimiter(t, Config{Tiers: tiers(Tier{})})
	b, release := l.Budget("a", "")
	require.Nil(t, b)
	release()
	require.Zero(t, l.Tracked())
}
