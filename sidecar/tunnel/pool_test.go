package tunnel

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/testbed"
	"fairlead/shared/ws"
)

// running is a pool that runs until the test ends.
type running struct {
	*Pool
	log *testbed.LogBuffer
	set *metrics.Set

	mu     sync.Mutex
	ups    int
	gaveUp []error
	token  string
	stop   func()
}

func (r *running) counts() (ups, gaveUp int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ups, len(r.gaveUp)
}

func (r *running) metric(line string) func() bool {
	return func() bool {
		var b bytes.Buffer
		r.set.WritePrometheus(&b)
		return strings.Contains(b.String(), line+"\n")
	}
}

func startPool(t *testing.T, change func(*Config), gateways ...*gateway) *running {
	r := &running{log: &testbed.LogBuffer{}, set: metrics.NewSet(), token: "token-1"}
	cfg := Config{
		Dialer: &ws.Dialer{MaxMessage: 1 << 20}, ConnectTimeout: 5 * time.Second, Min: 1, Max: 1,
		Token: func() (string, error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.token, nil
		},
		Backoff: Backoff{Base: time.Millisecond, Cap: 10 * time.Millisecond}, Reconnect: true,
		Waiting: func() bool { return false },
		Up: func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.ups++
		},
		GaveUp: func(err error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.gaveUp = append(r.gaveUp, err)
		},
		Logger: slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})), Metrics: r.set,
	}
	for _, g := range gateways {
		cfg.Endpoints = append(cfg.Endpoints, Endpoint{URL: g.url})
	}
	if change != nil {
		change(&cfg)
	}
	r.Pool = New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		assert.NoError(t, <-done)
	})
	t.Cleanup(r.stop)
	return r
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	require.Eventually(t, f, 40*time.Second, 2*time.Millisecond, what)
}

func (r *running) inState(want State) func() bool {
	return func() bool { return r.Status().State == want }
}

func open(t *testing.T, r *running, prio link.Priority) *link.Stream {
	t.Helper()
	s, err := r.Open(link.OpenRequest{Route: "git", Priority: prio})
	require.NoError(t, err)
	require.NoError(t, s.WaitOpened(t.Context()))
	return s
}

func TestConnectsAndOpens(t *testing.T) {
	g := newGateway(t)
	r := startPool(t, nil, g)
	eventually(t, "ready", r.Ready)
	s := open(t, r, link.High)
	st := r.Status()
	assert.Equal(t, Connected, st.State)
	require.Len(t, st.Tunnels, 1)
	assert.Equal(t, s.Tunnel().Name(), st.Tunnels[0].ID)
	assert.Equal(t, "test", st.Tunnels[0].Replica)
	assert.Equal(t, g.url, st.Tunnels[0].Endpoint)
	assert.Equal(t, 1, st.Tunnels[0].Streams)
	assert.Equal(t, []State{Connecting, Connected}, []State{st.Events[0].State, st.Events[1].State})
	assert.True(t, r.metric("fairlead_sidecar_tunnels 1")())
	assert.True(t, r.metric("fairlead_sidecar_streams 1")())
	assert.NoError(t, r.LastError())
	r.stop()
	assert.ErrorIs(t, s.Wait(), errs.ShuttingDown)
	assert.NotContains(t, r.log.String(), "token-1")
}

func TestWithoutATunnelOpensWait(t *testing.T) {
	r := startPool(t, func(c *Config) { c.Endpoints = InOrder([]string{"ws://127.0.0.1:1/"}) })
	_, err := r.Open(link.OpenRequest{Route: "git"})
	assert.ErrorIs(t, err, errs.NoTunnel)
	assert.False(t, r.Ready())
	eventually(t, "the reason is known", func() bool { return errs.CodeOf(r.LastError()) == errs.DialFailed })
}

// Verifies: R1.2, R1.10
func TestALostLaneIsResumed(t *testing.T) {
	g := newGateway(t)
	r := startPool(t, nil, g)
	eventually(t, "ready", r.Ready)
	s := open(t, r, link.Normal)
	before := r.Status().Tunnels[0].ID
	g.cut()
	eventually(t, "resumed", func() bool { return r.Ready() && r.Status().Tunnels[0].Resumes == 1 })
	assert.Equal(t, before, r.Status().Tunnels[0].ID)
	assert.Same(t, s.Tunnel(), open(t, r, link.Normal).Tunnel())
	assert.True(t, r.metric("fairlead_sidecar_resumes_total 1")())

	var states []State
	for _, e := range r.Status().Events {
		states = append(states, e.State)
	}
	assert.Equal(t, []State{Connecting, Connected, Resuming, Connected}, states, "events outlive the lane")
	for _, want := range []string{"msg=\"tunnel resuming\"", "attempt=1", "delay_ms=", "endpoint=" + g.url, "code=FL-N105", "msg=resuming", "tunnel=" + before} {
		assert.Contains(t, r.log.String(), want)
	}
}

func TestAnUnknownTunnelIsReplaced(t *testing.T) {
	g := newGateway(t)
	r := startPool(t, nil, g)
	eventually(t, "ready", r.Ready)
	s := open(t, r, link.Normal)
	g.with(func() { g.turn = func() error { g.forget(); return nil } })
	g.cut()
	err := s.Wait()
	assert.ErrorIs(t, err, errs.TunnelLost)
	assert.ErrorIs(t, errs.From(err).Err, errs.TunnelUnknown)
	eventually(t, "a new tunnel", r.Ready)
	assert.NotEqual(t, s.Tunnel().Name(), r.Status().Tunnels[0].ID)
}

// A tunnel can be resumed only where it lives, whichever endpoint is the first in the list.
func TestResumesWhereTheTunnelLives(t *testing.T) {
	first, second := newGateway(t), newGateway(t)
	first.with(func() { first.refuse = func(string) error { return errs.New(errs.ShuttingDown, "not now") } })
	r := startPool(t, nil, first, second)
	eventually(t, "failed over", r.Ready)
	assert.Equal(t, second.url, r.Status().Tunnels[0].Endpoint)
	s := open(t, r, link.Normal)
	first.with(func() { first.refuse = nil })
	second.cut()
	eventually(t, "resumed", func() bool { return r.Ready() && r.Status().Tunnels[0].Resumes == 1 })
	assert.Equal(t, second.url, r.Status().Tunnels[0].Endpoint)
	assert.Same(t, s.Tunnel(), open(t, r, link.Normal).Tunnel())
}

// Verifies: R1.9
func TestGivesUpOnceAndTriesAgainWhenAsked(t *testing.T) {
	g := newGateway(t)
	g.with(func() { g.refuse = func(string) error { return errs.New(errs.TokenExpired, "too old") } })
	r := startPool(t, func(c *Config) { c.Min, c.Max, c.Backoff.MaxAttempts = 2, 2, 3 }, g)
	eventually(t, "failed", r.inState(Failed))
	eventually(t, "told", func() bool { _, n := r.counts(); return n == 1 })
	assert.LessOrEqual(t, g.count(), 6, "the pool gives up as one, when the first of two slots has made three attempts")
	assert.GreaterOrEqual(t, g.count(), 3)
	assert.ErrorIs(t, r.gaveUp[0], errs.TokenExpired)
	assert.ErrorIs(t, r.LastError(), errs.GaveUp)
	assert.True(t, r.metric("fairlead_sidecar_gave_up_total 1")())
	assert.False(t, r.Ready())
	_, err := r.Open(link.OpenRequest{Route: "git"})
	assert.ErrorIs(t, err, errs.GaveUp, "waiting would be of no use")

	g.with(func() { g.refuse = nil })
	r.Reconnect()
	eventually(t, "ready again", r.Ready)
	_, n := r.counts()
	assert.Equal(t, 1, n, "said once")
}

// Verifies: R9.7
func TestReconnectingCanBeSwitchedOff(t *testing.T) {
	g := newGateway(t)
	r := startPool(t, func(c *Config) { c.Reconnect = false }, g)
	eventually(t, "ready", r.Ready)
	s := open(t, r, link.Normal)
	g.cut()
	eventually(t, "failed", r.inState(Failed))
	assert.ErrorIs(t, s.Wait(), errs.GaveUp)
	assert.Equal(t, 1, g.count())
	assert.NotContains(t, r.log.String(), "state machine")
}

func TestAServersDelayIsKept(t *testing.T) {
	g := newGateway(t)
	g.with(func() {
		g.refuse = func(string) error { return errs.New(errs.HandshakeLimit, "wait").After(time.Minute) }
	})
	r := startPool(t, nil, g)
	eventually(t, "refused", func() bool { return errs.CodeOf(r.LastError()) == errs.HandshakeLimit })
	events := r.Status().Events
	assert.Equal(t, time.Minute.Milliseconds(), events[len(events)-1].DelayMS)
	g.with(func() { g.refuse = nil })
	r.Reconnect()
	eventually(t, "a person's wish comes before it", r.Ready)
}

// Verifies: R6.5
func TestGrowsWithItsLoad(t *testing.T) {
	g := newGateway(t)
	r := startPool(t, func(c *Config) { c.Max = 3 }, g)
	eventually(t, "ready", r.Ready)
	var streams []*link.Stream
	for range 2*streamsPerTunnel + 1 {
		streams = append(streams, open(t, r, link.Normal))
	}
	eventually(t, "three tunnels", func() bool { return r.connected() == 3 })
	for range 2 * streamsPerTunnel {
		streams = append(streams, open(t, r, link.Normal))
	}
	for _, tun := range r.Status().Tunnels {
		assert.GreaterOrEqual(t, tun.Streams, streamsPerTunnel, "the new tunnels take their part")
	}
	assert.Len(t, g.all(), 3, "no more than Max")

	for _, s := range streams {
		s.Reset(nil)
	}
}

// Verifies: R6.9
func TestIdleTunnelsEndUnlessThePoolWantsThem(t *testing.T) {
	g := newGateway(t)
	r := startPool(t, func(c *Config) { c.Max, c.Mixed, c.Idle = 2, true, time.Millisecond }, g)
	eventually(t, "ready", r.Ready)
	s := open(t, r, link.High)
	eventually(t, "two tunnels while there is use", func() bool { return r.connected() == 2 })
	first := r.list()[0]
	s.Reset(nil)
	eventually(t, "one is ended", func() bool {
		r.nudge()
		return len(r.list()) == 1 && len(g.all()) == 1
	})
	assert.Same(t, first, r.list()[0], "the youngest goes first, the last one stays")
	assert.True(t, r.Ready())
}

func TestHighPriorityKeepsAwayFromBulk(t *testing.T) {
	g := newGateway(t)
	r := startPool(t, func(c *Config) { c.Min, c.Max, c.Mixed = 2, 2, true }, g)
	eventually(t, "two tunnels", func() bool { return r.connected() == 2 })
	first, second := r.list()[0].current(), r.list()[1].current()
	for range 5 {
		assert.Same(t, first, open(t, r, link.High).Tunnel(), "interactive streams share the first tunnel")
		assert.Same(t, second, open(t, r, link.Low).Tunnel(), "bulk keeps off it")
		assert.Same(t, second, open(t, r, link.Normal).Tunnel())
	}
	slot := r.list()[0]
	slot.mu.Lock()
	slot.busy.rate = 4 * bulkRate
	slot.mu.Unlock()
	s, _ := r.pick(link.High)
	assert.NotSame(t, slot, s, "a tunnel full of bulk is no place for a shell")
}

func TestATunnelOverTheTenantsLimitIsDoneWithout(t *testing.T) {
	g := newGateway(t)
	g.with(func() {
		g.turn = func() error {
			if len(g.all()) > 0 {
				return errs.New(errs.TunnelLimit, "one is enough")
			}
			return nil
		}
	})
	r := startPool(t, func(c *Config) { c.Max = 4 }, g)
	eventually(t, "ready", r.Ready)
	for range streamsPerTunnel + 2 {
		open(t, r, link.Normal)
	}
	eventually(t, "refused once", func() bool { return strings.Contains(r.log.String(), "FL-S409") })
	eventually(t, "the slot is gone", func() bool { return len(r.list()) == 1 })
	for range 5 {
		open(t, r, link.Normal)
	}
	assert.Equal(t, 2, g.count(), "it does not ask again at once")
	assert.True(t, r.Ready())
}

// The notice comes with the tunnel's lock held; whoever looks at the pool meanwhile must not wait for it the other way
// round.
func TestGoAwayWhileOthersLook(t *testing.T) {
	g := newGateway(t)
	r := startPool(t, func(c *Config) { c.Min, c.Max = 2, 4 }, g)
	eventually(t, "ready", func() bool { return r.connected() >= 2 })
	stop, looking := make(chan struct{}), sync.WaitGroup{}
	for range 4 {
		looking.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				r.Status()
				r.metric("x")()
				for _, s := range r.list() {
					s.look(time.Millisecond)
				}
			}
		})
	}
	for range 20 {
		for _, tun := range g.all() {
			tun.SendGoAway(link.GoAway{Reason: errs.New(errs.Draining, "moving"), Delay: time.Millisecond})
		}
		eventually(t, "still alive", r.Ready)
	}
	close(stop)
	looking.Wait()
}

// Verifies: R4.2
func TestARenewedTokenGoesToEveryTunnel(t *testing.T) {
	g := newGateway(t)
	r := startPool(t, func(c *Config) { c.Min, c.Max = 2, 2 }, g)
	eventually(t, "two tunnels", func() bool { return r.connected() == 2 })
	r.Renew("token-2")
	renewed := func(want ...string) func() bool {
		return func() (same bool) {
			g.with(func() { same = strings.Join(g.renewed, ",") == strings.Join(want, ",") })
			return same
		}
	}
	eventually(t, "both have it", renewed("token-2", "token-2"))
	eventually(t, "and it is said", func() bool { return strings.Count(r.log.String(), "token renewed") == 2 })
	r.Renew("bad")
	eventually(t, "refused", func() bool { return strings.Count(r.log.String(), "refused the renewed token") == 2 })
	r.Renew("")
	assert.Equal(t, 2, g.count(), "no reconnect for it")
	assert.NotContains(t, r.log.String(), "token-2")
}

func TestTheTokenOfAnAttemptIsTheNewest(t *testing.T) {
	g := newGateway(t)
	g.with(func() {
		g.refuse = func(authorization string) error {
			if authorization != "Bearer token-2" {
				return errs.New(errs.TokenExpired, "old")
			}
			return nil
		}
	})
	r := startPool(t, func(c *Config) { c.Backoff = Backoff{Base: time.Hour, Cap: time.Hour} }, g)
	eventually(t, "refused", func() bool { return errs.CodeOf(r.LastError()) == errs.TokenExpired })
	r.mu.Lock()
	r.token = "token-2"
	r.mu.Unlock()
	r.Renew("token-2")
	eventually(t, "the next attempt does not wait for its time", r.Ready)
}

func TestChangedTellsOfEveryMove(t *testing.T) {
	g := newGateway(t)
	r := startPool(t, nil, g)
	eventually(t, "ready", r.Ready)
	changed := r.Changed()
	g.cut()
	<-changed
}

func TestAnExhaustedTunnelIsReplaced(t *testing.T) {
	g := newGateway(t)
	r := startPool(t, nil, g)
	eventually(t, "ready", r.Ready)
	old := r.list()[0]
	old.leave("used up")
	eventually(t, "replaced", func() bool { return r.Ready() && r.list()[0] != old })
}
