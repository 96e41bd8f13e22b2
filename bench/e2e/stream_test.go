package e2e

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/fasthttp/websocket"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	gatewayconfig "fairlead/gateway/config"
	"fairlead/shared/errs"
	"fairlead/shared/testbed"
)

// stream asks a gateway for a plain byte stream, as any WebSocket client could. Without a stream there is the answer.
func (w *world) stream(route, token string) (*websocket.Conn, *http.Response, error) {
	w.t.Helper()
	dialer := websocket.Dialer{TLSClientConfig: w.clientTLS(), HandshakeTimeout: patience}
	header := http.Header{}
	if token != "" {
		header.Set("Authorization", "Bearer "+token)
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	c, answer, err := dialer.DialContext(ctx, w.endpoint(w.gateway.address)+"v1/stream/"+route, header)
	if err == nil {
		w.t.Cleanup(func() { _ = c.Close() }) // most tests have closed it
		require.NoError(w.t, c.SetReadDeadline(time.Now().Add(2*patience)))
	}
	return c, answer, err
}

// mustStream is stream for those that must be granted.
func (w *world) mustStream(route, token string) *websocket.Conn {
	w.t.Helper()
	c, _, err := w.stream(route, token)
	require.NoError(w.t, err)
	return c
}

// refusal is a refused stream: the status, and the JSON body.
func (w *world) refusal(route, token string) (int, errs.Answer) {
	w.t.Helper()
	_, answer, err := w.stream(route, token)
	require.ErrorIs(w.t, err, websocket.ErrBadHandshake)
	return answer.StatusCode, readAnswer(w.t, answer)
}

// readAnswer reads an error's JSON. Every field must be there.
func readAnswer(t *testing.T, answer *http.Response) errs.Answer {
	t.Helper()
	assert.Equal(t, "application/json", answer.Header.Get("Content-Type"))
	body, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	var fields map[string]any
	require.NoError(t, json.Unmarshal(body, &fields), "%s", body)
	for _, field := range []string{"code", "category", "message", "advice", "retry_after_ms"} {
		assert.Contains(t, fields, field)
	}
	var a errs.Answer
	require.NoError(t, json.Unmarshal(body, &a))
	return a
}

// readStream reads binary messages until the close frame, and returns the digestLine of the bytes and the frame.
func readStream(t *testing.T, c *websocket.Conn) (string, *websocket.CloseError) {
	t.Helper()
	hash, n := sha256.New(), int64(0)
	for {
		kind, r, err := c.NextReader()
		var closed *websocket.CloseError
		if errors.As(err, &closed) {
			return digestLine(hash.Sum(nil), n), closed
		}
		require.NoError(t, err)
		require.Equal(t, websocket.BinaryMessage, kind)
		got, err := io.Copy(hash, r)
		require.NoError(t, err)
		n += got
	}
}

func TestPlainStreamsCarryBytesBothWays(t *testing.T) {
	const size = 16 << 20
	for mode, with := range modes() {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t, withoutSidecar(), with("echo", newTarget(t, echoServer)), with("source", newTarget(t, sourceServer(40, size))))
			token := w.token(ownTenant, time.Hour)

			c := w.mustStream("echo", token)
			raw, err := io.ReadAll(contentOf(41, size))
			require.NoError(t, err)
			sent := make(chan error, 1)
			go func() { // in messages of many sizes: none has a meaning
				var err error
				for rest, n := raw, 1; len(rest) > 0 && err == nil; n = n*3%100003 + 1 {
					n = min(n, len(rest))
					err = c.WriteMessage(websocket.BinaryMessage, rest[:n])
					rest = rest[n:]
				}
				sent <- err
			}()
			hash, got := sha256.New(), int64(0)
			for got < size {
				_, r, err := c.NextReader()
				require.NoError(t, err)
				n, err := io.Copy(hash, r)
				require.NoError(t, err)
				got += n
			}
			require.NoError(t, <-sent)
			assert.Equal(t, lineOfContent(41, size), digestLine(hash.Sum(nil), got))
			require.NoError(t, c.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(patience)))
			_, closed := readStream(t, c)
			assert.Equal(t, websocket.CloseNormalClosure, closed.Code)

			down, closed := readStream(t, w.mustStream("source", token))
			assert.Equal(t, lineOfContent(40, size), down)
			assert.Equal(t, websocket.CloseNormalClosure, closed.Code, "the backend's end closes in good order: %s", closed.Text)
			assert.Len(t, w.gateway.logs.find("stream opened"), 2)
			await(t, "both ends are logged", func() bool { return len(w.gateway.logs.find("stream ended")) == 2 })
		})
	}
}

func TestPlainStreamsAreRefusedWithACode(t *testing.T) {
	w := newWorld(t, withoutSidecar(), withTarget("echo", newTarget(t, echoServer)), withTarget("dead", closedAddr(t)), withTarget("private", newTarget(t, echoServer)),
		withGateway(func(c *gatewayconfig.Config) {
			c.Policy = []gatewayconfig.Rule{{Tenants: []string{ownTenant}, Routes: []string{"echo", "dead"}}}
		}))
	good := w.token(ownTenant, time.Hour)
	expired, err := w.issuer.Expired(ownTenant)
	require.NoError(t, err)
	forged, err := w.issuer.WrongSignature(ownTenant)
	require.NoError(t, err)
	elsewhere, err := w.issuer.WrongAudience(ownTenant)
	require.NoError(t, err)
	early, err := w.issuer.NotYetValid(ownTenant)
	require.NoError(t, err)
	for name, c := range map[string]struct {
		route, token string
		status       int
		code         errs.Code
		category     errs.Category
	}{
		"no token":            {"echo", "", 401, errs.TokenMissing, errs.Authentication},
		"expired token":       {"echo", expired, 401, errs.TokenExpired, errs.Authentication},
		"forged token":        {"echo", forged, 401, errs.TokenInvalid, errs.Authentication},
		"no token at all":     {"echo", "nonsense", 401, errs.TokenInvalid, errs.Authentication},
		"somebody else's":     {"echo", elsewhere, 401, errs.TokenInvalid, errs.Authentication},
		"token of the future": {"echo", early, 401, errs.TokenNotYet, errs.Authentication},
		"forbidden route":     {"private", good, 403, errs.RouteForbidden, errs.Authentication},
		"unknown route":       {"nothing", good, 403, errs.RouteForbidden, errs.Authentication},
		"dead backend":        {"dead", good, 502, errs.BackendUnreachable, errs.Server},
	} {
		t.Run(name, func(t *testing.T) {
			status, answer := w.refusal(c.route, c.token)
			assert.Equal(t, c.status, status)
			assert.Equal(t, c.code.String(), answer.Code, answer.Message)
			assert.Equal(t, c.category, answer.Category)
			assert.Equal(t, c.code.Info().Advice, answer.Advice)
			assert.NotEmpty(t, answer.Message)
		})
	}
	_, forbidden := w.refusal("private", good)
	_, unknown := w.refusal("nothing", good)
	assert.Equal(t, strings.Replace(forbidden.Message, "private", "nothing", 1), unknown.Message, "a route that exists answers as one that does not")
}

// closedAddr is an address at which nobody listens.
func closedAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", loopback)
	require.NoError(t, err)
	require.NoError(t, l.Close())
	return l.Addr().String()
}

// raw makes an HTTP request of bytes as they are, over TLS, and returns the answer.
func (w *world) raw(request string) *http.Response {
	w.t.Helper()
	c, err := tls.Dial("tcp", w.gateway.address, w.ca.ClientTLS())
	require.NoError(w.t, err)
	w.t.Cleanup(func() { _ = c.Close() })
	require.NoError(w.t, c.SetDeadline(time.Now().Add(patience)))
	_, err = io.WriteString(c, request)
	require.NoError(w.t, err)
	answer, err := http.ReadResponse(bufio.NewReader(c), nil)
	require.NoError(w.t, err)
	return answer
}

func TestPublicAddressAnswersStrangers(t *testing.T) {
	w := newWorld(t, withoutSidecar(), withTarget("echo", newTarget(t, echoServer)))
	bearer := "Authorization: Bearer " + w.token(ownTenant, time.Hour) + "\r\n"
	upgrade := "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
	for name, c := range map[string]struct {
		line, header string
		status       int
		code         errs.Code
	}{
		"no upgrade of a stream":  {"GET /v1/stream/echo", bearer, 400, errs.BadRequest},
		"no upgrade of a tunnel":  {"GET /v1/tunnel", bearer + "Sec-WebSocket-Protocol: fairlead.link.v1\r\n", 400, errs.BadRequest},
		"wrong method":            {"POST /v1/stream/echo", bearer + upgrade + "Content-Length: 0\r\n", 405, errs.BadRequest},
		"no subprotocol":          {"GET /v1/tunnel", bearer + upgrade, 400, errs.VersionUnsupported},
		"unknown path":            {"GET /v2/stream/echo", bearer + upgrade, 404, errs.NotFound},
		"no route":                {"GET /v1/stream/", bearer + upgrade, 404, errs.NotFound},
		"header too large":        {"GET /v1/stream/echo", bearer + upgrade + "X-Large: " + strings.Repeat("x", 17<<10) + "\r\n", 431, errs.BadRequest},
		"what is no HTTP request": {"\x16\x03\x01 what", "", 400, errs.BadRequest},
	} {
		t.Run(name, func(t *testing.T) {
			answer := w.raw(c.line + " HTTP/1.1\r\nHost: gateway\r\n" + c.header + "\r\n")
			assert.Equal(t, c.status, answer.StatusCode)
			assert.Equal(t, c.code.String(), readAnswer(t, answer).Code)
		})
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		assert.Equal(t, 200, w.raw("GET "+path+" HTTP/1.1\r\nHost: gateway\r\n\r\n").StatusCode, path)
	}
	assert.Equal(t, 401, w.raw("GET /v1/tunnel HTTP/1.1\r\nHost: gateway\r\n\r\n").StatusCode)
	assert.Empty(t, w.gateway.logs.find("stream opened"))
}

func TestTokensOfEveryAlgorithm(t *testing.T) {
	issuers := map[string]*testbed.Issuer{}
	var served []*testbed.Issuer
	keys := httptest.NewServer(testbed.JWKSHandler(func() []*testbed.Issuer { return served }))
	t.Cleanup(keys.Close)
	var configured []gatewayconfig.Issuer
	for _, algorithm := range []string{"HS256", "RS256", "ES256", "EdDSA"} {
		for _, from := range []string{"file", "url"} {
			name := algorithm + " by " + from
			i, err := testbed.NewIssuer(testbed.IssuerConfig{Algorithm: algorithm, Issuer: "https://" + algorithm + "." + from, KeyID: algorithm + from, Dir: t.TempDir()})
			require.NoError(t, err)
			c := issuerOf(i)
			c.SharedTenants = true
			if from == "url" {
				if algorithm == "HS256" {
					continue // a shared secret is never published
				}
				c.JWKSFile, c.JWKSURL = "", keys.URL
				served = append(served, i)
			}
			issuers[name] = i
			configured = append(configured, c)
		}
	}
	w := newWorld(t, withoutSidecar(), withTarget("source", newTarget(t, sourceServer(42, 1<<10))),
		withGateway(func(c *gatewayconfig.Config) { c.Auth.Issuers = configured }))
	for name, i := range issuers {
		t.Run(name, func(t *testing.T) {
			token, err := i.Valid(ownTenant, time.Hour)
			require.NoError(t, err)
			got, _ := readStream(t, w.mustStream("source", token))
			assert.Equal(t, lineOfContent(42, 1<<10), got)
			for _, make := range []func(string) (string, error){i.WrongSignature, i.WrongAudience} {
				bad, err := make(ownTenant)
				require.NoError(t, err)
				status, answer := w.refusal("source", bad)
				assert.Equal(t, "401 FL-A203", fmt.Sprint(status, " ", answer.Code), answer.Message)
			}
		})
	}
	assert.Len(t, w.gateway.logs.find("authenticated"), len(issuers))
	assert.Len(t, w.gateway.logs.find("authentication refused"), 2*len(issuers))
}
