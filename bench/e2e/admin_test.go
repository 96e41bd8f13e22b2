package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

// Verifies: R11.2
func TestReadyMeansThatConnectionsWork(t *testing.T) {
	w := newWorld(t, withoutSidecar(), withTarget("echo", newTarget(t, echoServer)))
	for _, path := range []string{"/healthz", "/startupz", "/readyz"} {
		get(t, w.gateway.url(path))
	}
	require.NoError(t, w.proxy.Refuse())
	w.startSidecar()
	get(t, w.sidecar.url("/healthz"))
	get(t, w.sidecar.url("/startupz"))
	await(t, "an attempt has failed", func() bool {
		st := w.sidecar.status(t)
		return len(st.Tunnels) == 1 && st.Tunnels[0].Error != ""
	})
	status, body := request(t, http.MethodGet, w.sidecar.url("/readyz"), "")
	assert.Equal(t, http.StatusServiceUnavailable, status)
	assert.Contains(t, body, errs.NoTunnel.String())
	assert.NotEqual(t, "connected", w.sidecar.status(t).State)

	require.NoError(t, w.proxy.Accept())
	w.waitReady()
	c := w.dial("echo")
	echoes(t, c, "at once")
	assert.Equal(t, "connected", w.sidecar.status(t).State)
	require.NoError(t, c.Close())

	status, _ = request(t, http.MethodPost, w.gateway.url("/api/drain"), "")
	assert.Equal(t, http.StatusAccepted, status)
	await(t, "the sidecar is not ready without a gateway", func() bool { return statusOf(w.sidecar.url("/readyz")) == http.StatusServiceUnavailable })
	<-w.gateway.done
	require.NoError(t, w.gateway.err)
	w.startGateway()
	w.waitReady()
	echoes(t, w.dial("echo"), "at another gateway")

	status, _ = request(t, http.MethodPost, w.sidecar.url("/quitquitquit"), "")
	assert.Equal(t, http.StatusAccepted, status)
	<-w.sidecar.done
	require.NoError(t, w.sidecar.err)
}

func TestStatusSaysWhatPeopleNeed(t *testing.T) {
	w := newWorld(t, withTarget("echo", newTarget(t, echoServer)))
	c := w.dial("echo")
	echoes(t, c, "one")
	var raw map[string]any
	require.NoError(t, json.Unmarshal([]byte(get(t, w.sidecar.url("/api/status"))), &raw))
	for _, field := range []string{"state", "since", "tunnels", "queue", "listeners", "quality", "events"} {
		assert.Contains(t, raw, field)
	}
	for _, field := range []string{"id", "endpoint", "replica", "state", "rtt_ms", "streams", "resumes"} {
		assert.Contains(t, raw["tunnels"].([]any)[0], field)
	}
	for _, field := range []string{"name", "listen", "route", "priority", "active", "total"} {
		assert.Contains(t, raw["listeners"].([]any)[0], field)
	}
	st := w.sidecar.status(t)
	assert.Equal(t, "connected", st.State)
	require.Len(t, st.Tunnels, 1)
	assert.Equal(t, "gateway", st.Tunnels[0].Replica)
	assert.Equal(t, 1, st.Tunnels[0].Streams)
	assert.Equal(t, w.gateway.tunnels(t)[0].ID, st.Tunnels[0].ID)
	require.Len(t, st.Listeners, 1)
	assert.Equal(t, w.sidecar.addr(t, "echo"), st.Listeners[0].Listen)
	assert.Equal(t, []any{"echo", "normal", 1, 1}, []any{st.Listeners[0].Route, st.Listeners[0].Priority, st.Listeners[0].Active, st.Listeners[0].Total})
	assert.Equal(t, 100, st.Queue.Size)
	await(t, "the path is graded", func() bool {
		return slices.Contains([]string{"excellent", "good", "fair", "poor"}, w.sidecar.status(t).Quality) // by how busy this machine is
	})

	seen := w.gateway.tunnels(t)[0]
	assert.Equal(t, []any{ownTenant, ownTenant, "connected", 1, 1}, []any{seen.Tenant, seen.Subject, seen.State, seen.Streams, seen.Opened})
	assert.WithinDuration(t, time.Now().Add(time.Hour), seen.Expires, time.Minute)
	status, _ := request(t, http.MethodDelete, w.gateway.url("/api/tunnels/"+seen.ID), "")
	assert.Equal(t, http.StatusNoContent, status)
	await(t, "another tunnel takes its place", func() bool {
		list := w.gateway.tunnels(t)
		return len(list) == 1 && list[0].ID != seen.ID
	})
	status, _ = request(t, http.MethodDelete, w.gateway.url("/api/tunnels/"+seen.ID), "")
	assert.Equal(t, http.StatusNotFound, status)
	w.waitReady()
	echoes(t, w.dial("echo"), "again")
}

// Verifies: R1.2
func TestStatesAndEventsSurviveReconnects(t *testing.T) {
	const cuts = 60 // of which each makes two events at least
	w := newWorld(t, withTarget("echo", newTarget(t, echoServer)))
	c := w.dial("echo")
	id := w.sidecar.tunnelID(t)
	for i := range cuts {
		require.Equal(t, 1, w.proxy.Cut())
		echoes(t, c, fmt.Sprint("after cut ", i+1))
		await(t, "the tunnel is resumed", func() bool {
			st := w.sidecar.status(t)
			return st.State == "connected" && st.Tunnels[0].Resumes == i+1
		})
	}
	st := w.sidecar.status(t)
	assert.Equal(t, id, st.Tunnels[0].ID)
	require.Len(t, st.Events, 100, "the last hundred")
	last := st.Events[0]
	after := map[string][]string{"connected": {"resuming"}, "resuming": {"resuming", "connected"}}
	for i, e := range st.Events[1:] {
		assert.Contains(t, after[last.State], e.State, "event %d follows %s", i+1, last.State)
		assert.False(t, e.Time.Before(last.Time))
		assert.Equal(t, 1, e.Tunnel)
		assert.NotEmpty(t, e.Reason)
		if e.State == "resuming" {
			assert.NotEmpty(t, e.Code)
		}
		last = e
	}
	assert.Equal(t, "connected", last.State)
	all := w.sidecar.logs.find("tunnel connecting")
	require.Len(t, all, 1, "the log has the ones before, too")
	assert.Equal(t, "disconnected", all[0].str("from"))
}

// Verifies: R2.7
func TestDiagnosticsOfTheGateway(t *testing.T) {
	w := newWorld(t, withTarget("echo", newTarget(t, echoServer)), withForward("behind", newTarget(t, echoServer)))
	echoes(t, w.dial("echo"), "one")
	echoes(t, w.dial("behind"), "two")
	var d struct {
		Instance, Version, State, Store string
		Started                         time.Time
		Tunnels, Streams                int
		Detached                        int `json:"tunnels_detached"`
		Backends                        []backendAtGateway
	}
	require.NoError(t, json.Unmarshal([]byte(get(t, w.gateway.url("/api/tunnel/diagnostics"))), &d))
	assert.Equal(t, []any{"gateway", version, "serving", "memory", 1, 0, 2}, []any{d.Instance, d.Version, d.State, d.Store, d.Tunnels, d.Detached, d.Streams})
	assert.WithinDuration(t, time.Now(), d.Started, 2*patience)
	require.Len(t, d.Backends, 2)
	assert.Equal(t, w.ssh.Addr(), d.Backends[1].Address)
	require.Len(t, d.Backends[1].Pools, 1)
	assert.Equal(t, 1, d.Backends[1].Pools[0].Channels)
}

// A web page that a person on the machine visits can neither read nor change anything.
func TestAdminAPIsRefuseWebPages(t *testing.T) {
	w := newWorld(t, withTarget("echo", newTarget(t, echoServer)))
	for _, c := range []struct{ method, url, host, origin string }{
		{"POST", w.sidecar.url("/quitquitquit"), "", "https://evil.example"},
		{"GET", w.sidecar.url("/api/status"), "rebound.evil.example", ""},
		{"POST", w.gateway.url("/api/drain"), "", "https://evil.example"},
		{"GET", w.gateway.url("/api/tunnels"), "rebound.evil.example", ""},
	} {
		r, err := http.NewRequestWithContext(t.Context(), c.method, c.url, nil)
		require.NoError(t, err)
		r.Host = c.host
		if c.origin != "" {
			r.Header.Set("Origin", c.origin)
		}
		answer, err := httpClient().Do(r)
		require.NoError(t, err)
		assert.Equal(t, http.StatusUnauthorized, answer.StatusCode, c.url)
		assert.Equal(t, errs.AdminDenied.String(), readAnswer(t, answer).Code)
		require.NoError(t, answer.Body.Close())
	}
	echoes(t, w.dial("echo"), "both still run")
}
