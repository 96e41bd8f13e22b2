package server_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"fairlead/gateway/server"
	"fairlead/gateway/session"
	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/relay"
	"fairlead/shared/testbed"
	"fairlead/shared/ws"
)

func TestMain(m *testing.M) {
	if os.Getenv(attackKind) != "" {
		attacker()
		return
	}
	goleak.VerifyTestMain(m, // fasthttp keeps one for the Date header, and one for a while after the end of a server
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"))
}

// slots counts the streams that are held.
type slots struct {
	mu   sync.Mutex
	held int
}

func (s *slots) Open(string, string) (func(), error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held++
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.held--
	}), nil
}

func (s *slots) Tunnel(string, string) (func(), error) { return func() {}, nil }

func (s *slots) Pace(_, _ string, c relay.Conn) relay.Conn { return c }
func (s *slots) Budget(string, string) (*link.Budget, func()) {
	return link.NewBudget(1<<30, nil), func() {}
}

func (s *slots) Shed(string, link.Priority) error { return nil }
func (s *slots) ShedTunnel(string) error          { return nil }

func (s *slots) none() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held == 0
}

type policy func(tenant, route string) error

func (p policy) Allow(tenant, route string) error { return p(tenant, route) }

type dial func(ctx context.Context, tenant, route string) (relay.Conn, error)

func (d dial) Dial(ctx context.Context, who session.Identity, route string) (relay.Conn, error) {
	return d(ctx, who.Tenant, route)
}

// Describe knows routes by names such as "as-on-passthrough": their compression and mode.
func (d dial) Describe(route string) (session.Destination, bool) {
	to := session.Destination{Compression: link.CompressAuto}
	if said, ok := strings.CutPrefix(route, "as-"); ok {
		compression, mode, _ := strings.Cut(said, "-")
		to.Compression, _ = link.ParseCompression(compression)
		to.Mode = mode
	}
	return to, true
}

// face is a server with a backend of the test's own behind it.
type face struct {
	*server.Server
	t        *testing.T
	log      *testbed.LogBuffer
	set      *metrics.Set
	slots    *slots
	sessions *session.Registry
	backend  chan *net.TCPConn // the backend's ends of the connections that were dialled

	mu    sync.Mutex
	peers []netip.Addr // that the handshake limit was asked about
	ready error
}

const token = "Bearer a-token-of-alice"

func start(t *testing.T, change func(*server.Config)) *face {
	t.Helper()
	return startHasty(t, 10*time.Second, change)
}

// startHasty waits for the link's handshake as long as handshake.
func startHasty(t *testing.T, handshake time.Duration, change func(*server.Config)) *face {
	t.Helper()
	f := &face{t: t, log: &testbed.LogBuffer{}, set: metrics.NewSet(), slots: &slots{}, backend: make(chan *net.TCPConn, 16)}
	back, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	logger := slog.New(slog.NewTextHandler(f.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	opener := session.NewOpener(session.OpenerConfig{Timeout: 10 * time.Second, Slow: 5 * time.Second, Metrics: f.set, Now: time.Now, Limits: f.slots,
		Policy: policy(func(_, route string) error {
			if route != "git" && route != "panic" && !strings.HasPrefix(route, "as-") {
				return errs.New(errs.RouteForbidden, "not yours")
			}
			return nil
		}),
		Backends: dial(func(ctx context.Context, _, route string) (relay.Conn, error) {
			if route == "panic" {
				panic("a fault in the backend")
			}
			c, err := (&net.Dialer{}).DialContext(ctx, "tcp", back.Addr().String())
			if err != nil {
				return nil, errs.Wrap(errs.BackendUnreachable, err, "the backend")
			}
			far, err := back.Accept()
			if err != nil {
				return nil, err
			}
			f.backend <- far.(*net.TCPConn)
			return c.(*net.TCPConn), nil
		})})
	verify := func(_ context.Context, authorization string, _ *x509.Certificate) (session.Identity, error) {
		switch authorization {
		case token:
			return session.Identity{Tenant: "dev", Subject: "alice", Expires: time.Now().Add(time.Hour)}, nil
		case "":
			return session.Identity{}, errs.New(errs.TokenMissing, "no token")
		case "Bearer panic":
			panic("a fault in the verifier")
		}
		return session.Identity{}, errs.New(errs.TokenInvalid, "not that one")
	}
	f.sessions = session.New(session.Config{Link: link.Config{Budget: link.NewBudget(1<<30, nil)}, ResumeTTL: time.Minute, Handshake: handshake, Opener: opener,
		Limits: f.slots, Logger: logger, Metrics: f.set, Now: time.Now})
	cfg := server.Config{Listen: "127.0.0.1:0", MaxMessage: 1 << 20, Sessions: f.sessions, Opener: opener, Verify: verify, Logger: logger, Metrics: f.set,
		Handshake: func(addr netip.Addr) error {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.peers = append(f.peers, addr)
			return nil
		},
		Ready: func() error {
			f.mu.Lock()
			defer f.mu.Unlock()
			return f.ready
		}}
	if change != nil {
		change(&cfg)
	}
	f.Server, err = server.New(cfg)
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- f.Serve() }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		assert.NoError(t, f.sessions.Close(ctx))
		short, stop := context.WithTimeout(ctx, 10*time.Millisecond)
		defer stop()
		_ = f.Shutdown(short)
		assert.NoError(t, f.Shutdown(ctx))
		assert.Eventually(t, func() bool { return f.metric("fairlead_gateway_strangers 0") }, 10*time.Second, time.Millisecond, "every place was given back")
		assert.NoError(t, <-served)
		back.Close()
		close(f.backend)
		for c := range f.backend {
			c.Close()
		}
		assert.True(t, f.slots.none(), "every slot was given back")
		assert.NotContains(t, f.log.String(), strings.TrimPrefix(token, "Bearer "))
	})
	return f
}

// ask sends one request with a connection of its own.
func (f *face) ask(method, path string, header ...string) (*http.Response, errs.Answer) {
	f.t.Helper()
	req, err := http.NewRequestWithContext(f.t.Context(), method, "http://"+f.Addr().String()+path, nil)
	require.NoError(f.t, err)
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	require.NoError(f.t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(f.t, err)
	var a errs.Answer
	if resp.Header.Get("Content-Type") == "application/json" {
		require.NoError(f.t, json.Unmarshal(body, &a))
	}
	return resp, a
}

// upgrade is the header of a WebSocket upgrade.
func upgrade(more ...string) []string {
	return append([]string{"Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Version", "13", "Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="}, more...)
}

// plain opens a plain stream, and returns both its ends.
func (f *face) plain() (*ws.Conn, *net.TCPConn) {
	f.t.Helper()
	c, err := (&ws.Dialer{MaxMessage: 1 << 20}).Dial(f.t.Context(), "ws://"+f.Addr().String()+"/v1/stream/git", http.Header{"Authorization": {token}}, "")
	require.NoError(f.t, err)
	f.t.Cleanup(c.Abort)
	return c, <-f.backend
}

func (f *face) eventually(what string, ok func() bool) {
	f.t.Helper()
	require.Eventually(f.t, ok, 10*time.Second, 2*time.Millisecond, what)
}

func (f *face) metric(line string) bool {
	var b bytes.Buffer
	f.set.WritePrometheus(&b)
	return strings.Contains(b.String(), line+"\n")
}
