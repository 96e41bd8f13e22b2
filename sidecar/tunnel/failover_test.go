package tunnel

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/testbed"
	"fairlead/shared/testbed/fault"
)

// behind puts a fault proxy in front of a gateway; the pool is to know it by the proxy's address.
func behind(t *testing.T, g *gateway) (*fault.Proxy, Endpoint) {
	p := testbed.NewProxy(t, g.l.Addr().String())
	return p, Endpoint{URL: "ws://" + p.Addr() + "/v1/tunnel"}
}

// at is the endpoint where new streams go.
func (r *running) at() string {
	s, err := r.Open(link.OpenRequest{Route: "git", Priority: link.Normal})
	if err != nil {
		return ""
	}
	defer s.Reset(nil)
	for _, t := range r.Status().Tunnels {
		if t.ID == s.Tunnel().Name() {
			return t.Endpoint
		}
	}
	return ""
}

func (r *running) endpoint(url string) EndpointStatus {
	for _, e := range r.Status().Endpoints {
		if e.URL == url {
			return e
		}
	}
	return EndpointStatus{}
}

// New streams go elsewhere as soon as a gateway is dead; those that are open wait for it, and go on when it is back.
//
// Verifies: R1.8
func TestFailsOverAndKeepsTheOldTunnel(t *testing.T) {
	t.Parallel()
	first, second := newGateway(t), newGateway(t)
	proxy, a := behind(t, first)
	b := Endpoint{URL: second.url}
	r := startPool(t, func(c *Config) { c.Endpoints = []Endpoint{a, b} })
	eventually(t, "ready", r.Ready)
	assert.Equal(t, a.URL, r.at())
	old := open(t, r, link.Normal)

	require.NoError(t, proxy.Refuse())
	proxy.Cut()
	eventually(t, "new streams go to the second", func() bool { return r.at() == b.URL })
	assert.Equal(t, Failing, r.endpoint(a.URL).State)
	assert.Contains(t, r.endpoint(a.URL).Error, "FL-N101")
	eventually(t, "and it is said", func() bool { return r.endpoint(b.URL).Active })
	assert.Equal(t, Connected, r.Status().State)
	assert.True(t, r.metric("fairlead_sidecar_failovers_total 1")())
	assert.Contains(t, r.log.String(), "failover")
	assert.NoError(t, old.Tunnel().Err(), "it may come back yet")

	require.NoError(t, proxy.Accept())
	eventually(t, "the old tunnel is resumed", func() bool { return old.Tunnel().Stats().Resumes == 1 })
	old.Reset(nil)
	eventually(t, "and ends with its last stream, since tunnels are elsewhere now", func() bool { return old.Tunnel().Err() != nil })
	assert.Equal(t, b.URL, r.at())
}

// A gateway that swallows everything is not waited for either, whether at the first attempt or with a stream under way.
func TestFailsOverFromABlackHole(t *testing.T) {
	t.Parallel()
	first, second := newGateway(t), newGateway(t)
	proxy, a := behind(t, first)
	r := startPool(t, func(c *Config) { c.Endpoints = []Endpoint{a, {URL: second.url}}; c.ConnectTimeout = time.Minute })
	eventually(t, "ready", r.Ready)
	proxy.Blackhole()
	stuck, err := r.Open(link.OpenRequest{Route: "git"})
	require.NoError(t, err)
	_, err = stuck.Write([]byte("hello"))
	require.NoError(t, err)
	eventually(t, "new streams go to the second", func() bool { return r.at() == second.url })
	assert.Contains(t, r.log.String(), "the gateway is silent")
	assert.NoError(t, stuck.Tunnel().Err())
	r.stop()

	again := startPool(t, func(c *Config) { c.Endpoints = []Endpoint{a, {URL: second.url}}; c.ConnectTimeout = time.Minute })
	eventually(t, "an attempt that hangs is not waited for", again.Ready)
	assert.Equal(t, second.url, again.at())
}

// A tunnel whose gateway was only slow takes streams again, and whoever waits is told.
func TestAStallThatEndsIsForgiven(t *testing.T) {
	t.Parallel()
	first, second := newGateway(t), newGateway(t)
	proxy, a := behind(t, first)
	refusing, b := behind(t, second)
	require.NoError(t, refusing.Refuse())
	r := startPool(t, func(c *Config) { c.Endpoints = []Endpoint{a, b} })
	eventually(t, "ready", r.Ready)
	ups, _ := r.counts()
	proxy.Stall()
	s, err := r.Open(link.OpenRequest{Route: "git"})
	require.NoError(t, err)
	eventually(t, "doubted", func() bool { return !r.Ready() })
	proxy.Resume()
	eventually(t, "trusted again", r.Ready)
	eventually(t, "told", func() bool { now, _ := r.counts(); return now > ups })
	require.NoError(t, s.WaitOpened(t.Context()))
	assert.Equal(t, a.URL, r.at())
	assert.Zero(t, s.Tunnel().Stats().Resumes)
}

// Tunnels go back to a preferred endpoint once it has been healthy for a while; streams that are open elsewhere finish there.
func TestFailsBackWithHysteresis(t *testing.T) {
	t.Parallel()
	first, second := newGateway(t), newGateway(t)
	proxy, a := behind(t, first)
	b := Endpoint{URL: second.url}
	require.NoError(t, proxy.Refuse())
	r := startPool(t, func(c *Config) {
		c.Endpoints, c.Failback, c.Probe = []Endpoint{a, b}, 2*time.Second, 50*time.Millisecond
		c.Min, c.Max = 2, 2
	})
	eventually(t, "two tunnels at the second", func() bool { return r.connected() == 2 })
	assert.Equal(t, b.URL, r.at())
	s := open(t, r, link.Normal)
	require.NoError(t, proxy.Accept())
	eventually(t, "probes find it", func() bool { return r.endpoint(a.URL).State == Healthy })
	healthy := r.endpoint(a.URL).Since
	eventually(t, "new streams go back", func() bool { return r.at() == a.URL })
	assert.GreaterOrEqual(t, time.Since(healthy), 2*time.Second, "not before it has proven itself")
	eventually(t, "both tunnels are there", func() bool {
		n := 0
		for _, t := range r.Status().Tunnels {
			if t.State == Connected && t.Endpoint == a.URL {
				n++
			}
		}
		return n == 2
	})
	assert.NoError(t, s.Tunnel().Err(), "the stream goes on where it is")
	s.Reset(nil)
	eventually(t, "the old tunnels end", func() bool { return len(second.all()) == 0 && len(r.Status().Tunnels) == 2 })
	assert.True(t, r.metric("fairlead_sidecar_failbacks_total 1")())
	assert.True(t, r.endpoint(a.URL).Active)
	assert.Zero(t, strings.Count(r.log.String(), "state machine"))
}

// An endpoint that answers probes but takes no tunnels costs attempts now and then, and no tunnel.
func TestAFailbackThatFailsDisturbsNobody(t *testing.T) {
	t.Parallel()
	first, second := newGateway(t), newGateway(t)
	first.with(func() { first.refuse = func(string) error { return errs.New(errs.TokenInvalid, "not here") } })
	r := startPool(t, func(c *Config) { c.Failback, c.Probe = time.Millisecond, 5*time.Millisecond }, first, second)
	eventually(t, "ready", r.Ready)
	id := r.Status().Tunnels[0].ID
	before := first.count()
	eventually(t, "it is tried again", func() bool { return first.count() >= before+3 })
	assert.Equal(t, second.url, r.at())
	assert.Equal(t, id, func() string {
		for _, t := range r.Status().Tunnels {
			if t.State == Connected {
				return t.ID
			}
		}
		return ""
	}(), "the tunnel was not touched")
	assert.True(t, r.endpoint(second.url).Active)
}

// The refusal of one endpoint leads to the next at once, without a wait between them.
//
// Verifies: R1.10
func TestARoundTriesEveryEndpoint(t *testing.T) {
	first, second, third := newGateway(t), newGateway(t), newGateway(t)
	for _, g := range []*gateway{first, second} {
		g.with(func() { g.refuse = func(string) error { return errs.New(errs.Overloaded, "no room") } })
	}
	r := startPool(t, func(c *Config) { c.Backoff = Backoff{Base: time.Hour, Cap: time.Hour} }, first, second, third)
	eventually(t, "the third takes it", r.Ready)
	var attempts []Event
	for _, e := range r.Status().Events {
		if e.Tunnel == 1 {
			attempts = append(attempts, e)
		}
	}
	require.Len(t, attempts, 6)
	for i, g := range []*gateway{first, second, third} {
		assert.Equal(t, i+1, attempts[2*i].Attempt, "each attempt has its number")
		assert.Equal(t, g.url, attempts[2*i].Endpoint)
	}
	assert.Equal(t, []string{"FL-S424", "FL-S424", ""}, []string{attempts[1].Code, attempts[3].Code, attempts[5].Code})
	assert.Equal(t, Connected, attempts[5].State)
	for _, want := range []string{`msg="attempt failed"`, "attempt=1", "attempt=2", "endpoint=" + first.url, "endpoint=" + second.url, "code=FL-S424"} {
		assert.Contains(t, r.log.String(), want)
	}
}

// All endpoints of a round are one attempt of those after which the sidecar gives up.
//
// Verifies: R1.9
func TestRoundsCountOnce(t *testing.T) {
	first, second := newGateway(t), newGateway(t)
	for _, g := range []*gateway{first, second} {
		g.with(func() { g.refuse = func(string) error { return errs.New(errs.Overloaded, "no room") } })
	}
	r := startPool(t, func(c *Config) { c.Backoff.MaxAttempts = 4 }, first, second)
	eventually(t, "failed", r.inState(Failed))
	assert.Equal(t, [2]int{4, 4}, [2]int{first.count(), second.count()})
	assert.ErrorContains(t, r.LastError(), "after 4 failed attempts")
}

// The whole pool gives up together: one line, one event, one call.
//
// Verifies: R1.9
func TestThePoolGivesUpAsOne(t *testing.T) {
	g := newGateway(t)
	r := startPool(t, func(c *Config) {
		c.Min, c.Max, c.Backoff = 4, 4, Backoff{Base: time.Millisecond, Cap: 5 * time.Millisecond, MaxAttempts: 5}
	}, g)
	eventually(t, "four tunnels", func() bool { return r.connected() == 4 })
	s := open(t, r, link.Normal)
	g.with(func() { g.refuse = func(string) error { return errs.New(errs.Overloaded, "no room") } })
	g.cut()
	eventually(t, "failed", r.inState(Failed))
	eventually(t, "all of it", func() bool {
		for _, t := range r.Status().Tunnels {
			if t.State != Failed {
				return false
			}
		}
		return true
	})
	assert.ErrorIs(t, s.Wait(), errs.GaveUp)
	_, n := r.counts()
	assert.Equal(t, 1, n)
	assert.Equal(t, 1, strings.Count(r.log.String(), `msg="tunnel failed" level=WARN`)+strings.Count(r.log.String(), `level=WARN msg="tunnel failed"`))
	failed := 0
	for _, e := range r.Status().Events {
		if e.State == Failed {
			failed++
			assert.Equal(t, "FL-N110", e.Code)
		}
	}
	assert.Equal(t, 1, failed)
	assert.True(t, r.metric("fairlead_sidecar_gave_up_total 1")())
	g.with(func() { g.refuse = nil })
	r.Reconnect()
	eventually(t, "all four are back", func() bool { return r.connected() == 4 })
}

// A slot that keeps failing beside tunnels that work does not make the pool give up.
func TestNobodyGivesUpWhileATunnelIsUp(t *testing.T) {
	g := newGateway(t)
	var refused atomic.Int64
	var taken atomic.Bool
	g.with(func() {
		g.turn = func() error {
			if taken.Swap(true) {
				refused.Add(1)
				return errs.New(errs.Overloaded, "one is enough")
			}
			return nil
		}
	})
	r := startPool(t, func(c *Config) { c.Backoff.MaxAttempts = 2 }, g)
	eventually(t, "ready", r.Ready)
	require.NoError(t, r.Reconfigure(r.changedBy(func(c *Config) { c.Min, c.Max = 2, 2 })))
	eventually(t, "the second one is tried for long", func() bool { return refused.Load() > 10 })
	assert.True(t, r.Ready())
	_, n := r.counts()
	assert.Zero(t, n)
}

// By weight, an endpoint that was out gets its share back: of the tunnels that were made meanwhile, as many move as would have
// been there.
func TestWeightsAreRestoredAfterAnOutage(t *testing.T) {
	t.Parallel()
	first, second := newGateway(t), newGateway(t)
	proxy, a := behind(t, first)
	a.Weight = 1 << 20
	b := Endpoint{URL: second.url, Weight: 1}
	require.NoError(t, proxy.Refuse())
	r := startPool(t, func(c *Config) {
		c.Endpoints, c.Failback, c.Probe = []Endpoint{a, b}, 10*time.Millisecond, 20*time.Millisecond
		c.Min, c.Max = 2, 2
	})
	eventually(t, "two tunnels at the second", func() bool { return r.connected() == 2 && len(second.all()) == 2 })
	require.NoError(t, proxy.Accept())
	eventually(t, "they move", func() bool { return len(first.all()) == 2 && len(second.all()) == 0 })
	assert.True(t, r.Ready())
	assert.Equal(t, 1<<20, r.endpoint(a.URL).Weight)
}

// A tunnel of before the failover that comes back does not draw new streams to an endpoint that has not proven itself, and is
// what is used once it has.
func TestAnOldTunnelIsUsedAgainAfterTheFailback(t *testing.T) {
	t.Parallel()
	first, second := newGateway(t), newGateway(t)
	proxy, a := behind(t, first)
	r := startPool(t, func(c *Config) {
		c.Endpoints, c.Failback, c.Probe = []Endpoint{a, {URL: second.url}}, time.Hour, 20*time.Millisecond
	})
	eventually(t, "ready", r.Ready)
	old := open(t, r, link.Normal)
	require.NoError(t, proxy.Refuse())
	proxy.Cut()
	eventually(t, "failed over", func() bool { return r.at() == second.url })
	require.NoError(t, proxy.Accept())
	eventually(t, "resumed", func() bool { return old.Tunnel().Stats().Resumes == 1 })
	eventually(t, "its slot takes no new streams", func() bool {
		for _, s := range r.Status().Tunnels {
			if s.Endpoint == a.URL {
				return s.State == Draining
			}
		}
		return false
	})
	assert.Equal(t, second.url, r.at())
	require.NoError(t, r.Reconfigure(r.changedBy(func(c *Config) { c.Failback = time.Millisecond })))
	eventually(t, "failed back", func() bool { return r.at() == a.URL })
	assert.NoError(t, old.Tunnel().Err())
}
