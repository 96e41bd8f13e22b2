package e2e

import (
	"encoding/json"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	gatewayconfig "fairlead/gateway/config"
	"fairlead/shared/errs"
	"fairlead/shared/link"
)

// tenantAtGateway is an element of what GET /api/tenants answers.
type tenantAtGateway struct {
	Tenant                                  string
	Tunnels, Streams, Opens, Refused, Waits int
}

func (w *world) tenantCounts(t *testing.T, token, tenant string) tenantAtGateway {
	t.Helper()
	var list []tenantAtGateway
	require.Equal(t, http.StatusOK, ask(t, http.MethodGet, w.gateway.url("/api/tenants"), token, nil, &list))
	for _, one := range list {
		if one.Tenant == tenant {
			return one
		}
	}
	require.Fail(t, "the gateway does not know the tenant", tenant)
	return tenantAtGateway{}
}

// One tenant with a good token of its own opens far more than it may, and tries the admin API, while another one works.
//
// Verifies: R4.1, R10.7
func TestGuardAFloodOfOpensIsItsTenantsOwn(t *testing.T) {
	t.Parallel()
	const flood, allowed = 200, 20
	w := newWorld(t, withoutSidecar(), withClaims(), withCallers(), withTarget("echo", newTarget(t, echoServer)), withGateway(func(c *gatewayconfig.Config) {
		c.Tiers = map[string]gatewayconfig.Tier{gatewayconfig.DefaultTier: {OpensPerMinute: 60, Burst: 60, Streams: allowed, Tunnels: 2}}
	}))
	victim := w.guest(w.signed("victim", nil))
	own := w.signed("hostile", nil)
	hostile, _ := w.connectLink(own)

	for _, path := range []string{"/api/tunnels/" + victim.tunnel.Name(), "/api/streams/" + victim.tunnel.Name() + "/1"} {
		for _, token := range []string{"", own, adminToken(operator) + "?"} {
			var a errs.Answer
			assert.Equal(t, http.StatusUnauthorized, ask(t, http.MethodDelete, w.gateway.url(path), token, nil, &a), path)
			assert.Equal(t, errs.AdminDenied.String(), a.Code)
			assert.NotContains(t, a.Message, victim.tunnel.Name())
		}
	}
	victim.works(t)

	opened := make(chan error, flood)
	var wg sync.WaitGroup
	for range flood {
		wg.Go(func() {
			s, err := hostile.Open(link.OpenRequest{Route: "echo", Peer: "test"})
			if err == nil {
				err = s.WaitOpened(t.Context())
			}
			opened <- err
		})
	}
	const opens = 10
	for range opens {
		s, err := openLink(t, victim.tunnel, "echo")
		require.NoError(t, err, "every open of the victim")
		echoes(t, s, "while the other one floods")
		victim.works(t)
		require.NoError(t, s.CloseWrite())
		_, err = s.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF)
	}
	wg.Wait()
	close(opened)
	var granted int
	for err := range opened {
		if err == nil {
			granted++
			continue
		}
		require.ErrorIs(t, err, errs.StreamLimit)
	}
	assert.Equal(t, allowed, granted)

	await(t, "the victim's further streams have ended", func() bool { return w.tenantCounts(t, adminToken("victor"), "victim").Streams == 2 })
	assert.Equal(t, tenantAtGateway{Tenant: "victim", Tunnels: 1, Streams: 2, Opens: 2 + opens}, w.tenantCounts(t, adminToken("victor"), "victim"))
	theirs := w.tenantCounts(t, adminToken("victor"), "hostile")
	assert.Equal(t, []int{allowed, flood - allowed}, []int{theirs.Streams, theirs.Refused})
	measured := parseMetrics(t, get(t, w.gateway.url("/metrics")))
	assert.EqualValues(t, 2+opens, measured[`fairlead_gateway_tenant_opens_total{tenant="victim",result="opened"}`])
	victim.works(t)
}

// What an operator does to a backend's circuit, a stream and a tunnel works, is a viewer's not, and is told with who did it.
//
// Verifies: R4.9
func TestGuardOperatorsActAndViewersLook(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withoutSidecar(), withProcesses(), withAudit(nil), withCallers(), withTarget("echo", newTarget(t, echoServer)))
	g := w.guest(w.token(ownTenant, time.Hour))
	as := func(who, method, path string, body any) int {
		t.Helper()
		return ask(t, method, w.gateway.url(path), adminToken(who), body, nil)
	}
	stream, tunnel, breaker := "/api/streams/"+g.tunnel.Name()+"/1", "/api/tunnels/"+g.tunnel.Name(), "/api/backends/echo/breaker"
	for path, body := range map[string]any{breaker: map[string]string{"mode": "open"}, stream: nil, tunnel: nil, "/api/drain": nil, "/api/log-level": map[string]string{"level": "warn"}} {
		method := map[bool]string{true: http.MethodPut, false: http.MethodDelete}[body != nil]
		if path == "/api/drain" {
			method = http.MethodPost
		}
		assert.Equal(t, http.StatusForbidden, as("victor", method, path, body), path)
		w.onlyAudited(t, "actor", "victor", "target", method+" "+path, "result", "refused", "code", errs.RoleForbidden.String())
	}
	for _, path := range []string{"/api/tunnels", "/api/streams", "/api/backends", "/api/tunnel/diagnostics"} {
		assert.Equal(t, http.StatusOK, as("victor", http.MethodGet, path, nil), path)
	}
	g.works(t)

	require.Equal(t, http.StatusOK, as(operator, http.MethodPut, breaker, map[string]string{"mode": "open"}))
	_, err := openLink(t, g.tunnel, "echo")
	require.ErrorIs(t, err, errs.CircuitOpen)
	var backend struct {
		Breaker, Mode string
		By            string `json:"changed_by"`
	}
	require.Equal(t, http.StatusOK, ask(t, http.MethodGet, w.gateway.url("/api/backends/echo"), adminToken("victor"), nil, &backend))
	assert.Equal(t, []string{"open", "open", operator}, []string{backend.Breaker, backend.Mode, backend.By})
	w.onlyAudited(t, "action", "breaker", "actor", operator, "backend", "echo")
	g.works(t)
	require.Equal(t, http.StatusOK, as(operator, http.MethodPut, breaker, map[string]string{"mode": "auto"}))
	next, err := openLink(t, g.tunnel, "echo")
	require.NoError(t, err)

	require.Equal(t, http.StatusNoContent, as(operator, http.MethodDelete, stream, nil))
	_, err = g.stream.Read(make([]byte, 1))
	require.ErrorIs(t, err, errs.ShuttingDown)
	echoes(t, next, "another stream goes on")
	w.onlyAudited(t, "action", "administer", "actor", operator, "target", "DELETE "+stream, "result", "allowed")
	require.Equal(t, http.StatusNoContent, as(operator, http.MethodDelete, tunnel, nil))
	require.ErrorIs(t, <-g.lane.ended, errs.ShuttingDown)
	w.onlyAudited(t, "action", "administer", "actor", operator, "target", "DELETE "+tunnel, "result", "allowed")
	echoesPlain(t, g.plain, "not of the tunnel")
	var raw json.RawMessage
	require.Equal(t, http.StatusNotFound, ask(t, http.MethodDelete, w.gateway.url(tunnel), adminToken(operator), nil, &raw))
}
