package e2e

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	gatewayconfig "fairlead/gateway/config"
)

// only returns the only line with this message and these fields.
func (l *logs) only(t *testing.T, msg string, fields ...string) entry {
	t.Helper()
	l.wait(t, msg, fields...)
	found := l.find(msg, fields...)
	require.Len(t, found, 1, "%q is logged once", msg)
	return found[0]
}

// Verifies: R6.10, R11.3, R11.5
func TestLifecycleEventsAreLoggedOnceEach(t *testing.T) {
	w := newWorld(t, withTarget("echo", newTarget(t, echoServer)))
	id := w.sidecar.tunnelID(t)
	c := w.dial("echo")
	echoes(t, c, "first")
	require.Equal(t, 1, w.proxy.Cut())
	echoes(t, c, "second")
	require.NoError(t, c.Close())
	await(t, "the stream has ended", func() bool { return w.streamsAtGateway() == 0 })
	require.NoError(t, w.sidecar.stop())
	await(t, "the tunnel has ended", func() bool { return len(w.gateway.logs.find("tunnel ended")) > 0 })
	require.NoError(t, w.gateway.stop())

	g, s := w.gateway.logs, w.sidecar.logs
	for _, msg := range []string{"tunnel connected", "tunnel detached", "tunnel resumed", "tunnel ended"} {
		assert.Equal(t, id, g.only(t, msg).str("tunnel"), msg)
	}
	assert.NotEmpty(t, g.only(t, "tunnel detached").str("code"), "why the WebSocket ended")
	assert.Len(t, s.find("tunnel connecting"), 1)
	connected := s.find("tunnel connected", "tunnel", id)
	require.Len(t, connected, 2, "once when it was made, once when it was resumed")
	assert.Equal(t, "connecting", connected[0].str("from"))
	assert.Equal(t, "resuming", connected[1].str("from"))
	lost := s.find("tunnel resuming", "tunnel", id)
	require.NotEmpty(t, lost)
	assert.Equal(t, "connected", lost[0].str("from"))
	assert.NotEmpty(t, lost[0].str("code"))

	opened, ended := s.only(t, "connection opened"), s.only(t, "connection ended")
	there, gone := g.only(t, "stream opened"), g.only(t, "stream ended")
	for _, e := range []entry{opened, ended, there, gone} {
		assert.Equal(t, id, e.str("tunnel"))
		assert.Equal(t, opened.str("stream"), e.str("stream"))
		assert.Equal(t, "echo", e.str("route"))
	}
	assert.Equal(t, "11 11", ended.str("sent")+" "+ended.str("received"))
	assert.Equal(t, "11 11", gone.str("sent")+" "+gone.str("received"))
}

// Verifies: R11.4
func TestLinesOfAStreamCarryItsIds(t *testing.T) {
	w := newWorld(t, withTarget("echo", newTarget(t, echoServer)), withTarget("dead", closedAddr(t)), withForward("behind", newTarget(t, echoServer)),
		withGateway(func(c *gatewayconfig.Config) {
			c.Policy = []gatewayconfig.Rule{{Tenants: []string{ownTenant}, Routes: []string{"echo", "dead", "behind"}}}
			c.Routes["vault"] = gatewayconfig.Route{Backend: "echo", Mode: gatewayconfig.ModePassthrough}
		}), func(w *world) { w.addListener("vault", "vault", loopback, "low") })
	for _, listener := range []string{"echo", "behind"} {
		c := w.dial(listener)
		echoes(t, c, "hello")
		require.NoError(t, c.Close())
	}
	w.refused("dead")
	w.refused("vault")
	await(t, "all has ended", func() bool {
		return len(w.sidecar.logs.find("connection ended")) == 4 && len(w.gateway.logs.find("stream ended")) == 2
	})
	traces := map[string]string{}
	for _, e := range append(w.sidecar.logs.entries(), w.gateway.logs.entries()...) {
		if msg := e.str("msg"); !strings.HasPrefix(msg, "stream ") && !strings.HasPrefix(msg, "connection ") {
			continue
		}
		for _, field := range []string{"tunnel", "stream", "trace", "instance", "version", "component"} {
			assert.NotEmpty(t, e.str(field), "%s in %v", field, e)
		}
		if known, ok := traces[e.str("stream")]; ok {
			assert.Equal(t, known, e.str("trace"), "one trace, in both programs: %v", e)
		}
		traces[e.str("stream")] = e.str("trace")
	}
	assert.Len(t, traces, 4)
}

// Verifies: R4.4
func TestAuthenticationIsLoggedWithoutTheToken(t *testing.T) {
	w := newWorld(t, withoutSidecar(), withTarget("echo", newTarget(t, echoServer)))
	var secrets []string
	try := func(token string) {
		if c, _, err := w.stream("echo", token); err == nil {
			require.NoError(t, c.Close())
		}
		if token != "" {
			secrets = append(secrets, token, token[strings.LastIndexByte(token, '.')+1:])
		}
	}
	expired, err := w.issuer.Expired(ownTenant)
	require.NoError(t, err)
	forged, err := w.issuer.WrongSignature(ownTenant)
	require.NoError(t, err)
	withID, err := w.issuer.Sign(map[string]any{"sub": ownTenant, "jti": "token-7"})
	require.NoError(t, err)
	for _, token := range []string{"", expired, forged, withID} {
		try(token)
	}
	w.raw("GET /v1/stream/echo HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer " + withID + "\r\nbroken header\r\n\r\n")
	w.writeToken(w.token(ownTenant, time.Hour))
	w.startSidecar()
	w.waitReady()
	secrets = append(secrets, strings.TrimSpace(readFile(t, w.tokenFile)))

	var outcomes []string
	for _, e := range w.gateway.logs.entries() {
		switch e.str("msg") {
		case "authentication refused":
			assert.NotEmpty(t, e.str("error"))
			assert.NotEmpty(t, e.str("peer"))
			outcomes = append(outcomes, e.str("code")+" "+e.str("path"))
		case "authenticated":
			assert.NotEmpty(t, e.str("peer"))
			outcomes = append(outcomes, e.str("tenant")+e.str("token_id")+" "+e.str("path"))
		}
	}
	assert.Equal(t, []string{"FL-A201 /v1/stream/echo", "FL-A202 /v1/stream/echo", "FL-A203 /v1/stream/echo", "devtoken-7 /v1/stream/echo", "dev /v1/tunnel"}, outcomes)
	everything := w.gateway.logs.text() + w.sidecar.logs.text() + get(t, w.gateway.url("/metrics")) + get(t, w.sidecar.url("/metrics")) +
		get(t, w.sidecar.url("/api/status")) + get(t, w.gateway.url("/api/tunnels"))
	for _, secret := range secrets {
		assert.NotContains(t, everything, secret)
	}
}

// Verifies: R11.7
func TestLogLevelChangesAtRunTime(t *testing.T) {
	w := newWorld(t, withTarget("echo", newTarget(t, echoServer)))
	for _, n := range []struct {
		*running
		msg string
	}{{w.gateway.running, "stream opened"}, {w.sidecar.running, "connection opened"}} {
		status, _ := request(t, http.MethodPut, n.url("/api/log-level"), "error")
		require.Equal(t, http.StatusOK, status)
		before := len(n.logs.find(n.msg))
		echoes(t, w.dial("echo"), "in silence")
		assert.Len(t, n.logs.find(n.msg), before)
		status, _ = request(t, http.MethodPut, n.url("/api/log-level"), `{"level":"info"}`)
		require.Equal(t, http.StatusOK, status)
		echoes(t, w.dial("echo"), "told")
		await(t, n.msg, func() bool { return len(n.logs.find(n.msg)) == before+1 })
		status, body := request(t, http.MethodPut, n.url("/api/log-level"), "loud")
		assert.Equal(t, http.StatusBadRequest, status)
		var answer map[string]any
		require.NoError(t, json.Unmarshal([]byte(body), &answer))
		assert.Equal(t, "FL-S422", answer["code"])
	}
}
