package e2e

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	gatewayconfig "fairlead/gateway/config"
	"fairlead/shared/errs"
	"fairlead/shared/testbed"
	sidecarconfig "fairlead/sidecar/config"
)

// examined is what `sidecar doctor --json` prints, as docs/doctor.md describes it.
type examined struct {
	Version    string
	Started    time.Time
	TookMS     float64 `json:"took_ms"`
	OK         bool
	Exit       int
	Culprit    string
	Conclusion string
	Hops       []examinedHop
}

type examinedHop struct {
	Hop, Target, Status string
	TookMS              float64 `json:"took_ms"`
	Detail, Code        string
	Advice              string
	Data                map[string]any
}

// doctor runs the command with the sidecar's configuration as it is.
func (w *world) doctor(env []string, args ...string) examined {
	w.t.Helper()
	_, exe := binaries(w.t)
	out, told, code := command(w.t, env, exe, append([]string{"doctor", "--json", "--timeout", "60s", "--config", configFile(w, "doctor", w.sidecarConfig)}, args...)...)
	var e examined
	require.NoError(w.t, json.Unmarshal([]byte(out), &e), "%s %s", out, told)
	require.Equal(w.t, e.Exit, code)
	assert.Equal(w.t, version, e.Version)
	if parts := strings.Split(readFile(w.t, w.tokenFile), "."); len(parts) == 3 {
		assert.NotContains(w.t, out, parts[1], "the token is a secret")
	}
	return e
}

// hops are the results of a hop, by target.
func (e examined) hops(t *testing.T, hop string) map[string]examinedHop {
	t.Helper()
	found := map[string]examinedHop{}
	for _, h := range e.Hops {
		if h.Hop == hop {
			found[h.Target] = h
		}
	}
	require.NotEmpty(t, found, hop)
	return found
}

// hop is the only result of a hop.
func (e examined) hop(t *testing.T, hop string) examinedHop {
	t.Helper()
	found := e.hops(t, hop)
	require.Len(t, found, 1, hop)
	return found[slices.Collect(maps.Keys(found))[0]]
}

// withTalker adds a backend that speaks first, but not SSH, so that the doctor need not wait to see what it is.
func withTalker() option {
	return func(w *world) { withTarget("talker", newTarget(w.t, sourceServer(7, 100)))(w) }
}

// The whole way works, and each of its hops says so, down to the login at the SSH server.
//
// Verifies: R2.5, R2.6
func TestDoctorFindsAllWell(t *testing.T) {
	w := newWorld(t, withoutSidecar(), withSSHD(), withTarget("echo", newTarget(t, echoServer)), withForward("behind", newTarget(t, sourceServer(7, 100))))
	e := w.doctor(nil, "--throughput", "8MiB", "--known-hosts", w.ssh.KnownHostsFile(), "--known-as", testbed.HostAlias, "--ssh-user", w.ssh.User(), "--ssh-key", w.ssh.KeyFile())
	assert.True(t, e.OK, e.Conclusion)
	assert.Zero(t, e.Exit)
	for _, hop := range []string{"configuration", "files", "token-file", "dns", "tcp", "proxy", "tls", "clock", "upgrade", "token", "tunnel", "round-trip", "transfer", "throughput"} {
		assert.Equal(t, "ok", e.hop(t, hop).Status, "%+v", e.hop(t, hop))
	}
	for hop, size := range map[string]float64{"transfer": 1 << 20, "throughput": 8 << 20} {
		data := e.hop(t, hop).Data
		assert.Equal(t, size, data["bytes"])
		assert.Equal(t, data["sha256_sent"], data["sha256_returned"])
	}
	for _, route := range []string{sshRoute, "echo", "behind"} {
		assert.Equal(t, "allowed", e.hops(t, "policy")[route].Data["decision"], route)
		assert.Equal(t, "ok", e.hops(t, "backend")[route].Status, route)
	}
	assert.Equal(t, "ok", e.hops(t, "ssh")[sshRoute].Status)
	assert.Equal(t, "yes", e.hops(t, "ssh")[sshRoute].Data["known"])
	assert.Equal(t, "skipped", e.hops(t, "ssh")["echo"].Status, "it waits for its client")
	assert.Equal(t, "skipped", e.hops(t, "ssh")["behind"].Status, "it says something else")
	assert.Equal(t, "ok", e.hop(t, "ssh-login").Status)

	metrics := get(t, w.gateway.url("/metrics"))
	assert.Contains(t, metrics, `fairlead_gateway_probes_total{result="opened"} 3`)
	assert.Contains(t, metrics, fmt.Sprintf(`fairlead_gateway_probe_bytes_total{direction="received"} %d`, 9<<20+11*8))
	assert.Contains(t, metrics, "fairlead_gateway_streams_opened_total 3\n", "probes are no streams of routes")
}

// What a person sees is the same, with ticks and without colours where no terminal is.
//
// Verifies: R2.5
func TestDoctorPrintsATable(t *testing.T) {
	w := newWorld(t, withoutSidecar(), withTalker())
	_, exe := binaries(t)
	file := configFile(w, "doctor", w.sidecarConfig)
	out, told, code := command(t, []string{"LC_ALL=C.UTF-8"}, exe, "doctor", "--config", file)
	assert.Zero(t, code, told)
	assert.Empty(t, told)
	for _, line := range []string{"✓ configuration", "✓ tls", "✓ transfer", "✓ policy        talker", "– throughput", "Every hop that was tried works."} {
		assert.Contains(t, out, line)
	}
	assert.NotContains(t, out, "\x1b")
	w.writeToken("not a token")
	out, _, code = command(t, []string{"LC_ALL=C"}, exe, "doctor", "--config", file)
	assert.Equal(t, errs.ExitAuthentication, code)
	for _, line := range []string{"+ upgrade", "x token", "FL-A203", "-> ", "The likely culprit is the token"} {
		assert.Contains(t, out, line)
	}
}

// A sidecar that carries a transfer is not disturbed by a doctor beside it: no byte is lost, and its tunnel stays.
//
// Verifies: R2.5
func TestDoctorBesideALiveSidecar(t *testing.T) {
	w := newWorld(t, withTarget("digest", newTarget(t, digestServer(1, 0))), withTalker())
	id, events := w.sidecar.tunnelID(t), len(w.status().Events)
	app := w.dial("digest")
	begun, enough, sent := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	size := int64(0)
	go func() { // goes on for as long as the doctor is there
		content := contentOf(99, 1<<40)
		for {
			n, err := io.CopyN(app, content, 256<<10)
			if size += n; size == n {
				close(begun)
			}
			select {
			case <-enough:
				sent <- errors.Join(err, app.CloseWrite())
				return
			default:
			}
		}
	}()
	<-begun
	assert.True(t, w.doctor(nil, "--throughput", "4MiB", "--route", "talker").OK)
	close(enough)
	require.NoError(t, <-sent)
	answer, err := io.ReadAll(app)
	require.NoError(t, err)
	hash := sha256.New()
	_, _ = io.Copy(hash, contentOf(99, size)) // neither fails
	assert.Equal(t, digestLine(hash.Sum(nil), size), string(answer))
	assert.Equal(t, id, w.sidecar.tunnelID(t))
	assert.Len(t, w.status().Events, events, "no reconnect")

	// A tenant that may have one tunnel only is examined all the same.
	w.gatewayConfig.Tiers[gatewayconfig.DefaultTier] = gatewayconfig.Tier{Tunnels: 1}
	_, err = w.gateway.app.Reload(w.gatewayConfig, "test")
	require.NoError(t, err)
	e := w.doctor(nil, "--route", "talker")
	assert.True(t, e.OK, e.Conclusion)
	assert.Equal(t, "warn", e.hop(t, "tunnel").Status)
	assert.Equal(t, code(errs.TunnelLimit), e.hop(t, "tunnel").Code)
	assert.Equal(t, "ok", e.hop(t, "transfer").Status)
	assert.Equal(t, "ok", e.hops(t, "backend")["talker"].Status)
	assert.Equal(t, id, w.sidecar.tunnelID(t))
	assert.Len(t, w.status().Events, events)
}

// Each thing that can be wrong with a token is told as what it is.
//
// Verifies: R2.6, R2.9
func TestDoctorTellsTokensApart(t *testing.T) {
	w := newWorld(t, withoutSidecar(), withTalker())
	sign := func(f func(string) (string, error)) string {
		token, err := f(ownTenant)
		require.NoError(t, err)
		return token
	}
	for name, c := range map[string]struct {
		token, code, says, file string
	}{
		"expired":   {sign(w.issuer.Expired), code(errs.TokenExpired), "expired", "it expired 1h0m ago"},
		"not yet":   {sign(w.issuer.NotYetValid), code(errs.TokenNotYet), "becomes valid in", "it is valid only in"},
		"audience":  {sign(w.issuer.WrongAudience), code(errs.TokenInvalid), "its audience lacks", "audience not-fairlead"},
		"signature": {sign(w.issuer.WrongSignature), code(errs.TokenInvalid), "signature is not by a key", "expires in"},
		"nonsense":  {"nonsense", code(errs.TokenInvalid), "not a well-formed JWT", "not a JWT"},
		"empty":     {"", code(errs.TokenUnreadable), "none was sent", "is empty"},
	} {
		t.Run(name, func(t *testing.T) {
			w.writeToken(c.token)
			e := w.doctor(nil)
			token := e.hop(t, "token")
			assert.Equal(t, "fail", token.Status)
			assert.Equal(t, c.code, token.Code)
			assert.Contains(t, token.Detail, c.says)
			assert.NotEmpty(t, token.Advice)
			assert.Contains(t, e.hop(t, "token-file").Detail, c.file)
			assert.Equal(t, "ok", e.hop(t, "upgrade").Status, "it is the gateway that answers")
			assert.Equal(t, "skipped", e.hop(t, "tunnel").Status)
			assert.Equal(t, errs.ExitAuthentication, e.Exit)
			assert.Contains(t, e.Conclusion, "the token")
		})
	}
}

// Between the gateway and the backends each failure is told with its phase, and other routes are tried all the same.
//
// Verifies: R2.5, R2.6, R2.2, R2.3
func TestDoctorTellsRoutesApart(t *testing.T) {
	down := testbed.NewSSHD(t, testbed.SSHDConfig{})
	down.Stop()
	w := newWorld(t, withoutSidecar(), withSSHD(), withTarget("down", down.Addr()), withTarget("secret", "127.0.0.1:1"), withForward("nobody", "127.0.0.1:1"),
		withGateway(func(c *gatewayconfig.Config) {
			stranger := c.Backends[sshRoute]
			stranger.HostKeys.KnownHostsFile = down.KnownHostsFile()
			c.Backends["stranger"] = stranger
			c.Routes["stranger"] = gatewayconfig.Route{Backend: "stranger", Mode: gatewayconfig.ModeForward, Target: "127.0.0.1:1"}
			c.Policy[0].Routes = []string{sshRoute, "down", "nobody", "stranger"}
		}),
		withSidecar(func(c *sidecarconfig.Config) { c.Listeners = nil }))
	w.addListener("stranger", "stranger", loopback, "normal")
	for _, route := range []string{"secret", "down", "nobody", sshRoute} {
		w.addListener(route, route, loopback, "normal")
	}
	e := w.doctor(nil, "--known-hosts", down.KnownHostsFile(), "--known-as", testbed.HostAlias)
	assert.Equal(t, "forbidden", e.hops(t, "policy")["secret"].Data["decision"])
	assert.Equal(t, code(errs.RouteForbidden), e.hops(t, "policy")["secret"].Code)
	for route, want := range map[string]struct {
		phase string
		code  errs.Code
	}{
		"down": {"connect", errs.BackendUnreachable}, "nobody": {"target", errs.TargetRefused}, "stranger": {"host key", errs.HostKeyRefused},
	} {
		backend := e.hops(t, "backend")[route]
		assert.Equal(t, "fail", backend.Status, route)
		assert.Equal(t, want.phase, backend.Data["phase"], route)
		assert.Equal(t, code(want.code), backend.Code, route)
		assert.NotEmpty(t, backend.Advice)
		assert.Equal(t, "skipped", e.hops(t, "ssh")[route].Status)
	}
	ssh := e.hops(t, "ssh")[sshRoute]
	assert.Equal(t, "fail", ssh.Status)
	assert.Equal(t, "changed", ssh.Data["known"])
	assert.Contains(t, ssh.Detail, fmt.Sprint(ssh.Data["host_key"]))
	for _, old := range ssh.Data["host_key_listed"].([]any) {
		assert.Contains(t, ssh.Detail, old)
	}
	assert.Equal(t, "backend", e.Culprit)
	assert.Equal(t, errs.ExitFailed, e.Exit)

	e = w.doctor(nil, "--route", "secret")
	assert.Equal(t, errs.ExitAuthentication, e.Exit)
	assert.Contains(t, e.Conclusion, "the gateway's policy")
	e = w.doctor(nil, "--route", sshRoute)
	assert.True(t, e.OK, e.Conclusion)
}

// An ingress that answers for a gateway that is away is named as what it is.
//
// Verifies: R6.8, R2.5
func TestDoctorNamesTheIngress(t *testing.T) {
	for name, c := range map[string]struct {
		start  ingressStarter
		detail string
		status float64
		clock  string // HAProxy's own answers have no Date
	}{
		"nginx":   {testbed.NewNginx, `an ingress (nginx/`, 502, "ok"},
		"HAProxy": {testbed.NewHAProxy, `something that does not say its name answered "503 Service Unavailable"`, 503, "skipped"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, withoutSidecar(), withTalker(), withIngress(c.start, nil))
			w.inner.SetTarget(w.gateway.address)
			e := w.doctor(nil)
			require.True(t, e.OK, "%s %+v", e.Conclusion, e.Hops)
			w.cutOff()
			e = w.doctor(nil)
			upgrade := e.hop(t, "upgrade")
			assert.Equal(t, "upgrade", e.Culprit)
			assert.Equal(t, c.status, upgrade.Data["status"])
			assert.Contains(t, upgrade.Detail, c.detail)
			assert.Contains(t, upgrade.Detail, "the gateway behind it did not answer")
			assert.Contains(t, e.Conclusion, "answered, the gateway behind it did not")
			for _, hop := range []string{"dns", "tcp", "tls"} {
				assert.Equal(t, "ok", e.hop(t, hop).Status)
			}
			assert.Equal(t, c.clock, e.hop(t, "clock").Status)
			assert.Equal(t, "skipped", e.hop(t, "token").Status)
			assert.Equal(t, errs.ExitFailed, e.Exit)
		})
	}
}

// A proxy that wants credentials is told from one that has them, and from none.
//
// Verifies: R2.6
func TestDoctorGoesByTheEgressProxy(t *testing.T) {
	tiny := testbed.NewTinyproxy(t, testbed.TinyproxyConfig{User: proxyUser, Password: proxyPassword})
	w := newWorld(t, withoutSidecar(), withTalker(), withEgress(func(*sidecarconfig.Config) {}))
	for name, c := range map[string]struct {
		env  []string
		ok   bool
		says string
	}{
		"right":          {[]string{"FAIRLEAD_GATEWAY__PROXY=" + tiny.URL(proxyUser, proxyPassword)}, true, "as gateway.proxy says"},
		"none":           {[]string{"FAIRLEAD_GATEWAY__PROXY=" + tiny.URL("", "")}, false, "wants a user name and password (407)"},
		"wrong":          {[]string{"FAIRLEAD_GATEWAY__PROXY=" + tiny.URL(proxyUser, "wr-ong")}, false, "does not accept the user name and password of its URL (401)"},
		"by environment": {[]string{"HTTPS_PROXY=" + tiny.URL(proxyUser, proxyPassword)}, true, "as HTTPS_PROXY says"},
		"exempt":         {[]string{"HTTPS_PROXY=" + tiny.URL("", ""), "NO_PROXY=" + anyHost}, true, "NO_PROXY exempts this host"},
	} {
		t.Run(name, func(t *testing.T) {
			e := w.doctor(c.env)
			proxy := e.hop(t, "proxy")
			assert.Contains(t, proxy.Detail, c.says)
			assert.Equal(t, c.ok, e.OK, e.Conclusion)
			if !c.ok {
				assert.Equal(t, "proxy", e.Culprit)
				assert.Equal(t, "fail", proxy.Status)
				assert.Equal(t, "ok", e.hop(t, "tcp").Status, "the proxy itself can be reached")
			}
			assert.NotContains(t, fmt.Sprint(e), proxyPassword)
			assert.NotContains(t, fmt.Sprint(e), "wr-ong")
		})
	}
}

// A configuration that is not valid is told whole, and nothing is tried with it.
//
// Verifies: R2.6
func TestDoctorTellsAllProblemsOfTheConfiguration(t *testing.T) {
	w := newWorld(t, withoutSidecar())
	_, exe := binaries(t)
	out, _, exit := command(t, nil, exe, "doctor", "--json", "--config", w.writeFile("bad.yaml", "gateway: {endpoints: [\"http://a\"]}\nqueue: {size: many}\n"))
	assert.Equal(t, errs.ExitConfiguration, exit)
	var e examined
	require.NoError(t, json.Unmarshal([]byte(out), &e))
	require.Len(t, e.Hops, 1)
	problems := fmt.Sprint(e.Hops[0].Data["problems"])
	assert.Contains(t, problems, "gateway.endpoints[0]")
	assert.Contains(t, problems, "queue.size")
	assert.Equal(t, code(errs.ConfigInvalid), e.Hops[0].Code)
	for _, flags := range [][]string{{"--throughput", "65MiB"}, {"--throughput", "much"}, {"--timeout", "1ms"}, {"--ssh-key", "x"}} {
		_, told, exit := command(t, nil, exe, append([]string{"doctor"}, flags...)...)
		assert.Equal(t, errs.ExitConfiguration, exit, flags)
		assert.Contains(t, told, flags[0])
	}
}

// Who interrupts gets what is known, at once.
func TestDoctorIsInterrupted(t *testing.T) {
	silent, err := net.Listen("tcp", loopback) // takes connections and says nothing
	require.NoError(t, err)
	defer silent.Close()
	w := newWorld(t, withoutSidecar())
	w.sidecarConfig.Gateway.Endpoints = []string{w.endpoint(silent.Addr().String())}
	_, exe := binaries(t)
	p := spawn(t, []string{"LC_ALL=C.UTF-8"}, exe, "doctor", "--timeout", "5m", "--config", configFile(w, "doctor", w.sidecarConfig))
	await(t, "TCP was tried", func() bool { return strings.Contains(p.stdout.text(), "✓ tcp") })
	p.signal(t, syscall.SIGINT)
	assert.Equal(t, errs.ExitInterrupted, p.exit(t))
	assert.Contains(t, p.stdout.text(), "not tried: interrupted")
	assert.Contains(t, p.stdout.text(), "Interrupted: what was tried works, the rest is not known.")
}
