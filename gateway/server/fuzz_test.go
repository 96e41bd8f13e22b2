package server

import (
	"bufio"
	"bytes"
	"context"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/stretchr/testify/require"
	"github.com/valyala/fasthttp"

	"fairlead/gateway/session"
	"fairlead/shared/errs"
)

// piped is a server over connections in memory. No token is good.
func piped(t testing.TB, log io.Writer) *Server {
	s, err := New(Config{Listen: "127.0.0.1:0", MaxMessage: 1 << 20, Logger: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})), Metrics: metrics.NewSet(),
		Handshake: func(netip.Addr) error { return nil },
		Ready:     func() error { return nil },
		Verify: func(context.Context, string, *x509.Certificate) (session.Identity, error) {
			return session.Identity{}, errs.New(errs.TokenInvalid, "none is good")
		}})
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Shutdown(context.Background()) })
	return s
}

// memory is a client that has sent everything and then reads until the end.
type memory struct {
	sent *bytes.Reader
	got  bytes.Buffer
}

func (m *memory) Read(p []byte) (int, error)       { return m.sent.Read(p) }
func (m *memory) Write(p []byte) (int, error)      { return m.got.Write(p) }
func (m *memory) Close() error                     { return nil }
func (m *memory) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (m *memory) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)} }
func (m *memory) SetDeadline(time.Time) error      { return nil }
func (m *memory) SetReadDeadline(time.Time) error  { return nil }
func (m *memory) SetWriteDeadline(time.Time) error { return nil }

// exchange serves a client that sends raw, and returns what the server says until it closes.
func exchange(t testing.TB, s *Server, raw []byte) []byte {
	m := &memory{sent: bytes.NewReader(raw)}
	g := &guest{Conn: m, door: s.door, gone: make(chan struct{}), release: func() {}}
	require.NoError(t, s.door.place(g, netip.Addr{}))
	_ = s.http.ServeConn(g)
	require.False(t, g.turn, "no turn is kept")
	require.Zero(t, s.door.guests.Len(), "and no place")
	return m.got.Bytes()
}

// Whatever a stranger sends is answered or the connection is closed; what is answered is HTTP, is never an upgrade without
// a good token, and quotes no token.
func FuzzRequests(f *testing.F) {
	for _, seed := range []string{
		"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /readyz HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /v1/tunnel HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer SECRET\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
		"GET /v1/stream/git%2f?token=SECRET HTTP/1.0\r\nX-Forwarded-For: 1.2.3.4, [::1]:80\r\n\r\n",
		"POST http://x/v1/stream/../tunnel HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n1;x=y\r\na\r\n0\r\nAuthorization: Bearer SECRET\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
		"GET / HTTP/1.1\nHost: x\n folded\r\n\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"Authorization: Bearer SECRET\r\n\r\n",
		"\x16\x03\x01\x00\x05hello",
		"GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("a:\r\n", 4000) + "\r\n",
	} {
		f.Add([]byte(seed))
	}
	log := &censor{}
	s := piped(f, log)
	f.Fuzz(func(t *testing.T, raw []byte) {
		got := exchange(t, s, raw)
		r := bufio.NewReader(strings.NewReader(string(got)))
		for n := 0; ; n++ {
			if _, err := r.Peek(1); err != nil {
				break
			}
			resp, err := http.ReadResponse(r, &http.Request{Method: methodOf(raw)})
			require.NoError(t, err, "%q", got)
			require.NotEqual(t, http.StatusSwitchingProtocols, resp.StatusCode)
			require.Less(t, n, requests+1)
			body, err := io.ReadAll(resp.Body)
			require.NoError(t, err, "%q", got)
			require.NotContains(t, string(body), "SECRET")
		}
		require.False(t, log.told.Load())
	})
}

// censor is a log that only remembers whether it was told a secret.
type censor struct{ told atomic.Bool }

func (c *censor) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("SECRET")) {
		c.told.Store(true)
	}
	return len(p), nil
}

func methodOf(raw []byte) string {
	if strings.HasPrefix(strings.TrimLeft(string(raw), "\r\n"), "HEAD ") {
		return "HEAD"
	}
	return "GET"
}

// A client can put anything into X-Forwarded-For: what its proxy adds at the end counts, and without a proxy nothing.
//
// Verifies: R4.10
func FuzzForwarded(f *testing.F) {
	for _, seed := range []string{"", "1.2.3.4", "10.1.1.1, 10.1.1.2", "[::1]:80", "1.2.3.4:5678,", "::ffff:10.0.0.1", "fe80::1%eth0", ",,,", "unknown, _hidden", "\"[2001:db8::1]:80\"", strings.Repeat("10.0.0.1,", 1800)} {
		f.Add(seed)
	}
	s := &Server{cfg: Config{TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}
	addr := func(peer, header string) netip.Addr {
		var ctx fasthttp.RequestCtx
		var req fasthttp.Request
		req.Header.Set("X-Forwarded-For", header)
		ctx.Init(&req, &net.TCPAddr{IP: net.ParseIP(peer), Port: 1}, nil)
		return s.clientAddr(&ctx)
	}
	f.Fuzz(func(t *testing.T, made string) {
		require.Equal(t, "192.0.2.1", addr("192.0.2.1", made).String(), "no proxy of ours")
		require.Equal(t, "203.0.113.7", addr("10.0.0.1", made+", 203.0.113.7").String(), "one proxy")
		require.Equal(t, "203.0.113.7", addr("10.0.0.1", made+", 203.0.113.7, 10.0.0.2").String(), "two")
		require.Equal(t, "2001:db8::7", addr("10.0.0.1", made+", [2001:db8::7]:443").String(), "one that tells ports")
		require.True(t, addr("10.0.0.1", made).IsValid())
		require.Empty(t, addr("10.0.0.1", made).Zone())
	})
}

// A path names a route in one way only, but for percent-encoding, and never goes up.
func FuzzRoute(f *testing.F) {
	for _, seed := range []string{"git", "a/b", "..", "%2e%2e", "a%2fb", "//", "a%20b", "%", "%zz", "\\", "\x00", strings.Repeat("x", 300)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, rest string) {
		route, ok := routeOf("/v1/stream/" + rest)
		if !ok {
			return
		}
		require.NotEmpty(t, route)
		require.LessOrEqual(t, len(route), maxRoute)
		segments := strings.Split(route, "/")
		require.Len(t, segments, strings.Count(rest, "/")+1, "no separator comes from the encoding")
		for i, s := range segments {
			require.NotContains(t, []string{"", ".", ".."}, s)
			segments[i] = url.PathEscape(s)
		}
		again, ok := routeOf("/v1/stream/" + strings.Join(segments, "/"))
		require.True(t, ok)
		require.Equal(t, route, again)
		if !strings.Contains(rest, "%") {
			require.Equal(t, rest, route)
		}
	})
}
