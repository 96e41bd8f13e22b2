package session_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"fairlead/gateway/session"
	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/relay"
	"fairlead/shared/testbed"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// end is one end of an in-memory message connection, so that tests can run on synctest's clock.
type end struct {
	in, out  chan message
	broken   chan struct{} // of both ends
	abort    func()
	pending  []message
	buffered int
	received atomic.Uint64
}

type message struct {
	body   []byte
	closed *errs.Error // a close frame
}

func pair() (client, server *end) {
	up, down, broken := make(chan message, 4096), make(chan message, 4096), make(chan struct{})
	abort := sync.OnceFunc(func() { close(broken) })
	return &end{in: down, out: up, broken: broken, abort: abort}, &end{in: up, out: down, broken: broken, abort: abort}
}

func (e *end) NextReader() (io.Reader, error) {
	select { // what was sent before the end comes first
	case m := <-e.in:
		return e.take(m)
	default:
	}
	select {
	case m := <-e.in:
		return e.take(m)
	case <-e.broken:
		return nil, errs.New(errs.LaneLost, "the connection was cut")
	}
}

func (e *end) take(m message) (io.Reader, error) {
	if m.closed != nil {
		return nil, m.closed
	}
	e.received.Add(uint64(len(m.body)))
	return bytes.NewReader(m.body), nil
}

func (e *end) Write(head, payload []byte) error {
	m := message{body: append(bytes.Clone(head), payload...)}
	e.pending, e.buffered = append(e.pending, m), e.buffered+len(m.body)
	return nil
}

func (e *end) Flush() error {
	for _, m := range e.pending {
		select {
		case e.out <- m:
		case <-e.broken:
			return net.ErrClosed
		}
	}
	e.pending, e.buffered = nil, 0
	return nil
}

func (e *end) Buffered() int    { return e.buffered }
func (e *end) Received() uint64 { return e.received.Load() }
func (e *end) Drain()           {}
func (e *end) Abort()           { e.abort() }
func (e *end) Wait()            {}

// Close lets reads go on for a second, as link.Conn says.
func (e *end) Close(code int, reason string) {
	time.AfterFunc(time.Second, e.abort)
	select {
	case e.out <- message{closed: errs.FromCloseFrame(code, reason)}:
	case <-e.broken:
	}
}

// limits counts what is held.
type limits struct {
	mu               sync.Mutex
	tunnels, streams int
	tunnelErr, open  error
	shed             func(p link.Priority) error // nil: nothing is shed
	shedTunnel       error
}

func (l *limits) take(n *int, err error) (func(), error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		return nil, err
	}
	*n++
	return sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		*n--
	}), nil
}

func (l *limits) Open(string, string) (func(), error)   { return l.take(&l.streams, l.open) }
func (l *limits) Tunnel(string, string) (func(), error) { return l.take(&l.tunnels, l.tunnelErr) }

func (l *limits) Pace(_, _ string, c relay.Conn) relay.Conn { return c }
func (l *limits) Budget(string, string) (*link.Budget, func()) {
	return link.NewBudget(1<<30, nil), func() {}
}

func (l *limits) Shed(_ string, p link.Priority) error {
	if l.shed == nil {
		return nil
	}
	return l.shed(p)
}

func (l *limits) ShedTunnel(string) error { return l.shedTunnel }

func (l *limits) held() [2]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return [2]int{l.tunnels, l.streams}
}

type policy func(tenant, route string) error

func (p policy) Allow(tenant, route string) error { return p(tenant, route) }

type backends func(ctx context.Context, tenant, route string) (relay.Conn, error)

func (b backends) Dial(ctx context.Context, who session.Identity, route string) (relay.Conn, error) {
	return b(ctx, who.Tenant, route)
}

func (b backends) Describe(route string) (session.Destination, bool) {
	return session.Destination{Backend: "of-" + route, Mode: "passthrough"}, true
}

// echo is a backend that returns what it gets and ends its direction after the other.
type echo struct {
	*io.PipeReader
	w *io.PipeWriter
}

func newEcho() relay.Conn {
	r, w := io.Pipe()
	return &echo{r, w}
}

func (e *echo) Write(p []byte) (int, error) { return e.w.Write(p) }
func (e *echo) CloseWrite() error           { return e.w.Close() }
func (e *echo) Close() error {
	e.w.CloseWithError(io.ErrClosedPipe)
	return e.PipeReader.Close()
}

// world is a registry with everything around it.
type world struct {
	*session.Registry
	t      *testing.T
	limits *limits
	opener session.OpenerConfig
	set    *metrics.Set
	log    *testbed.LogBuffer
	serves sync.WaitGroup
}

const ttl = 60 * time.Second

// pass lets time pass on synctest's clock.
func pass(d time.Duration) { <-time.After(d) }

func newWorld(t *testing.T, change func(*session.Config, *session.OpenerConfig)) *world {
	w := &world{t: t, limits: &limits{}, set: metrics.NewSet(), log: &testbed.LogBuffer{}}
	logger := slog.New(slog.NewTextHandler(w.log, nil))
	opener := session.OpenerConfig{Policy: policy(func(string, string) error { return nil }), Limits: w.limits,
		Backends: backends(func(context.Context, string, string) (relay.Conn, error) { return newEcho(), nil }),
		Timeout:  30 * time.Second, Slow: 5 * time.Second, Metrics: w.set, Now: time.Now}
	cfg := session.Config{Link: link.Config{Replica: "test", Budget: link.NewBudget(1<<30, nil)}, ResumeTTL: ttl, Handshake: 10 * time.Second, Limits: w.limits,
		Verify: func(_ context.Context, token string, _ session.Identity) (session.Identity, error) {
			return session.Identity{}, errs.New(errs.TokenInvalid, "not this one")
		},
		Logger: logger, Metrics: w.set, Now: time.Now}
	if change != nil {
		change(&cfg, &opener)
	}
	w.opener = opener
	cfg.Opener = session.NewOpener(opener)
	w.Registry = session.New(cfg)
	return w
}

// close ends the world; everything that it ran must have ended then.
func (w *world) close() {
	assert.NoError(w.t, w.Close(context.Background()))
	w.serves.Wait()
	assert.Equal(w.t, [2]int{}, w.limits.held(), "every slot was given back")
	assert.Empty(w.t, w.List())
}

func (w *world) metric(line string) bool {
	var b bytes.Buffer
	w.set.WritePrometheus(&b)
	return strings.Contains(b.String(), line+"\n")
}

func alice() session.Identity {
	return session.Identity{Tenant: "payments/orders", Subject: "alice", Issuer: "https://issuer.test", TokenID: "1", Tier: "default", Expires: time.Now().Add(time.Hour)}
}

// dial lets the registry serve a new connection, and returns its other end.
func (w *world) dial(who session.Identity) *end {
	client, server := pair()
	w.serves.Go(func() { w.Serve(session.Arrival{Conn: server, Who: who, Client: "192.0.2.1"}) })
	return client
}

// sidecar is the other end of a tunnel.
type sidecar struct {
	*link.Tunnel
	conn    *end
	lane    chan error // why the current lane ended
	goAways chan link.GoAway
	renewed chan error
}

func (w *world) connect(who session.Identity) (*sidecar, error) {
	s := &sidecar{conn: w.dial(who), goAways: make(chan link.GoAway, 10), renewed: make(chan error, 10)}
	t, lane, err := link.Connect(context.Background(), s.conn, link.Config{GoAway: func(g link.GoAway) { s.goAways <- g }, Renewed: func(err error) { s.renewed <- err }})
	if err != nil {
		s.conn.Abort()
		return nil, err
	}
	s.Tunnel = t
	s.run(lane)
	return s, nil
}

func (w *world) mustConnect(who session.Identity) *sidecar {
	w.t.Helper()
	s, err := w.connect(who)
	require.NoError(w.t, err)
	synctest.Wait() // the sidecar may know of the tunnel before the registry does
	return s
}

func (s *sidecar) run(lane *link.Lane) {
	ended := make(chan error, 1)
	s.lane = ended
	go func() { ended <- lane.Run() }()
}

// resume carries the tunnel on with a token of who.
func (w *world) resume(s *sidecar, who session.Identity) error {
	conn := w.dial(who)
	lane, err := s.Resume(context.Background(), conn)
	if err != nil {
		conn.Abort()
		return err
	}
	s.conn = conn
	s.run(lane)
	return nil
}

// cut breaks the lane.
func (s *sidecar) cut() {
	s.conn.Abort()
	<-s.lane
}

// leave ends the tunnel from the sidecar's side.
func (s *sidecar) leave() {
	s.Close(nil)
	<-s.lane
	s.Wait()
}

func (s *sidecar) open(t *testing.T) *link.Stream {
	t.Helper()
	st, err := s.Open(link.OpenRequest{Route: "git", Peer: "app:1"})
	require.NoError(t, err)
	require.NoError(t, st.WaitOpened(context.Background()))
	return st
}
