package e2e

import (
	"encoding/json"
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	gatewayconfig "fairlead/gateway/config"
	"fairlead/shared/errs"
)

// Whatever has a configuration taken, streams whose route it takes away end, and no others.
//
// Verifies: R9.4
func TestGuardReloadsEndWhatIsForbiddenNow(t *testing.T) {
	for way, c := range map[string]struct {
		watch  time.Duration
		reload func(t *testing.T, w *world)
		by     string
	}{
		"by API": {0, func(t *testing.T, w *world) {
			var r struct {
				Applied []string
				Ended   int
			}
			require.Equal(t, http.StatusOK, ask(t, http.MethodPost, w.gateway.url("/api/reload"), "", nil, &r))
			assert.Equal(t, []string{"policy[0].routes"}, r.Applied)
			assert.Equal(t, 2, r.Ended)
		}, ""},
		"by signal":      {0, func(t *testing.T, w *world) { w.gateway.proc.signal(t, syscall.SIGHUP) }, ""},
		"by file change": {20 * time.Millisecond, func(*testing.T, *world) {}, "file change"},
	} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, withoutSidecar(), withProcesses(), withGateway(func(g *gatewayconfig.Config) { g.Reload.Watch = c.watch }),
				withTarget("echo", newTarget(t, echoServer)), withTarget("kept", newTarget(t, echoServer)))
			token := w.token(ownTenant, time.Hour)
			g, kept := w.guest(token), w.mustStream("kept", token)
			other, err := openLink(t, g.tunnel, "kept")
			require.NoError(t, err)

			w.gatewayConfig.Policy = []gatewayconfig.Rule{{Tenants: []string{ownTenant}, Routes: []string{"kept"}}}
			configFile(w, "gateway", w.gatewayConfig)
			c.reload(t, w)
			_, err = g.stream.Read(make([]byte, 1))
			require.ErrorIs(t, err, errs.RouteForbidden)
			plainIsOver(t, g.plain, errs.RouteForbidden, 1008)
			said := w.gateway.logs.wait(t, "configuration reloaded", "applied", "policy[0].routes", "ended", "2")
			if c.by != "" {
				assert.Equal(t, c.by, said.str("by"))
			}
			echoes(t, other, "goes on")
			echoesPlain(t, kept, "goes on")
			_, err = openLink(t, g.tunnel, "echo")
			require.ErrorIs(t, err, errs.RouteForbidden)
		})
	}
}

// The policy can be asked without a gateway that runs.
func TestGuardPolicyIsAskedByCommand(t *testing.T) {
	exe, _ := binaries(t)
	w := newWorld(t, withoutSidecar(), withTarget("echo", closedAddr(t)), withGateway(func(c *gatewayconfig.Config) {
		c.Policy = []gatewayconfig.Rule{{Tenants: []string{"a/*"}, Routes: []string{"echo"}}}
	}))
	file := configFile(w, "policy", w.gatewayConfig)
	args := func(tenant, route string, more ...string) []string {
		return append([]string{"policy", "test", "--config", file, "--tenant", tenant, "--route", route}, more...)
	}
	out, _, code := command(t, nil, exe, args("a/b", "echo")...)
	assert.Equal(t, errs.ExitDone, code)
	assert.Contains(t, out, `policy[0] gives tenants`)
	out, told, code := command(t, nil, exe, args("b", "echo")...)
	assert.Equal(t, errs.ExitAuthentication, code)
	assert.Contains(t, out, "policy[0] has the route, but its tenants are a/*")
	assert.Contains(t, told, errs.RouteForbidden.String())

	for tenant, want := range map[string]bool{"a/b": true, "b": false} {
		out, _, code := command(t, nil, exe, args(tenant, "echo", "--json")...)
		var d struct {
			Allowed bool
			Rule    int
			Reason  string
			Near    []string
		}
		require.NoError(t, json.Unmarshal([]byte(out), &d), out)
		assert.Equal(t, want, d.Allowed)
		assert.NotEmpty(t, d.Reason)
		if want {
			assert.Equal(t, []int{0, errs.ExitDone}, []int{d.Rule, code})
		} else {
			assert.Equal(t, []int{-1, 3}, []int{d.Rule, code})
			assert.Len(t, d.Near, 1)
		}
	}
	_, told, code = command(t, nil, exe, "policy", "test", "--config", file)
	assert.Equal(t, errs.ExitConfiguration, code)
	assert.Contains(t, told, "--tenant")
}
