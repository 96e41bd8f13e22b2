package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	gatewayconfig "fairlead/gateway/config"
	"fairlead/shared/errs"
)

func TestBinariesSayTheirVersion(t *testing.T) {
	gateway, sidecar := binaries(t)
	for _, exe := range []string{gateway, sidecar} {
		out, _, code := command(t, nil, exe, "version")
		assert.Equal(t, errs.ExitDone, code)
		assert.Equal(t, version+"\n", out)
		_, told, code := command(t, nil, exe, "run", "--no-such-flag")
		assert.Equal(t, errs.ExitConfiguration, code)
		assert.Contains(t, told, "no-such-flag")
	}
}

// Verifies: R9.3
func TestMalformedConfigurationsAreRefusedWhole(t *testing.T) {
	gateway, sidecar := binaries(t)
	for exe, c := range map[string]struct {
		text     string
		problems []string
	}{
		sidecar: {`gateway: {endpoints: ["http://a"], tokenfile: /t}
reconnect: {base: 5}
queue: {size: many}
listeners:
  - {name: UPPER, listen: "127.0.0.1", route: git, priority: urgent}
`, []string{
			`bad.yaml:1: gateway.tokenfile: unknown key; did you mean token_file or token?`,
			`bad.yaml:1: gateway.endpoints[0]: "http://a": allowed: a URL that begins with wss:// or ws://`,
			`bad.yaml:2: reconnect.base: 5: allowed: a duration with its unit, such as 200ms, 30s or 5m, from 1ms to 1h`,
			`bad.yaml:3: queue.size: "many": allowed: a whole number from 1 to 100000`,
			`bad.yaml:5: listeners[0].name: "UPPER": allowed: a name such as git`,
			`bad.yaml:5: listeners[0].listen: "127.0.0.1": allowed: host:port or unix:/absolute/path`,
			`bad.yaml:5: listeners[0].priority: "urgent": allowed: a string: high, normal or low`,
		}},
		gateway: {`listen: nowhere
tls: {cert_file: /c}
auth: {issuers: [{issuer: a, audience: b, algorithms: [none]}]}
routes: {git: {backend: missing}}
policy: [{tenants: ["a//b"], routes: [other]}]
breaker: {retry_after: 60}
surprise: 1
`, []string{
			`bad.yaml:1: listen: "nowhere": allowed: host:port`,
			`tls.key_file`,
			`auth.issuers[0].algorithms`,
			`bad.yaml:4: routes.git.backend: "missing": no such backend`,
			`policy[0].tenants[0]`,
			`policy[0].routes[0]`,
			`bad.yaml:6: breaker.retry_after: 60: allowed: a duration with its unit`,
			`bad.yaml:7: surprise: unknown key`,
		}},
	} {
		t.Run(filepath.Base(exe), func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "bad.yaml")
			require.NoError(t, writeAtomic(file, []byte(c.text)))
			for _, args := range [][]string{{"run"}, {"config", "check"}} {
				out, told, code := command(t, nil, exe, append(args, "--config", file)...)
				assert.Equal(t, errs.ExitConfiguration, code, args)
				assert.Empty(t, out)
				assert.Contains(t, told, errs.ConfigInvalid.String())
				for _, p := range c.problems {
					assert.Contains(t, told, p)
				}
			}
			_, told, code := command(t, nil, exe, "run", "--config", file+".missing")
			assert.Equal(t, errs.ExitConfiguration, code)
			assert.Contains(t, told, errs.ConfigUnreadable.String())
		})
	}
}

// Verifies: R9.4
func TestFlagsWinOverEnvironmentOverFile(t *testing.T) {
	w := newWorld(t, withoutSidecar(), withTarget("echo", newTarget(t, echoServer)))
	gateway, sidecar := binaries(t)
	cfg := w.gatewayConfig
	cfg.Shutdown.Drain, cfg.Breaker.Failures, cfg.SSHPool.Connections = 7*time.Second, 7, 7
	file := configFile(w, "precedence", cfg)
	env := []string{"FAIRLEAD_BREAKER__FAILURES=8", "FAIRLEAD_SSH_POOL__CONNECTIONS=8", "FAIRLEAD_LOG__LEVEL=debug"}
	p := spawn(t, env, gateway, "run", "--config", file, "--set", "ssh_pool.connections=9", "--log-level", "info")
	n := gatewayNode{running: p.node()}
	n.admin = p.started(t, "serving").str("admin")
	var effective []struct {
		Key    string
		Value  any
		Source string
	}
	require.NoError(t, json.Unmarshal([]byte(get(t, n.url("/api/tunnel/config"))), &effective))
	values := map[string][2]string{}
	for _, e := range effective {
		values[e.Key] = [2]string{fmt.Sprint(e.Value), e.Source}
	}
	assert.Equal(t, "7s", values["shutdown.drain"][0], "the file over the default")
	assert.Contains(t, values["shutdown.drain"][1], "precedence.yaml")
	assert.Equal(t, "8", values["breaker.failures"][0], "the environment over the file")
	assert.Contains(t, values["breaker.failures"][1], "FAIRLEAD_BREAKER__FAILURES")
	assert.Equal(t, "9", values["ssh_pool.connections"][0], "a flag over both")
	assert.Contains(t, values["ssh_pool.connections"][1], "--set")
	assert.Equal(t, "info", values["log.level"][0])

	// A sidecar that knows nothing but its environment carries connections.
	s := w.sidecarOf(spawn(t, []string{
		"FAIRLEAD_GATEWAY__ENDPOINTS=" + w.endpoint(w.proxy.Addr()), "FAIRLEAD_GATEWAY__CA_FILE=" + w.ca.CertFile(), "FAIRLEAD_GATEWAY__TOKEN_FILE=" + w.tokenFile,
		"FAIRLEAD_LISTENERS__0__NAME=echo", "FAIRLEAD_LISTENERS__0__ROUTE=echo", "FAIRLEAD_LISTENERS__0__LISTEN=127.0.0.1:0", "FAIRLEAD_ADMIN__LISTEN=127.0.0.1:0",
	}, sidecar, "run"))
	w.sidecar = s
	w.waitReady()
	echoes(t, w.dial("echo"), "by environment alone")
}

// Verifies: R8.9
func TestSignalsDrainAndASecondOneEndsAtOnce(t *testing.T) {
	w := newWorld(t, withProcesses(), withTarget("echo", newTarget(t, echoServer)))
	w.sidecarConfig.Shutdown.Drain, w.gatewayConfig.Shutdown.Drain = 10*time.Minute, 10*time.Minute
	require.NoError(t, w.sidecar.stop())
	assert.Equal(t, errs.ExitDone, w.sidecar.proc.code)
	require.NoError(t, w.gateway.stop())
	assert.Equal(t, errs.ExitDone, w.gateway.proc.code)
	w.startGateway()
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		w.startSidecar()
		w.waitReady()
		c := w.dial("echo")
		echoes(t, c, "before")
		w.sidecar.proc.signal(t, sig)
		w.sidecar.logs.wait(t, "stopping")
		echoes(t, c, "an open connection is served on")
		require.NoError(t, c.CloseWrite())
		assert.Equal(t, errs.ExitDone, w.sidecar.proc.exit(t), "once it has ended, the sidecar stops")

		w.startSidecar()
		w.waitReady()
		c = w.dial("echo")
		echoes(t, c, "before")
		w.sidecar.proc.signal(t, sig)
		w.sidecar.logs.wait(t, "stopping")
		w.sidecar.proc.signal(t, sig)
		assert.Equal(t, 128+int(sig), w.sidecar.proc.exit(t), "a second signal does not wait")
	}
	w.startSidecar()
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		w.waitReady()
		c := w.dial("echo")
		echoes(t, c, "before")
		w.gateway.proc.signal(t, sig)
		w.gateway.logs.wait(t, "draining")
		echoes(t, c, "a stream in flight is served on")
		w.gateway.proc.signal(t, sig)
		assert.Equal(t, 128+int(sig), w.gateway.proc.exit(t))
		w.startGateway()
	}
}

// A signal that comes before a program was ready tells so by its exit code.
func TestSignalsBeforeReady(t *testing.T) {
	w := newWorld(t, withoutSidecar(), withTarget("echo", newTarget(t, echoServer)))
	require.NoError(t, w.proxy.Refuse())
	w.processes = true
	for sig, code := range map[syscall.Signal]int{syscall.SIGTERM: errs.ExitTerminated, syscall.SIGINT: errs.ExitInterrupted} {
		w.startSidecar()
		w.sidecar.proc.signal(t, sig)
		assert.Equal(t, code, w.sidecar.proc.exit(t))
	}
}

// SIGHUP takes what can be taken without a restart, says what cannot, and drops no connection but those
// whose route was taken away.
//
// Verifies: R9.4, R11.7
func TestReloadKeepsConnections(t *testing.T) {
	w := newWorld(t, withProcesses(), withTarget("echo", newTarget(t, echoServer)), withTarget("kept", newTarget(t, echoServer)))
	c, kept := w.dial("echo"), w.dial("kept")
	echoes(t, c, "before")
	echoes(t, kept, "before")
	id := w.sidecar.tunnelID(t)

	w.gatewayConfig.Policy = []gatewayconfig.Rule{{Tenants: []string{ownTenant}, Routes: []string{"kept"}}}
	w.gatewayConfig.Breaker.Failures = 3
	configFile(w, "gateway", w.gatewayConfig)
	w.gateway.proc.signal(t, syscall.SIGHUP)
	said := w.gateway.logs.wait(t, "configuration reloaded")
	assert.Contains(t, said.str("applied"), "policy")
	assert.NotContains(t, said.str("applied"), "breaker")
	assert.Equal(t, "breaker.failures", said.str("needs_restart"))
	w.refused("echo")
	w.sidecar.logs.wait(t, "connection ended", "code", errs.RouteForbidden.String())
	requireReset(t, c)

	w.sidecarConfig.Log.Level, w.sidecarConfig.Queue.Size = "error", 5
	configFile(w, "sidecar", w.sidecarConfig)
	w.sidecar.proc.signal(t, syscall.SIGHUP)
	await(t, "the level has changed", func() bool {
		before := len(w.sidecar.logs.find("connection opened"))
		w.refused("echo")
		return len(w.sidecar.logs.find("connection opened")) == before
	})

	require.NoError(t, writeAtomic(filepath.Join(w.dir, "gateway.yaml"), []byte("listen: [")))
	w.gateway.proc.signal(t, syscall.SIGHUP)
	w.gateway.logs.wait(t, "the configuration was not reloaded; what was loaded before stays in force")
	echoes(t, kept, "after all")
	assert.Equal(t, id, w.sidecar.tunnelID(t))
}

// The gateway's own tool for tokens makes one that it accepts.
func TestDevelopmentTokensWork(t *testing.T) {
	w := newWorld(t, withoutSidecar(), withTarget("source", newTarget(t, sourceServer(60, 1000))))
	gateway, _ := binaries(t)
	file := configFile(w, "token", w.gatewayConfig)
	token, _, code := command(t, nil, gateway, "token", "--tenant", ownTenant, "--ttl", "1h", "--config", file)
	require.Equal(t, errs.ExitDone, code)
	got, _ := readStream(t, w.mustStream("source", strings.TrimSpace(token)))
	assert.Equal(t, lineOfContent(60, 1000), got)
	_, told, code := command(t, nil, gateway, "token", "--config", file)
	assert.Equal(t, errs.ExitConfiguration, code)
	assert.Contains(t, told, "--tenant")
}

// A port that is taken is the configuration's fault, and is named.
func TestTakenAddressesAreNamed(t *testing.T) {
	w := newWorld(t, withTarget("echo", newTarget(t, echoServer)))
	gateway, sidecar := binaries(t)
	g, s := w.gatewayConfig, w.sidecarConfig
	g.Listen = w.gateway.address
	s.Listeners[0].Listen = w.sidecar.addr(t, "echo")
	for exe, c := range map[string][2]string{gateway: {configFile(w, "g", g), g.Listen}, sidecar: {configFile(w, "s", s), s.Listeners[0].Listen}} {
		_, told, code := command(t, nil, exe, "run", "--config", c[0])
		assert.Equal(t, errs.ExitConfiguration, code)
		assert.Contains(t, told, errs.ListenFailed.String())
		assert.Contains(t, told, c[1])
	}
}

// Draining by the API does what SIGTERM does.
func TestTheAPIStopsProcesses(t *testing.T) {
	w := newWorld(t, withProcesses(), withTarget("echo", newTarget(t, echoServer)))
	for i, n := range []*running{w.sidecar.running, w.gateway.running} {
		status, _ := request(t, http.MethodPost, n.url("/api/drain"), "")
		assert.Equal(t, http.StatusAccepted, status)
		assert.Equal(t, errs.ExitDone, n.proc.exit(t), fmt.Sprint("program ", i))
	}
}
