package e2e

import (
	"errors"
	"io"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"fairlead/bench/chaos"
	gatewayconfig "fairlead/gateway/config"
	"fairlead/shared/errs"
	"fairlead/shared/link"
	sidecarconfig "fairlead/sidecar/config"
)

// gate sends size bytes of content and half-closes, pausing in the middle until it is opened.
func gate(seed uint64, size int64, open <-chan struct{}) func(halfCloser) error {
	return func(c halfCloser) error {
		r := contentOf(seed, size)
		if _, err := io.CopyN(c, r, size/2); err != nil {
			return err
		}
		<-open
		_, err := io.Copy(c, r)
		return errors.Join(err, c.CloseWrite())
	}
}

// A gateway that is killed takes its tunnels with it. Connections through it end with an error that says so, and not as if
// they were complete; new ones work as soon as a gateway is back at the address, and the history tells what happened.
//
// Verifies: R1.2, R10.5
func TestTheGatewayIsKilled(t *testing.T) {
	echoes := newTracked(t, echoing)
	w := newWorld(t, withProcesses(), withTarget("echo", echoes.addr))
	var open []halfCloser
	for range 3 {
		c := w.dial("echo")
		require.NoError(t, roundTrip(c, "before"))
		open = append(open, c)
	}
	was := w.status().Tunnels[0].ID
	w.gateway.proc.kill()
	await(t, "the sidecar tries to resume", func() bool { return w.status().State == "resuming" })
	await(t, "the targets know", func() bool { return echoes.opened() == 0 })
	w.gatewayConfig.Listen = w.gateway.address
	w.startGateway()
	for _, c := range open {
		requireReset(t, c)
	}
	await(t, "the log tells", func() bool { return len(w.sidecar.logs.find("connection ended", "code", code(errs.TunnelLost))) == 3 })
	require.Contains(t, w.sidecar.logs.find("connection ended")[0].str("error"), code(errs.TunnelUnknown))
	w.waitReady()
	require.NoError(t, roundTrip(w.dial("echo"), "after"))
	st := w.status()
	require.NotEqual(t, was, st.Tunnels[0].ID)
	var states []string
	for _, e := range st.Events {
		states = append(states, string(e.State))
	}
	states = slices.Compact(states)
	require.Equal(t, []string{"connecting", "connected", "resuming", "disconnected", "connecting", "connected"}, states, "%+v", st.Events)
	for _, e := range st.Events {
		if e.State == "resuming" || e.State == "disconnected" {
			require.NotEmpty(t, e.Code)
			require.NotEmpty(t, e.Reason)
		}
	}
}

// Asked to stop, the gateway says so on every way, takes nothing new, lets the transfer finish whole, and only then closes
// what is left, with the code for going away.
//
// Verifies: R8.3, R8.4
func TestTheGatewayStopsInOrder(t *testing.T) {
	const size = 8 << 20
	goOn := make(chan struct{})
	open := sync.OnceFunc(func() { close(goOn) })
	source := newTracked(t, gate(21, size, goOn))
	t.Cleanup(open) // before the target is waited for
	w := newWorld(t, withProcesses(), withDrain(patience), withTarget("source", source.addr))
	idle := w.dialRaw(ownTenant, time.Hour)
	idle.greet(t)
	app := w.dial("source")
	half := make([]byte, size/2)
	_, err := io.ReadFull(app, half)
	require.NoError(t, err)

	w.gateway.proc.signal(t, syscall.SIGTERM)
	idle.skipTo(t, frameGoAway)
	w.sidecar.logs.wait(t, "the gateway goes away")
	require.Equal(t, 503, statusOf(w.gateway.url("/readyz")))
	require.Equal(t, 200, statusOf(w.sidecar.url("/readyz")), "new connections go on over it until another tunnel is up")
	late := w.dialRaw(ownTenant, time.Hour)
	late.send(t, hello(link.Version, link.ID{}, 0))
	requireClose(t, late.closed(t), errs.CloseRestart, errs.Draining)
	require.False(t, w.gateway.proc.exited(), "the gateway waits for the transfer")

	open()
	rest, err := io.ReadAll(app)
	require.NoError(t, err)
	whole, err := io.ReadAll(contentOf(21, size))
	require.NoError(t, err)
	require.True(t, slices.Equal(whole, append(half, rest...)), "the transfer is whole")
	require.NoError(t, app.CloseWrite())
	requireClose(t, idle.closed(t), errs.CloseGoingAway, errs.ShuttingDown)
	require.Zero(t, w.gateway.proc.exit(t))
	require.Empty(t, source.errors())
	w.sidecar.logs.wait(t, "tunnel disconnected")
}

// What is not over when the time to drain is ends with an error at both of its ends, not as if it were complete.
//
// Verifies: R8.4
func TestTheGatewayCutsWhatIsLeft(t *testing.T) {
	echoes := newTracked(t, echoing)
	w := newWorld(t, withDrain(200*time.Millisecond), withTarget("echo", echoes.addr))
	app := w.dial("echo")
	require.NoError(t, roundTrip(app, "before"))
	require.NoError(t, w.gateway.stop())
	requireReset(t, app)
	w.sidecar.logs.wait(t, "connection ended", "code", code(errs.DrainEnded))
	await(t, "the target knows", func() bool { return echoes.opened() == 0 })
	require.Len(t, echoes.errors(), 1, "and that it is no end")
	w.gatewayConfig.Listen = w.gateway.address
	w.startGateway()
	w.waitReady()
	require.NoError(t, roundTrip(w.dial("echo"), "after"))
}

// Asked to stop in the middle of a transfer, the sidecar finishes the transfer, serves what the application still begins, and
// ends well once the application is gone.
//
// Verifies: R8.1, R8.9
func TestTheSidecarStopsInOrder(t *testing.T) {
	const size = 4 << 20
	w := newWorld(t, withProcesses(), withDrain(patience), withTarget("sink", newTarget(t, digestServer(0, 0))))
	app := w.dial("sink")
	_, err := io.Copy(app, contentOf(31, size/2))
	require.NoError(t, err)
	w.sidecar.proc.signal(t, syscall.SIGTERM)
	w.sidecar.logs.wait(t, "stopping", "reason", "signal_term")
	digest := func(c halfCloser, rest io.Reader) string {
		_, err := io.Copy(c, rest)
		require.NoError(t, err)
		require.NoError(t, c.CloseWrite())
		got, err := io.ReadAll(c)
		require.NoError(t, err)
		return string(got)
	}
	require.Equal(t, lineOf(t, contentOf(33, size)), digest(w.dial("sink"), contentOf(33, size)), "a new connection")
	whole := lineOf(t, io.MultiReader(contentOf(31, size/2), contentOf(32, size)))
	require.Equal(t, whole, digest(app, contentOf(32, size)))
	require.Zero(t, w.sidecar.proc.exit(t))
	w.sidecar.logs.wait(t, "listeners closed", "reason", "quiet")
}

// A backend that breaks in the middle of a stream is an error at the application, and the logs blame the backend.
//
// Verifies: R10.5
func TestTheBackendBreaks(t *testing.T) {
	echoes := newTracked(t, echoing)
	w := newWorld(t, withTarget("echo", echoes.addr))
	broken, other := w.dial("echo"), w.dial("echo")
	require.NoError(t, roundTrip(broken, "before"))
	echoes.reset(t)
	requireReset(t, broken)
	w.sidecar.logs.wait(t, "connection ended", "code", code(errs.BackendBroken))
	w.gateway.logs.wait(t, "stream ended", "code", code(errs.BackendBroken))
	_ = other.Close()
	require.NoError(t, roundTrip(w.dial("echo"), "after"))
	require.Equal(t, uint64(0), w.resumes(), "nothing else was touched")
}

// A sidecar that is gone without a word: the gateway notices the silence, holds the tunnel for as long as it could be
// resumed, then gives it up with everything that belongs to it.
//
// Verifies: R1.6
func TestTheSidecarIsGone(t *testing.T) {
	require.LessOrEqual(t, gatewayconfig.Default().Tunnel.ResumeTTL, time.Minute)
	const held = 700 * time.Millisecond
	before := goleak.IgnoreCurrent()
	echoes := newTracked(t, echoing)
	w := newWorld(t, withoutSidecar(), withHeldTunnels(held), withTarget("echo", echoes.addr),
		withSidecar(func(c *sidecarconfig.Config) { c.Tunnel.Heartbeat = time.Second }))
	w.gatewayConfig.Tunnel.Heartbeat = time.Second
	require.NoError(t, w.gateway.stop())
	w.startGateway()
	w.sidecar = w.sidecarProcess()
	w.waitReady()
	for range 3 {
		require.NoError(t, roundTrip(w.dial("echo"), "before"))
	}
	w.proxy.Blackhole()
	w.sidecar.proc.kill()
	e := w.gateway.logs.wait(t, "tunnel detached", "code", code(errs.LaneDead))
	require.Equal(t, held.String(), e.str("held_for"))
	tunnels := w.heldTunnels()
	require.Len(t, tunnels, 1)
	require.Equal(t, "detached", tunnels[0].State)
	require.Equal(t, 3, tunnels[0].Streams)
	require.Equal(t, 3, echoes.opened(), "its connections are held too")

	ended := w.gateway.logs.wait(t, "tunnel ended", "code", code(errs.TunnelLost))
	require.Empty(t, w.heldTunnels())
	await(t, "the targets know", func() bool { return echoes.opened() == 0 })
	require.Len(t, echoes.errors(), 3, "and that it is no end")
	require.Equal(t, 1.0, metric(t, w.gateway.url("/metrics"), "fairlead_gateway_tunnels_lost_total"))
	took := timeOf(t, ended).Sub(timeOf(t, e))
	require.GreaterOrEqual(t, took, held-10*time.Millisecond)
	require.Less(t, took, held+5*time.Second)
	w.proxy.Close()
	require.NoError(t, w.gateway.stop())
	// The target accepts, the processes are waited for: these are the test's own, and all that is left.
	require.NoError(t, goleak.Find(append(chaos.Permanent(), before,
		goleak.IgnoreAnyFunction("fairlead/bench/e2e.newTarget.func1"), goleak.IgnoreAnyFunction("fairlead/bench/e2e.spawnWith.func1"))...))
}
