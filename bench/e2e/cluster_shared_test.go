package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/bench/cluster"
	gatewayconfig "fairlead/gateway/config"
	"fairlead/shared/errs"
)

// clusterSite starts gateways that share a Redis, without sidecars.
func clusterSite(t *testing.T, cfg cluster.Config) *cluster.Site {
	t.Helper()
	cfg.Dir, cfg.Bin, cfg.Patient = t.TempDir(), clusterBin(t), true
	s, err := cluster.Start(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		assert.NoError(t, s.Err())
		assert.NoError(t, s.Close())
		assert.Empty(t, s.Races())
		if t.Failed() {
			clusterLogs(t, cfg.Dir)
		}
	})
	return s
}

// clusterTunnel is a tunnel of a tenant at a replica.
func clusterTunnel(t *testing.T, s *cluster.Site, tenant string, replica int) *cluster.Tunnel {
	t.Helper()
	c, err := s.Client(tenant)
	require.NoError(t, err)
	tun, err := c.Connect(t.Context(), s.Replicas[replica].Address())
	require.NoError(t, err)
	t.Cleanup(tun.End)
	return tun
}

// What is revoked at one replica ends at all, also at one that was cut off from the store when it was told; nobody else is
// touched.
//
// Verifies: R4.5
func TestClusterRevocations(t *testing.T) {
	t.Parallel()
	s := clusterSite(t, cluster.Config{})
	bystander := clusterTunnel(t, s, "bystander", 2)
	stays, err := bystander.Talk(cluster.RouteEcho)
	require.NoError(t, err)
	var tunnels []*cluster.Tunnel
	var talks []*cluster.Talk
	for n := range s.Replicas {
		tun := clusterTunnel(t, s, "thief", n)
		talk, err := tun.Talk(cluster.RouteEcho)
		require.NoError(t, err)
		tunnels, talks = append(tunnels, tun), append(talks, talk)
	}
	s.Replicas[2].Store.Blackhole()
	status, answer, err := s.Replicas[0].Ask(t.Context(), http.MethodPost, "/api/revocations", `{"tenant": "thief", "reason": "stolen"}`)
	require.NoError(t, err)
	require.Equal(t, http.StatusCreated, status, string(answer))
	over := func(n int) {
		t.Helper()
		await(t, fmt.Sprintf("the tunnel at replica %d is over", n), func() bool { return tunnels[n].Err() != nil })
		require.ErrorIs(t, tunnels[n].Err(), errs.TokenRevoked)
		require.ErrorIs(t, talks[n].Say(), errs.TokenRevoked)
	}
	over(0)
	over(1)
	require.NoError(t, talks[2].Say(), "it cannot have heard of it")
	s.Replicas[2].Store.Resume()
	over(2)
	require.NoError(t, stays.Say())
	c, err := s.Client("thief")
	require.NoError(t, err)
	for _, one := range s.Replicas {
		_, err := c.Connect(t.Context(), one.Address())
		require.ErrorIs(t, err, errs.TokenRevoked, one.Name)
	}
}

// clusterBackend is what a gateway says about a backend.
type clusterBackend struct {
	Breaker  string `json:"breaker"`
	Failures int    `json:"failures"`
}

// A backend that has failed five times at one replica is left alone by all; once the time is over one of them tries it for
// all, and when it works it does so everywhere.
//
// Verifies: R5.7, R5.8
func TestClusterCircuits(t *testing.T) {
	t.Parallel()
	const failures, retryAfter = 5, 2 * time.Second
	s := clusterSite(t, cluster.Config{Gateway: func(_ int, c *gatewayconfig.Config) {
		c.Breaker.Failures, c.Breaker.RetryAfter = failures, retryAfter
	}})
	require.NoError(t, s.Backend.Refuse())
	var tunnels []*cluster.Tunnel
	for n := range s.Replicas {
		tunnels = append(tunnels, clusterTunnel(t, s, "dev", n))
	}
	state := func(n int) (b clusterBackend) {
		assert.NoError(t, s.Replicas[n].Get(t.Context(), "/api/backends/"+cluster.RouteBroken, &b))
		return b
	}
	for i := range failures {
		_, err := tunnels[0].Talk(cluster.RouteBroken)
		require.ErrorIs(t, err, errs.BackendUnreachable, i)
	}
	opened := time.Now()
	require.Equal(t, "open", state(0).Breaker)
	for n := range s.Replicas {
		await(t, fmt.Sprintf("the circuit is open at replica %d", n), func() bool { return state(n).Breaker != "closed" })
	}

	// Each round of opens is refused but for those that are probes: one in each time, of all replicas together. One may be too
	// many, when a replica hears late of a probe that has failed; each for itself they would make three times as many.
	const times = 3
	probes, refused := 0, 0
	for time.Since(opened) < times*retryAfter+retryAfter/2 {
		for n := range tunnels {
			switch _, err := tunnels[n].Talk(cluster.RouteBroken); errs.CodeOf(err) {
			case errs.BackendUnreachable:
				probes++
			case errs.CircuitOpen:
				refused++
			default:
				require.NoError(t, err, "the backend takes no connections")
			}
		}
	}
	assert.Positive(t, probes)
	assert.LessOrEqual(t, probes, int(time.Since(opened)/retryAfter)+1, "probes after %v", time.Since(opened))
	assert.Positive(t, refused)

	require.NoError(t, s.Backend.Accept())
	await(t, "a probe has succeeded", func() bool {
		_, err := tunnels[1].Talk(cluster.RouteBroken)
		return err == nil
	})
	for n := range tunnels {
		await(t, fmt.Sprintf("the circuit is closed at replica %d", n), func() bool { return state(n).Breaker == "closed" })
		_, err := tunnels[n].Talk(cluster.RouteBroken)
		require.NoError(t, err, n)
	}
}

// A person who asks one replica sees all, and whose tunnels are relayed where.
//
// Verifies: R8.5, R8.10
func TestClusterIsSeenAtEveryReplica(t *testing.T) {
	t.Parallel()
	s := clusterSite(t, cluster.Config{})
	tun := clusterTunnel(t, s, "dev", 0)
	talk, err := tun.Talk(cluster.RouteEcho)
	require.NoError(t, err)
	require.Equal(t, "gateway-0", tun.Replica())
	require.NoError(t, tun.Resume(t.Context(), s.Replicas[1].Address()))
	require.NoError(t, talk.Say())
	require.Equal(t, "gateway-0", tun.Replica(), "the owner stays")
	var seen struct {
		Replicas []struct {
			Name     string `json:"name"`
			Draining bool   `json:"draining"`
		} `json:"replicas"`
		Relays []struct {
			Tunnel string `json:"tunnel"`
			Owner  string `json:"owner"`
		} `json:"relays"`
	}
	for n, one := range s.Replicas {
		await(t, one.Name+" knows all", func() bool {
			_, raw, err := one.Ask(t.Context(), http.MethodGet, "/api/replicas", "")
			return err == nil && json.Unmarshal(raw, &seen) == nil && len(seen.Replicas) == len(s.Replicas)
		})
		require.Len(t, seen.Relays, map[int]int{1: 1}[n], one.Name)
		if n == 1 {
			assert.Equal(t, tun.Name(), seen.Relays[0].Tunnel)
			assert.Equal(t, "gateway-0", seen.Relays[0].Owner)
		}
	}
	ended, err := s.Replicas[0].Terminate() // the stream, which is relayed, keeps it
	require.NoError(t, err)
	await(t, "others see that it drains", func() bool {
		_, raw, err := s.Replicas[2].Ask(t.Context(), http.MethodGet, "/api/replicas", "")
		return err == nil && json.Unmarshal(raw, &seen) == nil && len(seen.Replicas) > 0 && seen.Replicas[0].Draining
	})
	require.NoError(t, talk.Say(), "what is open is served on")
	tun.End()
	select {
	case err := <-ended:
		require.NoError(t, err)
	case <-time.After(patience):
		require.Fail(t, "it does not stop")
	}
}
