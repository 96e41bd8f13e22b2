package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	gatewayconfig "fairlead/gateway/config"
	"fairlead/shared/errs"
	sidecarconfig "fairlead/sidecar/config"
)

// refusedToken is a token that a gateway refuses.
type refusedToken struct {
	name  string
	code  errs.Code
	token func(w *world) (string, error)
}

func refusedTokens() []refusedToken {
	return []refusedToken{
		{"expired", errs.TokenExpired, func(w *world) (string, error) { return w.issuer.Expired(ownTenant) }},
		{"invalid", errs.TokenInvalid, func(w *world) (string, error) { return w.issuer.WrongSignature(ownTenant) }},
		{"of the future", errs.TokenNotYet, func(w *world) (string, error) { return w.issuer.NotYetValid(ownTenant) }},
	}
}

// onlyOthers lets nobody of the test use the route "vault".
func onlyOthers(c *gatewayconfig.Config) {
	c.Policy = []gatewayconfig.Rule{{Tenants: []string{ownTenant}, Routes: []string{"echo"}}, {Tenants: []string{"other"}, Routes: []string{"vault"}}}
}

// once lets the sidecar give up after the first failed attempt.
func once(c *sidecarconfig.Config) { c.Reconnect.MaxAttempts = 1 }

// Verifies: R2.9
func TestFourKindsOfRefusalAreTold(t *testing.T) {
	_, exe := binaries(t)
	w := newWorld(t, withoutSidecar(), withSidecar(once), withGateway(onlyOthers),
		withTarget("echo", newTarget(t, echoServer)), withTarget("vault", newTarget(t, echoServer)))
	good := w.token(ownTenant, time.Hour)
	for _, c := range refusedTokens() {
		t.Run("token "+c.name, func(t *testing.T) {
			token, err := c.token(w)
			assert.NoError(t, err)
			status, answer := w.refusal("echo", token)
			assert.Equal(t, "401 "+c.code.String(), fmt.Sprint(status, " ", answer.Code), "on the wire")
			w.writeToken(token)
			w.tellsWhy(t, exe, "echo", c.code)

			w.startSidecar()
			await(t, "the sidecar has given up", func() bool {
				st := w.sidecar.status(t)
				return st.State == "failed" && st.Events[len(st.Events)-1].State == "failed"
			})
			st := w.sidecar.status(t)
			last := st.Events[len(st.Events)-1]
			assert.Contains(t, last.Reason, c.code.String(), "in the status")
			assert.Contains(t, st.Tunnels[0].Error, c.code.String())
			assert.NotEmpty(t, w.gateway.logs.find("authentication refused", "code", c.code.String(), "path", "/v1/tunnel"), "in the gateway's log")
			assert.Contains(t, w.sidecar.logs.text(), c.code.String()+": the gateway refused", "in the sidecar's log")
			assert.NotContains(t, w.sidecar.logs.text()+w.gateway.logs.text(), token)
			assert.NoError(t, w.sidecar.stop())
		})
	}
	t.Run("no token", func(t *testing.T) {
		status, answer := w.refusal("echo", "")
		assert.Equal(t, "401 FL-A201", fmt.Sprint(status, " ", answer.Code))
		assert.NotEmpty(t, w.gateway.logs.find("authentication refused", "code", "FL-A201"))
		without := w.sidecarConfig
		without.Gateway.TokenFile = ""
		_, told, code := command(t, nil, exe, "connect", "echo", "--config", configFile(w, "without", without))
		assert.Equal(t, errs.ExitAuthentication, code)
		assert.Contains(t, told, "FL-A201")
	})
	t.Run("forbidden route", func(t *testing.T) {
		status, answer := w.refusal("vault", good)
		assert.Equal(t, "403 FL-A204", fmt.Sprint(status, " ", answer.Code))
		w.writeToken(good)
		w.tellsWhy(t, exe, "vault", errs.RouteForbidden)
		w.startSidecar()
		w.waitReady()
		w.refused("vault")
		w.sidecar.logs.wait(t, "connection ended", "route", "vault", "code", "FL-A204")
		w.gateway.logs.wait(t, "stream refused", "route", "vault", "code", "FL-A204")
		echoes(t, w.dial("echo"), "the other route works")
	})
}

// tellsWhy asserts that a person who runs connect is told the code and what to do about it, and gets the exit code for
// authentication.
func (w *world) tellsWhy(t *testing.T, exe, route string, code errs.Code) {
	t.Helper()
	cfg := w.sidecarConfig
	cfg.Reconnect.MaxAttempts, cfg.Queue.Wait = 0, 10*patience // a person is told at once, whatever a sidecar would do
	_, told, exit := command(t, nil, exe, "connect", route, "--config", configFile(w, "connect", cfg))
	assert.Equal(t, errs.ExitAuthentication, exit, told)
	assert.Contains(t, told, "sidecar: "+code.String()+": ")
}
