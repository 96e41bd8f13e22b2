package app

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/gateway/config"
	"fairlead/shared/errs"
	"fairlead/shared/ws"
)

// Whoever was one tenant by the old template is not for as long as its token lasts.
func TestAnotherTenantTemplateEndsWhatTheOldOneNamed(t *testing.T) {
	s := newSite(t)
	a, _ := s.run()
	c, err := s.dial(a)
	require.NoError(t, err)
	next := s.cfg
	next.Auth.Issuers = []config.Issuer{s.cfg.Auth.Issuers[0]}
	next.Auth.Issuers[0].Tenant = "outside:{sub}"
	r, err := a.Reload(next, "test")
	require.NoError(t, err)
	assert.Equal(t, 1, r.Ended)
	_, err = ws.NewBytes(c).Read(make([]byte, 1))
	assert.ErrorIs(t, err, errs.TokenInvalid)
	c.Abort()
	_, err = s.dial(a)
	assert.ErrorIs(t, err, errs.RouteForbidden)
}
