package e2e

import (
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/testbed"
	sidecarconfig "fairlead/sidecar/config"
)

// lastAttempt waits until the sidecar's status says why it has no tunnel, in words that hold all of these, and returns what
// it says. It says so while it waits for the next attempt.
func (w *world) lastAttempt(words ...string) (said string) {
	w.t.Helper()
	await(w.t, "the status tells why", func() bool {
		for _, tun := range w.status().Tunnels {
			if containsAll(tun.Error, words) {
				said = tun.Error
				return true
			}
		}
		return false
	})
	return said
}

// The ingress is up and the gateway behind it is not. The sidecar says who answered, with which status and how its page
// begins; connections wait. When the gateway is back, they go through, and what was open before goes on.
//
// Verifies: R1.3, R1.4, R1.7, R6.8, R10.5
func TestAnIngressAnswersInTheGatewaysPlace(t *testing.T) {
	answers := map[string][]string{
		"nginx":   {"502 Bad Gateway", `"nginx/`, `"<html>"`},
		"HAProxy": {"503 Service Unavailable", "does not say its name", `"<html><body><h1>503 Service Unavailable</h1>"`},
	}
	for name, start := range map[string]ingressStarter{"nginx": testbed.NewNginx, "HAProxy": testbed.NewHAProxy} {
		t.Run(name, func(t *testing.T) {
			echoes := newTracked(t, echoing)
			w := newWorld(t, withTarget("echo", echoes.addr), withIngress(start, nil),
				withSidecar(func(c *sidecarconfig.Config) { c.Queue.Wait = patience }))
			began, open := w.waitConnected(1), w.dial("echo")
			require.NoError(t, roundTrip(open, "before"))

			w.cutOff()
			words := append(answers[name], w.proxy.Addr(), code(errs.UpgradeFailed))
			w.lastAttempt(words...)
			require.Equal(t, 503, statusOf(w.sidecar.url("/readyz")))
			waiting := w.dial("echo")
			_, err := io.WriteString(waiting, "waits")
			require.NoError(t, err)
			await(t, "the connection waits", func() bool { return w.status().Queue.Length == 1 })

			require.NoError(t, w.ingress.Reload(t.Context(), func(c *testbed.IngressConfig) { c.DownPage = "back at noon\nsecond line" }))
			require.NotContains(t, w.lastAttempt("503 Service", `"back at noon"`, code(errs.UpgradeFailed)), "second line")

			w.inner.SetTarget(w.gateway.address)
			got := make([]byte, len("waits"))
			_, err = io.ReadFull(waiting, got)
			require.NoError(t, err)
			require.Equal(t, "waits", string(got))
			require.NoError(t, roundTrip(open, "after"))
			require.Equal(t, began, w.waitConnected(1), "the tunnel is that of the beginning")
			require.Empty(t, echoes.errors())
			for _, e := range w.sidecar.logs.find("tunnel resuming", "code", code(errs.UpgradeFailed)) {
				require.Contains(t, e.str("error"), w.proxy.Addr())
				require.NotEmpty(t, e.str("attempt"))
			}
		})
	}
}

// The gateway behind an ingress is killed, and with it the tunnels that it held. What was open ends with an error and not
// as if it were complete; what came meanwhile has waited, and goes through the new gateway.
//
// Verifies: R1.4, R10.4, R10.5
func TestTheGatewayBehindAnIngressIsKilled(t *testing.T) {
	echoes := newTracked(t, echoing)
	w := newWorld(t, withProcesses(), withTarget("echo", echoes.addr), withIngress(testbed.NewNginx, nil),
		withSidecar(func(c *sidecarconfig.Config) { c.Queue.Wait = patience }))
	open := w.dial("echo")
	require.NoError(t, roundTrip(open, "before"))
	w.gateway.proc.kill()
	w.lastAttempt("502 Bad Gateway", `"nginx/`, code(errs.UpgradeFailed))
	waiting := w.dial("echo")
	_, err := io.WriteString(waiting, "waits")
	require.NoError(t, err)
	await(t, "the connection waits", func() bool { return w.status().Queue.Length == 1 })
	await(t, "the target knows", func() bool { return echoes.opened() == 0 })

	w.startGateway()
	requireReset(t, open)
	w.sidecar.logs.wait(t, "connection ended", "code", code(errs.TunnelLost))
	got := make([]byte, len("waits"))
	_, err = io.ReadFull(waiting, got)
	require.NoError(t, err)
	require.Equal(t, "waits", string(got))
	w.waitReady()
}
