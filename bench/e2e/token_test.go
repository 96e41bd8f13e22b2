package e2e

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/link"
)

// Without renewal, opens are refused from the moment the token expires, and the tunnel is closed with a code of its own.
func TestAnExpiredTokenEndsItsTunnel(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withoutSidecar(), withTarget("echo", newTarget(t, echoServer)))
	expires := time.Now().Add(8 * time.Second).Truncate(time.Second)
	token, err := w.issuer.Valid(ownTenant, time.Until(expires)+500*time.Millisecond) // the claim is in whole seconds
	require.NoError(t, err)
	tunnel, lane := w.connectLink(token)
	open, err := openLink(t, tunnel, "echo")
	require.NoError(t, err)
	echoes(t, open, "in time")
	var refusal error
	await(t, "an open is refused", func() bool {
		var s *link.Stream
		s, refusal = openLink(t, tunnel, "echo")
		if refusal == nil {
			s.Reset(nil)
		}
		return refusal != nil
	})
	assert.False(t, time.Now().Before(expires))
	assert.ErrorIs(t, refusal, errs.TokenExpired)
	require.ErrorIs(t, <-lane.ended, errs.TokenExpired)
	assert.Equal(t, errs.CloseExpired, lane.closeFrame().Code, lane.closeFrame().Text)
	assert.Contains(t, lane.closeFrame().Text, "FL-A202")
	_, err = open.Read(make([]byte, 1))
	require.ErrorIs(t, err, errs.TokenExpired, "open streams end with it")
	ended := w.gateway.logs.wait(t, "tunnel ended", "tunnel", tunnel.Name())
	assert.Equal(t, "FL-A202", ended.str("code"))
	_, err = w.dialLane(token)
	require.Error(t, err, "the token is refused at the upgrade too")
	assert.NotEmpty(t, w.gateway.logs.find("authentication refused", "code", "FL-A202"))
}

// Verifies: R4.2
func TestARenewedTokenIsTakenInBand(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withLifetime(20*time.Second), withTarget("echo", newTarget(t, echoServer)))
	first := w.gateway.tunnels(t)[0].Expires
	id := w.sidecar.tunnelID(t)
	old := w.dial("echo")
	echoes(t, old, "under the first token")
	w.writeToken(w.token(ownTenant, time.Hour))
	w.sidecar.logs.wait(t, "token renewed")
	w.gateway.logs.wait(t, "token renewed", "tunnel", id)
	require.True(t, time.Now().Before(first), "before the first one has expired")
	await(t, "the first token has expired", func() bool { return time.Now().After(first.Add(time.Second)) })
	echoes(t, old, "under the renewed token")
	fresh := w.dial("echo")
	echoes(t, fresh, "opened under the renewed token")
	assert.Equal(t, id, w.sidecar.tunnelID(t), "the same tunnel")
	assert.Zero(t, w.sidecar.status(t).Tunnels[0].Resumes, "without a new WebSocket")
	assert.EqualValues(t, 1, w.proxy.Stats().Accepted)
	assert.Len(t, w.gateway.logs.find("tunnel connected"), 1)
}

// A renewed token for somebody else is refused, and the tunnel goes on under the one before.
func TestARenewedTokenMustBeOfTheSameTenant(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withTarget("echo", newTarget(t, echoServer)))
	id := w.sidecar.tunnelID(t)
	w.writeToken(w.token("somebody", time.Hour))
	refused := w.gateway.logs.wait(t, "token renewal refused", "tunnel", id)
	assert.Equal(t, errs.TokenInvalid.String(), refused.str("code"))
	told := w.sidecar.logs.wait(t, "the gateway refused the renewed token")
	assert.Equal(t, errs.TokenInvalid.String(), told.str("code"))
	echoes(t, w.dial("echo"), "as before")
	assert.Equal(t, id, w.sidecar.tunnelID(t))
	assert.Equal(t, ownTenant, w.gateway.tunnels(t)[0].Tenant)
}
