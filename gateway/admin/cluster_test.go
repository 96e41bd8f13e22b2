package admin_test

import (
	"context"
	"encoding/json"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/gateway/admin"
	"fairlead/shared/errs"
)

// told reads the answer of an API about T.
func told[T any](t *testing.T, a *api, path string) (v T) {
	t.Helper()
	got := a.send(a.request("GET", path, ""))
	require.Equal(t, 200, got.StatusCode, got.body)
	require.NoError(t, json.Unmarshal([]byte(got.body), &v), got.body)
	return v
}

func TestReplicas(t *testing.T) {
	given := replicas()
	a := serve(t, func(c *admin.Config) {
		c.Replicas = func(ctx context.Context) (admin.ReplicasView, error) {
			_, bounded := ctx.Deadline()
			assert.True(t, bounded)
			return given, nil
		}
	})
	v := told[admin.ReplicasView](t, a, "/api/replicas")
	want := replicas()
	own, other := want.Replicas[1], want.Replicas[0]
	own.Self = true
	assert.Equal(t, admin.List[admin.Replica]{own, other}, v.Replicas, "by name, the own one marked")
	assert.Equal(t, []string{"t8", "t9"}, []string{v.Relays[0].Tunnel, v.Relays[1].Tunnel}, "oldest first")
	assert.Equal(t, 2, v.RelaysTotal)
	assert.Equal(t, want.Store, v.Store)
	assert.Equal(t, want.Leases, v.Leases)
	assert.Equal(t, want.Resumes, v.Resumes)
	assert.Equal(t, replicas(), given, "what the gateway gave is its own")

	got := a.send(a.request("GET", "/api/replicas", ""))
	for _, field := range []string{`"self": "gw/1"`, `"kind": "redis"`, `"up": false`, `"since": "2026-11-24T06:00:00.123456789Z"`, `"error": "connection refused"`, `"address": "192.0.2.9:8444"`,
		`"draining": true`, `"self": true`, `"owner": "gw-b"`, `"client": "192.0.2.7"`, `"held": 1`, `"lost": 2`, `"same": 3`, `"relayed": 4`, `"refused": 5`, `"lost": 6`} {
		assert.Contains(t, got.body, field)
	}

	d := told[admin.Diagnostics](t, a, "/api/tunnel/diagnostics")
	assert.Equal(t, admin.ReplicaCounts{Known: 2, Draining: 1, Tunnels: 6, Streams: 9}, d.Replicas)
	assert.Equal(t, []any{"redis", false, moment, "connection refused"}, []any{d.Store, d.StoreUp, d.StoreSince, d.StoreError})
}

func TestManyRelaysAreCut(t *testing.T) {
	a := serve(t, func(c *admin.Config) {
		c.Replicas = func(context.Context) (admin.ReplicasView, error) {
			v := replicas()
			v.Relays = nil
			for i := range 1500 {
				v.Relays = append(v.Relays, admin.Relay{Tunnel: fmt.Sprint(i), Since: moment.Add(time.Duration(i*7%1500) * time.Second)})
			}
			return v, nil
		}
	})
	v := told[admin.ReplicasView](t, a, "/api/replicas")
	require.Len(t, v.Relays, 1000)
	assert.Equal(t, 1500, v.RelaysTotal)
	assert.Equal(t, moment, v.Relays[0].Since)
	assert.Equal(t, moment.Add(999*time.Second), v.Relays[999].Since)
}

func TestAGatewayThatSharesNothing(t *testing.T) {
	var draining atomic.Bool
	a := serve(t, func(c *admin.Config) {
		c.Replicas, c.DrainProgress = nil, nil
		c.Diagnostics = func() admin.Diagnostics {
			return admin.Diagnostics{Instance: "gw", Version: "1", Started: moment, State: map[bool]string{false: "serving", true: "draining"}[draining.Load()], Tunnels: 1, Streams: 3, Store: "memory"}
		}
	})
	v := told[admin.ReplicasView](t, a, "/api/replicas")
	assert.Equal(t, admin.ReplicasView{Self: "gw", Store: admin.StoreView{Kind: "memory", Up: true, Since: moment}, Relays: admin.List[admin.Relay]{},
		Replicas: admin.List[admin.Replica]{{ID: "gw", Name: "gw", Version: "1", Started: moment, Tunnels: 1, Streams: 3, Self: true}}}, v)
	d := told[admin.Diagnostics](t, a, "/api/tunnel/diagnostics")
	assert.Equal(t, admin.ReplicaCounts{Known: 1, Tunnels: 1, Streams: 3}, d.Replicas)
	assert.Equal(t, []any{"memory", true, moment, ""}, []any{d.Store, d.StoreUp, d.StoreSince, d.StoreError})
	assert.Equal(t, admin.DrainView{Tunnels: 1, Streams: 3, Phase: admin.Serving}, told[admin.DrainView](t, a, "/api/drain"))
	draining.Store(true)
	assert.Equal(t, admin.DrainView{Draining: true, Tunnels: 1, Streams: 3, Phase: admin.Finishing}, told[admin.DrainView](t, a, "/api/drain"))
}

// What cannot be told of other replicas keeps nobody from seeing how this one is.
func TestReplicasThatCannotBeTold(t *testing.T) {
	a := serve(t, func(c *admin.Config) {
		c.Replicas = func(context.Context) (admin.ReplicasView, error) {
			return admin.ReplicasView{}, errs.New(errs.StoreUnavailable, "the store does not answer")
		}
	})
	got := a.send(a.request("GET", "/api/replicas", ""))
	assert.Equal(t, 503, got.StatusCode)
	assert.Equal(t, "FL-S431", got.code(t))
	d := told[admin.Diagnostics](t, a, "/api/tunnel/diagnostics")
	assert.Equal(t, []any{"gw", "redis", "away"}, []any{d.Instance, d.Store, d.StoreError}, "what Diagnostics says itself")
}

func TestDrainProgress(t *testing.T) {
	var now atomic.Pointer[admin.DrainView]
	now.Store(&admin.DrainView{})
	a := serve(t, func(c *admin.Config) {
		c.Drain = func() { now.Store(&drain1) }
		c.DrainProgress = func() admin.DrainView { return *now.Load() }
	})
	assert.Equal(t, admin.DrainView{Phase: admin.Serving}, told[admin.DrainView](t, a, "/api/drain"))
	status, _ := a.ask("POST", "/api/drain", "")
	assert.Equal(t, 202, status)
	assert.Equal(t, drain1, told[admin.DrainView](t, a, "/api/drain"))
	later := drain1
	later.Phase, later.Tunnels, later.Streams, later.Ended = admin.Ending, 0, 0, 3
	now.Store(&later)
	_, body := a.ask("GET", "/api/drain", "")
	assert.JSONEq(t, `{"draining":true,"reason":"signal_term","since":"2026-11-24T06:00:00.123456789Z","deadline":"2026-11-24T06:00:30.123456789Z",
		"tunnels":0,"streams":0,"moved":9,"ended":3,"phase":"ending"}`, body)
}
