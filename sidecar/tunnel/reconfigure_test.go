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
)

// changed is the pool's configuration with a change.
func (r *running) changedBy(change func(*Config)) Config {
	c := *r.config()
	change(&c)
	return c
}

// Endpoints can be replaced at run time: new tunnels are made first, and streams finish where they are.
func TestEndpointsAreReplacedWithoutDroppingAStream(t *testing.T) {
	t.Parallel()
	first, second := newGateway(t), newGateway(t)
	r := startPool(t, func(c *Config) { c.Min, c.Max = 2, 2 }, first)
	eventually(t, "two tunnels", func() bool { return r.connected() == 2 })
	s := open(t, r, link.Normal)
	gap := make(chan struct{})
	watched := make(chan bool, 1)
	go func() { // new streams are carried all the time
		ok := true
		for {
			select {
			case <-gap:
				watched <- ok
				return
			default:
				ok = ok && r.Ready()
			}
		}
	}()
	require.NoError(t, r.Reconfigure(r.changedBy(func(c *Config) { c.Endpoints = []Endpoint{{URL: second.url}} })))
	eventually(t, "both tunnels are at the second", func() bool {
		n := 0
		for _, t := range r.Status().Tunnels {
			if t.State == Connected && t.Endpoint == second.url {
				n++
			}
		}
		return n == 2
	})
	close(gap)
	assert.True(t, <-watched, "there was a usable tunnel at every moment")
	assert.NoError(t, s.Tunnel().Err())
	assert.Equal(t, second.url, r.at())
	assert.Len(t, r.Status().Endpoints, 1)
	s.Reset(nil)
	eventually(t, "the old ones end", func() bool { return len(first.all()) == 0 && len(r.Status().Tunnels) == 2 })
}

// While the new endpoint does not answer the old tunnels stay.
func TestARemovedEndpointIsKeptUntilThereIsAnother(t *testing.T) {
	t.Parallel()
	first, second := newGateway(t), newGateway(t)
	second.with(func() { second.refuse = func(string) error { return errs.New(errs.Overloaded, "not yet") } })
	r := startPool(t, func(c *Config) { c.Probe = 10 * time.Millisecond }, first)
	eventually(t, "ready", r.Ready)
	require.NoError(t, r.Reconfigure(r.changedBy(func(c *Config) { c.Endpoints = []Endpoint{{URL: second.url}} })))
	eventually(t, "it is tried more than once", func() bool { return second.count() > 1 })
	assert.True(t, r.Ready())
	second.with(func() { second.refuse = nil })
	eventually(t, "moved", func() bool { return r.at() == second.url })
}

func TestThePoolsSizeFollows(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	r := startPool(t, nil, g)
	eventually(t, "ready", r.Ready)
	require.NoError(t, r.Reconfigure(r.changedBy(func(c *Config) { c.Min, c.Max = 3, 3 })))
	eventually(t, "three", func() bool { return r.connected() == 3 })
	require.NoError(t, r.Reconfigure(r.changedBy(func(c *Config) { c.Min, c.Max = 1, 1 })))
	eventually(t, "one", func() bool { return len(r.list()) == 1 && len(g.all()) == 1 })
	assert.True(t, r.Ready())

	assert.ErrorIs(t, r.Reconfigure(Config{}), errs.ConfigInvalid)
	assert.True(t, r.Ready(), "what cannot be is refused, and changes nothing")
}

// Token, backoff and heartbeat take effect on what there is.
func TestTheRestFollowsToo(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	g.with(func() {
		g.refuse = func(authorization string) error {
			if strings.HasSuffix(authorization, "other") {
				return nil
			}
			return errs.New(errs.TokenInvalid, "no")
		}
	})
	r := startPool(t, func(c *Config) { c.Backoff = Backoff{Base: time.Hour, Cap: time.Hour} }, g)
	eventually(t, "refused", func() bool { return errs.CodeOf(r.LastError()) == errs.TokenInvalid })
	require.NoError(t, r.Reconfigure(r.changedBy(func(c *Config) {
		c.Token = func() (string, error) { return "other", nil }
		c.Link.Heartbeat = 7 * time.Second
	})))
	eventually(t, "the attempt that waited an hour is made", r.Ready)
	s := open(t, r, link.Normal)
	assert.Equal(t, 7*time.Second, s.Tunnel().Stats().Heartbeat)
	require.NoError(t, r.Reconfigure(r.changedBy(func(c *Config) { c.Link.Heartbeat = 9 * time.Second })))
	assert.Equal(t, 9*time.Second, s.Tunnel().Stats().Heartbeat)
	require.NoError(t, r.Reconfigure(r.changedBy(func(c *Config) { c.Reconnect = false })))
	g.cut()
	eventually(t, "reconnecting is off now", r.inState(Failed))
	assert.ErrorIs(t, s.Wait(), errs.GaveUp)
	require.NoError(t, r.Reconfigure(r.changedBy(func(c *Config) { c.Reconnect = true })))
	r.Reconnect()
	eventually(t, "and on again", r.Ready)
}

// Where a sidecar was before a restart it goes first, and back to the preferred endpoint in its time.
//
// Verifies: R8.7
func TestTheEndpointIsRemembered(t *testing.T) {
	t.Parallel()
	first, second := newGateway(t), newGateway(t)
	first.with(func() { first.refuse = func(string) error { return errs.New(errs.Overloaded, "not now") } })
	path := t.TempDir() + "/state.json"
	memory := openMemory(t, path)
	r := startPool(t, func(c *Config) { c.Memory = memory }, first, second)
	eventually(t, "at the second", func() bool { return r.at() == second.url })
	r.stop()
	memory.Flush()
	asked := first.count()
	memory = openMemory(t, path)
	r = startPool(t, func(c *Config) { c.Memory = memory }, first, second)
	eventually(t, "ready", r.Ready)
	assert.Equal(t, second.url, r.at())
	assert.Equal(t, asked, first.count(), "the first was not asked")
}

// A thousand attempts, through two endpoints that fail in every way at once, leave nothing behind (TestMain looks).
func TestAThousandAttemptsLeaveNothingBehind(t *testing.T) {
	first, second := newGateway(t), newGateway(t)
	r := startPool(t, func(c *Config) {
		c.Min, c.Max, c.Backoff = 4, 4, Backoff{Base: 10 * time.Microsecond, Cap: 100 * time.Microsecond}
	}, first, second)
	var n atomic.Int64
	fail := func() error {
		switch n.Add(1) % 4 {
		case 0:
			return nil
		case 1:
			return errs.New(errs.TunnelUnknown, "gone")
		}
		return errs.New(errs.Overloaded, "no room")
	}
	for _, g := range []*gateway{first, second} {
		g.with(func() { g.turn = fail })
	}
	eventually(t, "a thousand attempts", func() bool {
		first.cut()
		second.cut()
		return first.count()+second.count() > 1000
	})
	for _, g := range []*gateway{first, second} {
		g.with(func() { g.turn = nil })
	}
	eventually(t, "ready after all", r.Ready)
	open(t, r, link.High)
	assert.Zero(t, strings.Count(r.log.String(), "state machine"))
}
