package e2e

import (
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	gatewayconfig "fairlead/gateway/config"
	"fairlead/shared/errs"
	"fairlead/shared/testbed"
)

// revocation is what the admin API says of one.
type revocation struct {
	ID, By  string
	Ended   int
	Expires time.Time
}

func (w *world) revoke(t *testing.T, what map[string]any) (r revocation) {
	t.Helper()
	require.Equal(t, http.StatusCreated, ask(t, http.MethodPost, w.gateway.url("/api/revocations"), "", what, &r))
	require.NotEmpty(t, r.ID)
	return r
}

func (w *world) unrevoke(t *testing.T, r revocation) {
	t.Helper()
	require.Equal(t, http.StatusNoContent, ask(t, http.MethodDelete, w.gateway.url("/api/revocations/"+r.ID), "", nil, nil))
}

// Revoking ends what is open before the request is answered, and takes nothing from anybody else.
//
// Verifies: R4.5, R4.1
func TestGuardRevocationsEndWhatIsOpen(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withoutSidecar(), withClaims(), withTarget("echo", newTarget(t, echoServer)))
	bystander := w.guest(w.signed("bystander", nil))
	for _, c := range []struct {
		by, what string
		sibling  testbed.Claims // of a token of the same tenant that is not meant; nil: all are
	}{
		{"token_id", "jti-1", testbed.Claims{"sub": "alice", "jti": "jti-2"}},
		{"subject", "alice", testbed.Claims{"sub": "bob", "jti": "jti-1"}},
		{"tenant", "home", nil},
	} {
		t.Run(c.by, func(t *testing.T) {
			token := w.signed("home", testbed.Claims{"sub": "alice", "jti": "jti-1"})
			g := w.guest(token)
			var sibling *guest
			if c.sibling != nil {
				sibling = w.guest(w.signed("home", c.sibling))
			}
			r := w.revoke(t, map[string]any{c.by: c.what, "reason": "stolen"})
			assert.GreaterOrEqual(t, r.Ended, 3, "a tunnel, its stream and a plain one")
			g.isOver(t, errs.TokenRevoked, errs.CloseInvalid)
			await(t, "nothing of it is left", func() bool {
				for _, tunnel := range w.gateway.tunnels(t) {
					if tunnel.ID == g.tunnel.Name() {
						return false
					}
				}
				return true
			})
			w.isRefused(t, token, errs.TokenRevoked)
			if sibling != nil {
				sibling.works(t)
				sibling.tunnel.Close(nil)
			}
			bystander.works(t)
			w.unrevoke(t, r)
			w.guest(token).tunnel.Close(nil)
		})
	}
}

// A revocation of what was issued before a time logs everybody out, who can come back with a new token; and it is still in
// force after a restart.
//
// Verifies: R4.5
func TestGuardRevocationsSpareNewerTokensAndSurviveARestart(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withoutSidecar(), withClaims(), withTarget("echo", newTarget(t, echoServer)), func(w *world) {
		w.gatewayConfig.Revocations = gatewayconfig.Revocations{File: filepath.Join(w.dir, "revocations.json"), Review: time.Second}
	})
	now := time.Now()
	old := w.signed("home", testbed.Claims{"iat": now.Add(-time.Minute).Unix()})
	silent := w.signed("home", testbed.Claims{"iat": nil})
	renewed := w.signed("home", testbed.Claims{"iat": now.Add(-2 * time.Second).Unix()})
	out, in := w.guest(old), w.guest(renewed)
	r := w.revoke(t, map[string]any{"tenant": "home", "issued_before": now.Add(-30 * time.Second)})
	check := func() {
		w.isRefused(t, old, errs.TokenRevoked)
		w.isRefused(t, silent, errs.TokenRevoked)
		w.guest(renewed).tunnel.Close(nil)
	}
	out.isOver(t, errs.TokenRevoked, errs.CloseInvalid)
	in.works(t)
	check()
	require.NoError(t, w.gateway.stop())
	w.startGateway()
	check()
	var list []revocation
	require.Equal(t, http.StatusOK, ask(t, http.MethodGet, w.gateway.url("/api/revocations"), "", nil, &list))
	require.Len(t, list, 1)
	assert.Equal(t, r.ID, list[0].ID)
	w.unrevoke(t, r)
	w.guest(old).tunnel.Close(nil)
}
