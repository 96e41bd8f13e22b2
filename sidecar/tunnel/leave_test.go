package tunnel

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/link"
)

// A lane that is lost while its replica drains is resumed as any other, by whichever replica; until then new streams need not
// wait for the time of the move.
//
// Verifies: R8.8, R1.8
func TestALaneIsLostDuringAMove(t *testing.T) {
	t.Parallel()
	b := newReplicas(t, 2)
	a := b.all[0]
	r := b.pool(t, nil)
	s := open(t, r, link.Normal)
	x := exchangeOver(s)
	var refused atomic.Int64
	var open atomic.Bool
	b.all[1].resumes(func() error {
		if open.Load() {
			return nil
		}
		refused.Add(1)
		return errs.New(errs.OwnerUnknown, "not yet")
	})
	a.drains(goingAway)
	b.next(b.all[1])
	a.all()[0].SendGoAway(draining(time.Hour))
	eventually(t, "asked", func() bool { return r.list()[0].notice() != nil })
	a.cut()
	eventually(t, "it cannot be resumed", func() bool { return refused.Load() > 0 })
	eventually(t, "another tunnel before its time", r.Ready)
	assert.NoError(t, s.Tunnel().Err())
	_, err := word(r)
	assert.NoError(t, err)
	open.Store(true)
	eventually(t, "resumed, and draining", func() bool { st := r.slotOf(s); return st.State == Draining && st.Resumes == 1 && st.Via == "gw-1" })
	x.end(t)
	eventually(t, "and ends", func() bool { return len(a.all()) == 0 && len(r.list()) == 1 })
	assert.NotContains(t, r.log.String(), "state machine")
}

// To spread tunnels a gateway asks for a move that nothing is cut for.
//
// Verifies: R8.8
func TestARebalance(t *testing.T) {
	t.Parallel()
	b := newReplicas(t, 2)
	a := b.all[0]
	r := b.pool(t, nil)
	s := open(t, r, link.Normal)
	x := exchangeOver(s)
	b.next(b.all[1])
	a.all()[0].SendGoAway(link.GoAway{Reason: errs.New(errs.Rebalanced, "there is a new replica"), Delay: time.Millisecond})
	eventually(t, "moved", func() bool { return r.slotOf(s).State == Draining })
	id, err := word(r)
	require.NoError(t, err)
	assert.Equal(t, b.all[1].all()[0].Name(), id)
	assert.Equal(t, Healthy, r.Status().Endpoints[0].State)
	x.end(t)
	eventually(t, "the old one ends with its last stream", func() bool { return len(a.all()) == 0 })
	assert.True(t, r.metric(`fairlead_sidecar_moves_total{reason="rebalance"} 1`)())
	assert.True(t, r.metric(`fairlead_sidecar_moves_total{reason="drain"} 0`)())
	assert.NotContains(t, r.log.String(), "FL-S438")
}

// Where the tenant may have no tunnel more the old one is let go first, once it is idle, and not before.
func TestAMoveAtTheTenantsLimit(t *testing.T) {
	t.Parallel()
	b := newReplicas(t, 2)
	a := b.all[0]
	r := b.pool(t, nil)
	s := open(t, r, link.Normal)
	var refused atomic.Int64
	b.all[1].drains(nil)
	b.all[1].with(func() {
		b.all[1].greet = func(bool) error {
			if len(a.all()) == 0 {
				return nil
			}
			refused.Add(1)
			return errs.New(errs.TunnelLimit, "one is enough")
		}
	})
	b.next(b.all[1])
	a.all()[0].SendGoAway(draining(0))
	eventually(t, "refused, and tried again", func() bool { return refused.Load() >= 2 })
	assert.True(t, r.Ready(), "the old one is used all the time")
	_, err := word(r)
	assert.NoError(t, err)
	assert.NoError(t, s.Tunnel().Err())
	s.Reset(nil)
	eventually(t, "the new one comes once the old one is idle", func() bool { return r.Ready() && len(b.all[1].all()) == 1 })
	eventually(t, "one slot", func() bool { return len(r.list()) == 1 })
	assert.True(t, r.metric(`fairlead_sidecar_tunnels_lost_total{code="FL-S420"} 1`)() == false, "its end was this side's wish")
}

// A gateway that takes no more streams while it drains is not asked again.
func TestAGatewayThatRefusesOpensIsLeftAtOnce(t *testing.T) {
	t.Parallel()
	b := newReplicas(t, 2)
	a := b.all[0]
	r := b.pool(t, nil)
	old := open(t, r, link.Normal)
	a.drains(goingAway)
	a.with(func() { a.decline = goingAway })
	b.next(b.all[1])
	a.all()[0].SendGoAway(draining(time.Hour))
	eventually(t, "asked", func() bool { return r.list()[0].notice() != nil })
	_, err := word(r)
	require.ErrorIs(t, err, errs.Draining)
	eventually(t, "another tunnel, long before its time", func() bool { return r.slotOf(old).State == Draining })
	id, err := word(r)
	require.NoError(t, err)
	assert.Equal(t, b.all[1].all()[0].Name(), id)
	assert.NoError(t, old.Tunnel().Err())
}

// A tunnel that the pool has enough others for needs no replacement.
func TestATunnelTooManyJustEnds(t *testing.T) {
	t.Parallel()
	b := newReplicas(t, 1)
	a := b.all[0]
	r := b.pool(t, func(c *Config) { c.Min, c.Max = 2, 2 })
	require.NoError(t, r.Reconfigure(r.changedBy(func(c *Config) { c.Min = 1 })))
	eventually(t, "one is wanted", func() bool {
		r.nudge()
		r.Pool.mu.Lock()
		defer r.Pool.mu.Unlock()
		return r.want == 1
	})
	upgrades := a.count()
	a.all()[0].SendGoAway(link.GoAway{Reason: goingAway})
	eventually(t, "it ends", func() bool { return len(a.all()) == 1 && len(r.list()) == 1 })
	assert.Equal(t, upgrades, a.count())
	assert.True(t, r.Ready())
}

// With several endpoints the one whose gateway drains is tried a few times, since there may be others behind it, and then the next.
func TestADrainLeadsToTheNextEndpoint(t *testing.T) {
	t.Parallel()
	first, second := newGateway(t), newGateway(t)
	r := startPool(t, nil, first, second)
	eventually(t, "ready", r.Ready)
	s := open(t, r, link.Normal)
	first.drains(goingAway)
	upgrades := first.count()
	first.all()[0].SendGoAway(draining(0))
	eventually(t, "moved", func() bool { return r.slotOf(s).State == Draining })
	assert.Equal(t, second.url, r.at())
	assert.Equal(t, sameFirst+1, first.count()-upgrades)
	assert.NoError(t, s.Tunnel().Err())
	eventually(t, "new tunnels go there", func() bool { return r.endpoint(second.url).Active })
	assert.Equal(t, Failing, r.endpoint(first.url).State)
}

// A gateway that is gone before the time of the move is not waited for.
func TestADrainedGatewayThatIsGoneIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	r := startPool(t, nil, g)
	eventually(t, "ready", r.Ready)
	old := g.all()[0]
	old.SendGoAway(draining(time.Hour))
	eventually(t, "noticed", func() bool { return r.list()[0].notice() != nil })
	old.Close(errs.New(errs.ShuttingDown, "gone"))
	eventually(t, "replaced before its time", func() bool { return r.Ready() && r.Status().Tunnels[0].ID != old.Name() })
	eventually(t, "one slot", func() bool { return len(r.list()) == 1 })
	assert.Nil(t, r.list()[0].notice(), "the new tunnel was not asked to move")
}

// Without reconnecting, a replacement that fails disturbs nobody either.
func TestAMoveWithoutReconnecting(t *testing.T) {
	t.Parallel()
	b := newReplicas(t, 2)
	a := b.all[0]
	r := b.pool(t, func(c *Config) { c.Reconnect, c.Probe = false, 10*time.Millisecond })
	a.drains(goingAway)
	upgrades := a.count()
	a.all()[0].SendGoAway(draining(0))
	eventually(t, "tried", func() bool { return a.count() > upgrades })
	assert.True(t, r.Ready())
	b.next(b.all[1])
	eventually(t, "moved", func() bool { return len(b.all[1].all()) == 1 && len(a.all()) == 0 })
	_, gaveUp := r.counts()
	assert.Zero(t, gaveUp)
}

// Attempts that are repeated soon do not come closer together for the whole pool than is good for a gateway.
func TestTurns(t *testing.T) {
	r := startPool(t, nil, newGateway(t))
	var last time.Duration
	start := time.Now()
	for range 40 {
		last = max(last, r.turn(100*time.Millisecond))
	}
	assert.GreaterOrEqual(t, last+time.Since(start), 39*turnEvery)
}
