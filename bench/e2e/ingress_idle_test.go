package e2e

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/testbed"
	sidecarconfig "fairlead/sidecar/config"
)

// An ingress that cuts what is idle for a moment, which is shorter than any heartbeat, cuts the tunnel again and again.
// A shell at which nobody types stays, and works as soon as somebody does.
//
// Verifies: R1.7, R10.5
func TestAnIngressCutsIdleTunnels(t *testing.T) {
	const limit, cuts = 500 * time.Millisecond, 3
	eachIngress(t, func(t *testing.T, start ingressStarter) {
		echoes := newTracked(t, echoing)
		w := newWorld(t, withSSHD(), withTarget("echo", echoes.addr), withIngress(start, func(c *testbed.IngressConfig) { c.Idle = limit }))
		require.Equal(t, sidecarconfig.Default().Tunnel, w.sidecarConfig.Tunnel, "heartbeats as everybody has them")
		person, open := w.login(sshRoute), w.dial("echo")
		require.NoError(t, roundTrip(open, "before"))
		began := w.connected()
		for range 2 {
			before := w.resumes()
			await(t, "the idle tunnel is cut again and again", func() bool { return w.resumes() >= before+cuts })
			person.works()
			require.NoError(t, roundTrip(open, "and again"))
		}
		person.leaves()
		require.Subset(t, began, w.waitConnected(1), "the tunnel is that of the beginning")
		require.GreaterOrEqual(t, len(w.sidecar.logs.find("tunnel resuming", "code", code(errs.LaneLost))), 2*cuts, "and each cut is told")
		require.Empty(t, echoes.errors())
	})
}

// An ingress with a limit of two seconds, and a shell at which nobody types for longer than that.
//
// Verifies: R1.7, R10.5
func TestAnIdleShellOutlivesTheLimitOfAnIngress(t *testing.T) {
	const limit = 2 * time.Second
	w := newWorld(t, withSSHD(), withIngress(testbed.NewHAProxy, func(c *testbed.IngressConfig) { c.Idle = limit }))
	person := w.login(sshRoute)
	person.works()
	idle := time.Now()
	await(t, "the shell is idle for more than twice the limit", func() bool { return time.Since(idle) > 5*limit/2 })
	person.works()
	require.Positive(t, w.resumes(), "the tunnel was cut meanwhile")
	person.leaves()
}
