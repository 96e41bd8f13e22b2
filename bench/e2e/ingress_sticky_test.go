package e2e

import (
	"testing"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/testbed"
)

// Two gateways behind an ingress that hands out connections in turn, unless a cookie says who has had a client. A tunnel
// that is cut comes back to the gateway that owns it, each time. When that one is gone, the other one serves what is new.
//
// Verifies: R1.7, R10.5
func TestACookieLeadsBackToTheOwner(t *testing.T) {
	echoes := newTracked(t, echoing)
	other := testbed.NewProxy(t, "127.0.0.1:1") // the second gateway's address is known once it listens
	w := newWorld(t, withoutSidecar(), withTarget("echo", echoes.addr), withIngress(testbed.NewHAProxy, func(c *testbed.IngressConfig) {
		c.Cookie, c.Upstreams = "REPLICA", append(c.Upstreams, other.Addr())
	}))
	second := w.gatewayInside("second")
	other.SetTarget(second.address)
	w.startSidecar()
	w.waitReady()
	began, open := w.waitConnected(1), w.dial("echo")
	require.NoError(t, roundTrip(open, "before"))
	for range 6 {
		w.cutAndResume()
		require.NoError(t, roundTrip(open, "on the same tunnel"))
	}
	require.Equal(t, began, w.connected())
	require.Equal(t, uint64(6), w.resumes(), "each cut took one attempt")
	require.Empty(t, w.sidecar.logs.find("tunnel resuming", "code", code(errs.TunnelUnknown)))

	owner, way := w.gateway, w.inner
	if len(second.logs.find("tunnel resumed")) > 0 {
		owner, way = second, other
	}
	require.NoError(t, owner.stop())
	leadNowhere(way)
	await(t, "the other gateway has a tunnel", func() bool { return len(w.connected()) == 1 && w.connected()[0] != began[0] })
	requireReset(t, open)
	require.NoError(t, roundTrip(w.dial("echo"), "by the other one"))
}
