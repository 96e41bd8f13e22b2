package server_test

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/gateway/server"
	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/testbed"
	"fairlead/shared/ws"
)

// Verifies: R11.2
func TestHealth(t *testing.T) {
	f := start(t, nil)
	for _, path := range []string{"/healthz", "/readyz"} {
		resp, _ := f.ask("GET", path)
		assert.Equal(t, 200, resp.StatusCode, path)
	}
	f.mu.Lock()
	f.ready = errs.New(errs.Draining, "going away")
	f.mu.Unlock()
	resp, a := f.ask("GET", "/readyz")
	assert.Equal(t, 503, resp.StatusCode)
	assert.Equal(t, "FL-S412", a.Code)
}

// Verifies: R2.9, R4.4
func TestRefusalsSayWhatIsWrong(t *testing.T) {
	f := start(t, nil)
	for _, c := range []struct {
		path   string
		header []string
		status int
		code   errs.Code
	}{
		{"/nowhere", nil, 404, errs.NotFound},
		{"/v1/stream/", nil, 404, errs.NotFound},
		{"/v1/stream/" + strings.Repeat("x", 300), nil, 404, errs.NotFound},
		{"/v1/tunnel", nil, 401, errs.TokenMissing},
		{"/v1/tunnel", []string{"Authorization", "Bearer wrong"}, 401, errs.TokenInvalid},
		{"/v1/tunnel", []string{"Authorization", token}, 400, errs.VersionUnsupported},
		{"/v1/tunnel", []string{"Authorization", token, "Sec-WebSocket-Protocol", "chat, " + link.Subprotocol}, 400, errs.BadRequest},
		{"/v1/stream/git", nil, 401, errs.TokenMissing},
		{"/v1/stream/git", []string{"Authorization", token}, 400, errs.BadRequest},
		{"/v1/stream/other", upgrade("Authorization", token), 403, errs.RouteForbidden},
		{"/v1/stream/panic", upgrade("Authorization", token), 500, errs.Internal},
		{"/v1/tunnel", []string{"Authorization", "Bearer panic"}, 500, errs.Internal},
	} {
		resp, a := f.ask("GET", c.path, c.header...)
		assert.Equal(t, c.status, resp.StatusCode, c.path)
		assert.Equal(t, c.code.String(), a.Code, "%s %v", c.path, c.header)
		assert.Equal(t, c.code.Category(), a.Category)
		assert.NotEmpty(t, a.Message)
		assert.NotEmpty(t, a.Advice)
		assert.Equal(t, "fairlead", resp.Header.Get("Server"))
		if c.status == 401 {
			assert.Equal(t, `Bearer realm="fairlead"`, resp.Header.Get("WWW-Authenticate"))
		}
	}
	log := f.log.String()
	assert.Contains(t, log, "authentication refused")
	assert.Contains(t, log, "msg=authenticated tenant=dev subject=alice")
	assert.Contains(t, log, "goroutine", "a panic has its stack in the log")
	assert.NotContains(t, log, "Bearer wrong")
	assert.True(t, f.metric(`fairlead_gateway_authentications_total{result="refused",code="FL-A201"} 2`))
}

func TestARefusalSaysWhenToTryAgain(t *testing.T) {
	f := start(t, func(c *server.Config) {
		c.Handshake = func(netip.Addr) error {
			return errs.New(errs.HandshakeLimit, "too many").After(1200 * time.Millisecond)
		}
	})
	resp, a := f.ask("GET", "/v1/tunnel", "Authorization", token)
	assert.Equal(t, 429, resp.StatusCode)
	assert.Equal(t, "2", resp.Header.Get("Retry-After"), "whole seconds, rounded up")
	assert.EqualValues(t, 1200, a.RetryAfterMS)
	assert.NotContains(t, f.log.String(), "msg=authenticated", "the limit comes before the token")
}

// Whatever a sidecar is answered, it learns which replica has answered: its tunnel may be another one's.
func TestTheReplicaIsNamed(t *testing.T) {
	f := startHasty(t, 50*time.Millisecond, func(c *server.Config) { c.Replica = "gateway-0" })
	protocol := upgrade("Authorization", token, "Sec-WebSocket-Protocol", link.Subprotocol)
	for _, c := range []struct {
		header []string
		status int
		name   string
	}{
		{protocol, 101, "gateway-0"},
		{append(protocol, "Origin", "https://elsewhere.example"), 400, "gateway-0"}, // the upgrader refuses it
		{upgrade("Authorization", "Bearer wrong", "Sec-WebSocket-Protocol", link.Subprotocol), 401, "gateway-0"},
		{upgrade("Authorization", token), 400, "gateway-0"},
	} {
		resp, _ := f.ask("GET", "/v1/tunnel", c.header...)
		assert.Equal(t, c.status, resp.StatusCode)
		assert.Equal(t, []string{c.name}, resp.Header.Values("Fairlead-Replica"))
	}
	resp, _ := f.ask("GET", "/healthz")
	assert.Empty(t, resp.Header.Values("Fairlead-Replica"))
	f = start(t, nil)
	resp, _ = f.ask("GET", "/v1/tunnel")
	assert.Empty(t, resp.Header.Values("Fairlead-Replica"), "it has no name")
}

// Verifies: R4.10
func TestTheClientsAddress(t *testing.T) {
	proxies := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8")}
	for _, c := range []struct {
		what    string
		trusted []netip.Prefix
		header  []string
		want    string
	}{
		{"no proxy", nil, nil, "127.0.0.1"},
		{"nobody is trusted", nil, []string{"203.0.113.7"}, "127.0.0.1"},
		{"one proxy", proxies, []string{"203.0.113.7"}, "203.0.113.7"},
		{"no header", proxies, nil, "127.0.0.1"},
		{"two proxies", proxies, []string{"203.0.113.7, 10.1.2.3"}, "203.0.113.7"},
		{"what a client made up is left of its address", proxies, []string{"192.0.2.1, 203.0.113.7"}, "203.0.113.7"},
		{"also when it made up a trusted address", proxies, []string{"192.0.2.1, 10.9.9.9, 203.0.113.7, 10.1.2.3"}, "203.0.113.7"},
		{"a proxy that adds a header of its own", proxies, []string{"192.0.2.1", "203.0.113.7"}, "203.0.113.7"},
		{"nonsense ends the chain", proxies, []string{"203.0.113.7, nonsense, 10.1.2.3"}, "10.1.2.3"},
		{"nonsense alone", proxies, []string{"nonsense"}, "127.0.0.1"},
		{"only proxies", proxies, []string{"10.0.0.1, 10.0.0.2"}, "10.0.0.1"},
		{"IPv6", proxies, []string{"2001:db8::1"}, "2001:db8::1"},
		{"IPv4 in IPv6", proxies, []string{"::ffff:203.0.113.7"}, "203.0.113.7"},
		{"a zone is not part of it", proxies, []string{"fe80::1%eth0"}, "fe80::1"},
		{"a port", proxies, []string{"203.0.113.7:5678"}, "203.0.113.7"},
		{"IPv6 in brackets", proxies, []string{"[2001:db8::1]"}, "2001:db8::1"},
		{"IPv6 with a port", proxies, []string{"[2001:db8::1]:80"}, "2001:db8::1"},
		{"proxies with ports", proxies, []string{"192.0.2.1, 203.0.113.7:1, 10.1.2.3:80"}, "203.0.113.7"},
		{"empty entries end the chain", proxies, []string{"203.0.113.7,,10.1.2.3"}, "10.1.2.3"},
		{"names are no addresses", proxies, []string{"unknown"}, "127.0.0.1"},
		{"quotes belong to another header", proxies, []string{`"[2001:db8::1]:80"`}, "127.0.0.1"},
		{"a header of 15 KB", proxies, []string{strings.Repeat("192.0.2.1,", 1500) + "203.0.113.7"}, "203.0.113.7"},
		{"1,500 proxies", proxies, []string{"203.0.113.7," + strings.Repeat("10.0.0.1,", 1500) + "10.0.0.2"}, "203.0.113.7"},
	} {
		f := start(t, func(s *server.Config) { s.TrustedProxies = c.trusted })
		var header []string
		for _, h := range c.header {
			header = append(header, "X-Forwarded-For", h)
		}
		f.ask("GET", "/v1/tunnel", append(header, "Forwarded", "for=198.51.100.9")...)
		require.Len(t, f.peers, 1)
		assert.Equal(t, c.want, f.peers[0].String(), c.what)
		assert.Contains(t, f.log.String(), "peer="+c.want+" ", c.what)
	}
}

// raw sends bytes and returns the answer.
func (f *face) raw(text string) *http.Response {
	f.t.Helper()
	c, err := net.Dial("tcp", f.Addr().String())
	require.NoError(f.t, err)
	defer c.Close()
	_, err = io.WriteString(c, text)
	require.NoError(f.t, err)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	require.NoError(f.t, err)
	f.t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func TestMalformedRequestsAreAnsweredAndTheirTokensKeptOut(t *testing.T) {
	f := start(t, nil)
	resp := f.raw("GET /v1/tunnel HTTP/1.1\r\nHost: x\r\nAuthorization: " + token + "\r\nX: " + strings.Repeat("y", 20<<10) + "\r\n\r\n")
	assert.Equal(t, http.StatusRequestHeaderFieldsTooLarge, resp.StatusCode)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	assert.Contains(t, string(body), "FL-S422")
	assert.Contains(t, string(body), "over 16384 bytes")

	resp = f.raw("GET /v1/tunnel HTTP/1.1\r\nHost: x\r\nAuthorization: " + token + "\r\nno colon\r\n\r\n")
	assert.Equal(t, 400, resp.StatusCode)
	body, err = io.ReadAll(resp.Body)
	require.NoError(t, err)
	assert.Contains(t, string(body), "FL-S422")
	assert.NotContains(t, string(body), "a-token-of-alice")
	assert.NotContains(t, f.log.String(), "a-token-of-alice")
}

func TestWhoSendsAHeaderByteByByteIsNotWaitedFor(t *testing.T) {
	t.Parallel() // it takes as long as the deadline
	f := start(t, nil)
	c, err := net.Dial("tcp", f.Addr().String())
	require.NoError(t, err)
	defer c.Close()
	_, err = io.WriteString(c, "GET /v1/tunnel HTTP/1.1\r\nHost: x\r\nX: ")
	require.NoError(t, err)
	begun := time.Now()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	require.NoError(t, err)
	resp.Body.Close()
	assert.Equal(t, http.StatusRequestTimeout, resp.StatusCode)
	assert.Less(t, time.Since(begun), 15*time.Second)
}

func TestTunnel(t *testing.T) {
	ca, cert := testbed.NewTestCA(t)
	tls, err := ca.ServerTLS(cert)
	require.NoError(t, err)
	f := start(t, func(c *server.Config) { c.TLS, c.Tune = tls, ws.Tune })
	conn, err := (&ws.Dialer{TLS: ca.ClientTLS(), MaxMessage: 1 << 20}).Dial(t.Context(), "wss://"+f.Addr().String()+"/v1/tunnel", http.Header{"Authorization": {token}}, link.Subprotocol)
	require.NoError(t, err)
	tunnel, lane, err := link.Connect(t.Context(), conn, link.Config{})
	require.NoError(t, err)
	ran := make(chan error, 1)
	go func() { ran <- lane.Run() }()
	s, err := tunnel.Open(link.OpenRequest{Route: "git"})
	require.NoError(t, err)
	backend := <-f.backend
	go func() {
		_, _ = io.Copy(backend, backend)
		backend.Close()
	}()
	_, err = io.WriteString(s, "through")
	require.NoError(t, err)
	require.NoError(t, s.CloseWrite())
	got, err := io.ReadAll(s)
	require.NoError(t, err)
	assert.Equal(t, "through", string(got))
	assert.Equal(t, 1, f.sessions.Counts().Tunnels)
	tunnel.Close(nil)
	<-ran
	tunnel.Wait()
}

func TestListenAndShutdownWithoutServe(t *testing.T) {
	f := start(t, nil)
	cfg := server.Config{Listen: f.Addr().String(), Logger: slog.New(slog.DiscardHandler), Metrics: metrics.NewSet()}
	_, err := server.New(cfg)
	assert.ErrorIs(t, err, errs.ListenFailed)
	cfg.Listen, cfg.Metrics = "127.0.0.1:0", metrics.NewSet()
	unserved, err := server.New(cfg)
	require.NoError(t, err)
	require.NoError(t, unserved.Shutdown(context.Background()))
	_, err = net.Dial("tcp", unserved.Addr().String())
	assert.Error(t, err, "what was never served is closed too")
	assert.NotErrorIs(t, err, context.DeadlineExceeded)
}
