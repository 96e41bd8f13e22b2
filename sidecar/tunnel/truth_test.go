package tunnel

import (
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/link"
)

// resumeNow lets a slot that has lost its lane not wait for its time.
func (r *running) resumeNow(t *testing.T) {
	t.Helper()
	eventually(t, "the lane is lost", func() bool { return r.Status().Tunnels[0].State == Resuming })
	r.Reconnect()
}

// A tunnel whose owner is lost ends with the code that says why, and the next one is made at once: here any wait of the backoff
// would take an hour.
//
// Verifies: R8.5
func TestALostOwnerIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	for _, code := range []errs.Code{errs.OwnerGone, errs.OwnerUnreachable, errs.LeaseLost} {
		t.Run(code.String(), func(t *testing.T) {
			t.Parallel()
			b := newReplicas(t, 2)
			r := b.pool(t, func(c *Config) { c.Backoff = Backoff{Base: time.Hour, Cap: time.Hour} })
			s := open(t, r, link.Normal)
			b.all[1].resumes(func() error { return errs.New(code, "replica gw-0 is lost since noon") })
			b.next(b.all[1])
			b.all[0].cut()
			r.resumeNow(t)
			err := s.Wait()
			assert.Equal(t, code, errs.CodeOf(err), "%v", err)
			assert.ErrorContains(t, err, "replica gw-0 is lost since noon")
			eventually(t, "a new tunnel", r.Ready)
			assert.Equal(t, 2, b.all[1].count(), "one attempt to resume, one at a new tunnel")
			st := r.Status()
			assert.Equal(t, "gw-1", st.Tunnels[0].Replica)
			assert.Empty(t, st.Tunnels[0].Via)
			assert.True(t, r.metric(`fairlead_sidecar_tunnels_lost_total{code="`+code.String()+`"} 1`)())
			said := Event{}
			for _, e := range st.Events {
				if e.Code == code.String() {
					said = e
				}
			}
			assert.Equal(t, Disconnected, said.State)
			assert.Zero(t, said.DelayMS)
			assert.Contains(t, said.Reason, "replica gw-0 is lost since noon")
			assert.Contains(t, r.log.String(), "code="+code.String())
			assert.Equal(t, Healthy, st.Endpoints[0].State)
		})
	}
}

// Replicas share what they know of lost tunnels, so it counts whichever endpoint says it; that one has never heard of a tunnel
// does not.
func TestALostOwnerIsToldByAnyEndpoint(t *testing.T) {
	t.Parallel()
	for _, code := range []errs.Code{errs.TunnelUnknown, errs.OwnerGone} {
		t.Run(code.String(), func(t *testing.T) {
			t.Parallel()
			first, second := newGateway(t), newGateway(t)
			r := startPool(t, nil, first, second)
			eventually(t, "ready", r.Ready)
			s := open(t, r, link.Normal)
			require.Equal(t, first.url, r.at())
			var asked atomic.Int64
			second.resumes(func() error { asked.Add(1); return errs.New(code, "no") })
			first.with(func() { first.refuse = func(string) error { return errs.New(errs.Overloaded, "not now") } })
			first.cut()
			eventually(t, "the second is asked", func() bool { return asked.Load() == 1 })
			if code == errs.OwnerGone {
				assert.Equal(t, errs.OwnerGone, errs.CodeOf(s.Wait()))
				return
			}
			first.with(func() { first.refuse = nil })
			eventually(t, "resumed at home", func() bool { return s.Tunnel().Stats().Resumes == 1 })
			assert.EqualValues(t, 1, asked.Load())
		})
	}
}

// A replica that cannot find out who owns a tunnel has not given it up: it is tried again soon, and nothing is lost.
//
// Verifies: R1.8
func TestAnOwnerThatIsUnknownForNowIsTriedAgain(t *testing.T) {
	t.Parallel()
	b := newReplicas(t, 2)
	r := b.pool(t, func(c *Config) { c.Backoff = Backoff{Base: time.Hour, Cap: time.Hour} })
	s := open(t, r, link.Normal)
	x := exchangeOver(s)
	var asked atomic.Int64
	b.all[1].resumes(func() error {
		if asked.Add(1) <= 4 {
			return errs.New(errs.OwnerUnknown, "the store cannot be asked")
		}
		return nil
	})
	b.next(b.all[1])
	eventually(t, "bytes are under way", func() bool { return s.Tunnel().Stats().BytesReceived > 64<<10 })
	b.all[0].cut()
	r.resumeNow(t)
	eventually(t, "resumed by the other replica", func() bool { return s.Tunnel().Stats().Resumes == 1 })
	assert.EqualValues(t, 5, asked.Load())
	x.end(t)
	st := r.Status().Tunnels[0]
	assert.Equal(t, [2]string{"gw-0", "gw-1"}, [2]string{st.Replica, st.Via})
	assert.True(t, r.metric("fairlead_sidecar_resumes_total 1")())
	assert.True(t, r.metric("fairlead_sidecar_resumes_relayed_total 1")())
	eventually(t, "and both are said", func() bool { return strings.Contains(r.log.String(), "replica=gw-0 via=gw-1") })
	events := r.Status().Events
	assert.Equal(t, "tunnel "+st.ID+" on gw-0 via gw-1", events[len(events)-1].Reason)
	assert.NotContains(t, r.log.String(), "state machine")
}

// While nobody can find out who owns a tunnel, new streams have another one: gateways answer. It may be that the owner has crashed
// while the store is away.
//
// Verifies: R1.4
func TestWhileTheOwnerIsUnknownNewStreamsHaveAnotherTunnel(t *testing.T) {
	t.Parallel()
	b := newReplicas(t, 2)
	r := b.pool(t, func(c *Config) { c.Max, c.Backoff = 1, Backoff{Base: time.Hour, Cap: time.Hour, MaxAttempts: 3} })
	old := open(t, r, link.Normal)
	b.all[1].resumes(func() error { return errs.New(errs.OwnerUnknown, "the store cannot be asked") })
	b.next(b.all[1])
	b.all[0].cut()
	r.resumeNow(t)
	eventually(t, "another tunnel is there", func() bool {
		return slices.ContainsFunc(r.Status().Tunnels, func(st TunnelStatus) bool { return st.State == Connected && st.ID != old.Tunnel().Name() })
	})
	s := open(t, r, link.Normal)
	assert.NotSame(t, old.Tunnel(), s.Tunnel())
	assert.NoError(t, old.Tunnel().Err(), "the old one is not given up")
	x := exchangeOver(s)
	x.end(t)
	assert.NotContains(t, r.log.String(), "gave up")
}

// A gateway that takes the upgrade, and so the token, but answers the resume with a reason for which tunnels are ended, may mean
// itself or its clock. When it is told again and again the tunnel is over.
func TestTheReasonOfAnEndThatWasMissedIsBelievedInTheEnd(t *testing.T) {
	t.Parallel()
	for _, code := range []errs.Code{errs.TokenExpired, errs.TokenRevoked, errs.ShuttingDown} {
		t.Run(code.String(), func(t *testing.T) {
			t.Parallel()
			g := newGateway(t)
			g.echo = true
			r := startPool(t, nil, g)
			eventually(t, "ready", r.Ready)
			s := open(t, r, link.Normal)
			var asked atomic.Int64
			g.resumes(func() error {
				if asked.Add(1) < mostEndings {
					return errs.New(code, "as the tombstone says")
				}
				return nil
			})
			g.cut()
			eventually(t, "told less often it was not meant", func() bool { return s.Tunnel().Stats().Resumes == 1 })
			assert.EqualValues(t, mostEndings, asked.Load())

			asked.Store(-mostEndings)
			g.resumes(func() error { asked.Add(1); return errs.New(code, "as the tombstone says") })
			g.cut()
			err := s.Wait()
			assert.Equal(t, code, errs.CodeOf(err), "%v", err)
			assert.ErrorContains(t, err, "as the tombstone says")
			assert.Zero(t, asked.Load())
			eventually(t, "a new tunnel", r.Ready)
		})
	}
}

// A token that is refused before anybody looks at the tunnel says nothing about that.
func TestARefusedTokenDoesNotEndATunnel(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	r := startPool(t, nil, g)
	eventually(t, "ready", r.Ready)
	s := open(t, r, link.Normal)
	var asked atomic.Int64
	g.with(func() {
		g.refuse = func(string) error {
			if asked.Add(1) <= 3*mostEndings {
				return errs.New(errs.TokenExpired, "too old")
			}
			return nil
		}
	})
	g.cut()
	eventually(t, "resumed with the next one", func() bool { return s.Tunnel().Stats().Resumes == 1 })
	assert.NoError(t, s.Tunnel().Err())
}

// The lane by another replica may end because that one goes; it teaches the heartbeat nothing.
func TestACutOfARelayedLaneTeachesNothing(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	g.door = "another"
	cutter, e := newIdleCutter(t, g, 1800*time.Millisecond)
	r := startPool(t, func(c *Config) { c.Endpoints = []Endpoint{e} })
	eventually(t, "ready", r.Ready)
	s := open(t, r, link.Normal)
	eventually(t, "cut and resumed three times", func() bool { return s.Tunnel().Stats().Resumes == 3 })
	assert.GreaterOrEqual(t, cutter.count(), 3)
	assert.False(t, r.Status().Heartbeat.Learned)
	assert.True(t, r.metric("fairlead_sidecar_idle_cuts_total 0")())
	assert.True(t, r.metric("fairlead_sidecar_resumes_relayed_total 3")())
}

func TestNamesOfReplicasAreShown(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{"gw-1": "gw-1", "": "", "ein träger": "ein träger", "a\x1b[31m": "", strings.Repeat("a", mostName): strings.Repeat("a", mostName),
		strings.Repeat("a", mostName+1): "", "\xff": ""} {
		assert.Equal(t, want, replicaIn(map[string][]string{"Fairlead-Replica": {name}}), "%q", name)
	}
	assert.Empty(t, replicaIn(nil))
	assert.Equal(t, "", at("", ""))
	assert.Equal(t, " on a", at("a", ""))
	assert.Equal(t, " on a via b", at("a", "b"))
}
