package e2e

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	gatewayconfig "fairlead/gateway/config"
	"fairlead/shared/errs"
	"fairlead/shared/testbed"
)

// changeBackend changes the backend "ssh".
func changeBackend(change func(w *world, b *gatewayconfig.Backend)) option {
	return func(w *world) {
		w.needSSHD()
		b := w.gatewayConfig.Backends[sshRoute]
		change(w, &b)
		w.gatewayConfig.Backends[sshRoute] = b
	}
}

// Whatever is wrong behind the gateway, the application's connection breaks, and the sidecar's log says by a code why.
func TestBackendFailuresReachTheApplication(t *testing.T) {
	for name, c := range map[string]struct {
		opts []option
		code errs.Code
	}{
		"nobody listens": {[]option{withTarget("broken", closedAddr(t))}, errs.BackendUnreachable},
		"no SSH server": {[]option{withForward("broken", "127.0.0.1:1"), changeBackend(func(w *world, b *gatewayconfig.Backend) {
			b.Address = newTarget(w.t, func(c halfCloser) { _, _ = c.Write([]byte("220 mail.example ESMTP\r\n")) })
			b.HostKeys.Mode = gatewayconfig.HostKeysFirstUse
		})}, errs.SSHHandshake},
		"a server that says nothing": {[]option{withForward("broken", "127.0.0.1:1"), changeBackend(func(w *world, b *gatewayconfig.Backend) {
			b.Address = newTarget(w.t, func(c halfCloser) { _, _ = c.Read(make([]byte, 1<<10)); _, _ = c.Read(make([]byte, 1)) })
			b.HostKeys.Mode, b.DialTimeout = gatewayconfig.HostKeysFirstUse, 300*time.Millisecond
		})}, errs.BackendTimeout},
		"another host key": {[]option{withForward("broken", "127.0.0.1:1"), changeBackend(func(w *world, b *gatewayconfig.Backend) {
			other := testbed.NewSSHD(w.t, testbed.SSHDConfig{})
			b.Address, b.User, b.KeyFile = other.Addr(), other.User(), other.KeyFile()
			keys := testbed.NewSSHD(w.t, testbed.SSHDConfig{}).KnownHosts(other.Addr())
			b.HostKeys.KnownHostsFile = w.writeFile("known_hosts", keys)
		})}, errs.HostKeyRefused},
		"a login that is refused": {[]option{withForward("broken", "127.0.0.1:1"), changeBackend(func(w *world, b *gatewayconfig.Backend) {
			b.KeyFile = testbed.NewSSHD(w.t, testbed.SSHDConfig{}).KeyFile()
		})}, errs.BackendAuth},
		"a target that refuses": {[]option{withForward("broken", closedAddr(t))}, errs.TargetRefused},
		"a target that the SSH server forbids": {[]option{func(w *world) {
			w.ssh = testbed.NewSSHD(w.t, testbed.SSHDConfig{NoTCPForwarding: true})
			b := w.addBackend(sshRoute, w.ssh.Addr())
			b.User, b.KeyFile, b.HostKeys.KnownHostsFile = w.ssh.User(), w.ssh.KeyFile(), w.ssh.KnownHostsFile()
			w.gatewayConfig.Backends[sshRoute] = b
		}, withForward("broken", "127.0.0.1:1")}, errs.TargetRefused},
	} {
		t.Run(name, func(t *testing.T) {
			opts := append([]option{withTarget("echo", newTarget(t, echoServer))}, c.opts...)
			for i, o := range opts { // options belong to the test that runs them
				opts[i] = func(w *world) { w.t = t; o(w) }
			}
			w := newWorld(t, opts...)
			other := w.dial("echo")
			echoes(t, other, "a connection beside it")
			id := w.sidecar.tunnelID(t)
			w.refused("broken")
			told := w.sidecar.logs.wait(t, "connection ended", "route", "broken")
			assert.Equal(t, c.code.String(), told.str("code"), told.str("error"))
			assert.Equal(t, c.code.Info().Advice, told.str("advice"))
			assert.Equal(t, id, told.str("tunnel"))
			here := w.gateway.logs.wait(t, "stream refused", "route", "broken")
			assert.Equal(t, c.code.String(), here.str("code"))
			assert.Equal(t, told.str("stream"), here.str("stream"))
			assert.Equal(t, told.str("tunnel"), here.str("tunnel"))
			echoes(t, other, "is not touched")
			assert.Equal(t, id, w.sidecar.tunnelID(t))
		})
	}
}

// Verifies: R5.7
func TestTheBreakerAnswersAtOnce(t *testing.T) {
	const hang = time.Second
	silent := newTarget(t, func(c halfCloser) { _, _ = c.Read(make([]byte, 1<<10)); _, _ = c.Read(make([]byte, 1)) })
	w := newWorld(t, withForward("broken", "127.0.0.1:1"), withTarget("echo", newTarget(t, echoServer)),
		changeBackend(func(_ *world, b *gatewayconfig.Backend) { b.Address, b.DialTimeout = silent, hang }))
	states := func() map[string]string {
		all := map[string]string{}
		for _, b := range backendsOf(t, w.gateway) {
			all[b.Name] = b.Breaker
		}
		return all
	}
	for i := range 5 {
		assert.Equal(t, "closed", states()[sshRoute], "after %d failures", i)
		assert.GreaterOrEqual(t, w.refused("broken"), hang, "it waits for the backend")
	}
	await(t, "the circuit is open", func() bool { return states()[sshRoute] == "open" })
	assert.Equal(t, "closed", states()["echo"], "another backend has a circuit of its own")
	for range 3 {
		assert.Less(t, w.refused("broken"), hang, "it does not")
	}
	await(t, "all ends are logged", func() bool { return len(w.sidecar.logs.find("connection ended", "route", "broken")) == 8 })
	assert.Len(t, w.sidecar.logs.find("connection ended", "code", errs.BackendTimeout.String()), 5)
	assert.Len(t, w.sidecar.logs.find("connection ended", "code", errs.CircuitOpen.String()), 3)
	status, answer := w.refusal("broken", w.token(ownTenant, time.Hour))
	assert.Equal(t, 503, status)
	assert.Equal(t, errs.CircuitOpen.String(), answer.Code)
	assert.Positive(t, answer.RetryAfterMS)
	echoes(t, w.dial("echo"), "other routes work")
	require.NotEmpty(t, w.gateway.logs.find("stream refused", "code", errs.CircuitOpen.String()))
}
