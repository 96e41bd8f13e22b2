package e2e

import (
	"net"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/testbed"
	sidecarconfig "fairlead/sidecar/config"
)

const (
	proxyUser, proxyPassword = "sidecar", "cor-rect"
	// anyHost is this machine, by an address that the convention of HTTPS_PROXY does not take for it: a proxy is never
	// asked for localhost or 127.0.0.1.
	anyHost = "0.0.0.0"
)

// withEgress makes the world's proxy, and so the gateway, reachable under anyHost, and lets change tell the sidecar how to
// get there.
func withEgress(change func(*sidecarconfig.Config)) option {
	return func(w *world) {
		_, err := w.ca.Issue(testbed.CertificateConfig{Hosts: []string{anyHost}}) // in place of the gateway's
		require.NoError(w.t, err)
		w.afterwards = append(w.afterwards, func() {
			w.sidecarConfig.Gateway.Endpoints = []string{w.endpoint(w.anyAddr())}
			change(&w.sidecarConfig)
		})
	}
}

// anyAddr is where sidecars reach the gateway under anyHost.
func (w *world) anyAddr() string {
	_, port, err := net.SplitHostPort(w.proxy.Addr())
	require.NoError(w.t, err)
	return net.JoinHostPort(anyHost, port)
}

// requireNoPassword looks for the proxy's password in everything that the sidecar tells.
func (w *world) requireNoPassword(password string) {
	w.t.Helper()
	require.NotContains(w.t, w.sidecar.logs.text(), password)
	for _, path := range []string{"/api/status", "/metrics"} {
		require.NotContains(w.t, get(w.t, w.sidecar.url(path)), password, path)
	}
}

// The only way out is an HTTP proxy that wants a password. Transfers through it survive cuts of the network and a restart
// of the proxy.
//
// Verifies: R1.7, R10.5, R10.6
func TestThroughAnEgressProxy(t *testing.T) {
	const size = 1 << 20
	tiny := testbed.NewTinyproxy(t, testbed.TinyproxyConfig{User: proxyUser, Password: proxyPassword})
	way := testbed.NewProxy(t, tiny.Addr())
	hashes := newTracked(t, hashing)
	w := newWorld(t, withSSHD(), withTarget("hash", hashes.addr), withEgress(func(c *sidecarconfig.Config) {
		c.Gateway.Proxy = "http://" + proxyUser + ":" + proxyPassword + "@" + way.Addr()
	}))
	began := w.waitConnected(1)
	require.Equal(t, 1, tiny.Connects(w.anyAddr()))
	person := w.login(sshRoute)
	stop := w.busily("hash", size)
	for name, cut := range map[string]func(){
		"the way to the gateway": func() { w.proxy.Cut() },
		"the way to the proxy":   func() { way.Cut() },
		"the proxy": func() {
			tiny.Stop()
			require.NoError(t, tiny.Start(t.Context()))
		},
	} {
		person.works()
		before := w.resumes()
		cut()
		await(t, name+" was cut, and the tunnel resumes", func() bool { return w.resumes() > before && len(w.connected()) == 1 })
		require.Positive(t, tiny.Connects(w.anyAddr()))
		person.works()
	}
	_, err := stop()
	require.NoError(t, err)
	person.leaves()
	require.Empty(t, hashes.errors())
	require.Equal(t, began, w.connected(), "the tunnel is that of the beginning")
	w.requireNoPassword(proxyPassword)
}

// A proxy that refuses is named, with what it said, and nothing goes past it.
func TestAnEgressProxyRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		user, password string
		says           []string // one of these
	}{
		"the wrong password": {proxyUser, "wr-ong", []string{"Unauthorized", "wants credentials"}},
		"no password":        {"", "", []string{"Proxy Authentication Required", "wants credentials"}},
	} {
		t.Run(name, func(t *testing.T) {
			tiny := testbed.NewTinyproxy(t, testbed.TinyproxyConfig{User: proxyUser, Password: proxyPassword})
			w := newWorld(t, withoutWaiting(), withTarget("echo", newTarget(t, echoServer)),
				withEgress(func(s *sidecarconfig.Config) { s.Gateway.Proxy = tiny.URL(c.user, c.password) }))
			said := w.lastAttempt(tiny.Addr())
			require.True(t, strings.Contains(said, c.says[0]) || strings.Contains(said, c.says[1]), said)
			for _, e := range w.sidecar.logs.find("tunnel disconnected") {
				require.NotEqual(t, code(errs.UpgradeFailed), e.str("code"), "the gateway was not asked")
				require.Equal(t, "network", e.str("category"))
			}
			require.Zero(t, w.proxy.Stats().Accepted, "nothing goes past it")
			require.Equal(t, 503, statusOf(w.sidecar.url("/readyz")))
			w.requireNoPassword("wr-ong")
		})
	}
}

// Where no proxy is configured, HTTPS_PROXY and NO_PROXY say whether there is one.
func TestTheEnvironmentNamesTheEgressProxy(t *testing.T) {
	for name, c := range map[string]struct {
		except string
		asked  int
	}{
		"HTTPS_PROXY":             {"", 1},
		"and NO_PROXY for others": {"192.0.2.0/24,.example", 1},
		"and NO_PROXY":            {"example,0.0.0.0/8", 0},
	} {
		t.Run(name, func(t *testing.T) {
			tiny := testbed.NewTinyproxy(t, testbed.TinyproxyConfig{User: proxyUser, Password: proxyPassword})
			w := newWorld(t, withoutSidecar(), withTarget("echo", newTarget(t, echoServer)), withEgress(func(*sidecarconfig.Config) {}))
			_, exe := binaries(t)
			url := tiny.URL(proxyUser, proxyPassword)
			env := []string{"HTTPS_PROXY=" + url, "https_proxy=" + url, "NO_PROXY=" + c.except, "no_proxy=" + c.except}
			w.sidecar = w.sidecarOf(spawn(t, env, exe, "run", "--config", configFile(w, "sidecar", w.sidecarConfig)))
			w.waitReady()
			app := w.dial("echo")
			require.NoError(t, roundTrip(app, "by the environment"))
			require.NoError(t, app.Close())
			require.Equal(t, c.asked, tiny.Connects(w.anyAddr()))
			w.requireNoPassword(proxyPassword)
		})
	}
}
