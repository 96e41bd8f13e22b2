package peer_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/fasthttp/websocket"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/valyala/fasthttp"
	"go.uber.org/goleak"

	"fairlead/gateway/peer"
	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/testbed"
	"fairlead/shared/ws"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, // fasthttp keeps one for the Date header, and one for a while after the end of a server
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"))
}

const (
	secret     = "a secret of the replicas, long enough: 0123456789"
	other      = "another secret of the replicas, also long: 98765"
	token      = "Bearer a-token-of-alice"
	maxMessage = 1 << 20
)

func secretFile(t testing.TB, lines ...string) string {
	file := filepath.Join(t.TempDir(), "secret")
	write(t, file, lines...)
	return file
}

func write(t testing.TB, file string, lines ...string) {
	require.NoError(t, os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o600))
}

// port is a Peer with what it says and counts.
type port struct {
	*peer.Peer
	log *testbed.LogBuffer
	set *metrics.Set
}

// startPort runs one until the test ends.
func startPort(t testing.TB, cfg peer.Config) *port {
	t.Helper()
	p := &port{log: &testbed.LogBuffer{}, set: metrics.NewSet()}
	cfg.Listen, cfg.MaxMessage, cfg.Metrics = "127.0.0.1:0", maxMessage, p.set
	cfg.Logger = slog.New(slog.NewTextHandler(p.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var err error
	p.Peer, err = peer.New(cfg)
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- p.Serve() }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		assert.NoError(t, p.Shutdown(ctx))
		assert.NoError(t, <-served)
		assert.Empty(t, p.Relays())
		for _, hidden := range []string{secret, other, "a-token-of-alice"} {
			assert.NotContains(t, p.log.String(), hidden)
		}
	})
	return p
}

func (p *port) metric(line string) bool {
	var b bytes.Buffer
	p.set.WritePrometheus(&b)
	return strings.Contains("\n"+b.String(), "\n"+line+"\n")
}

func (p *port) address() string { return p.Addr().String() }

// replica is a gateway that holds tunnels, and carries those of the other one to it.
type replica struct {
	*port
	t     testing.TB
	name  string
	url   string      // for sidecars
	tls   *tls.Config // of sidecars
	peers func() (address, id string)

	mu      sync.Mutex
	tunnels map[link.ID]*link.Tunnel
	link    link.Config
	calls   []peer.Call
	carried []error
	lanes   sync.WaitGroup
	ctx     context.Context // of relays
}

// newReplica runs one until the test ends. Its tunnels' streams go to accept.
func newReplica(t testing.TB, name, secrets string, accept func(*link.Stream)) *replica {
	t.Helper()
	r := &replica{t: t, name: name, tunnels: map[link.ID]*link.Tunnel{}, link: link.Config{Accept: accept, Replica: name, MaxWindow: 1 << 20}}
	var stop context.CancelFunc
	r.ctx, stop = context.WithCancel(context.Background())
	t.Cleanup(func() { // last: everything else has ended by then
		defer stop()
		r.mu.Lock()
		tunnels := r.tunnels
		r.tunnels = nil
		r.mu.Unlock()
		for _, tun := range tunnels {
			tun.Close(nil)
			tun.Wait()
		}
		r.lanes.Wait()
	})
	r.port = startPort(t, peer.Config{SecretFile: secrets, Replica: name + "/1", Name: name, Admit: r.admit, Tune: ws.Tune})
	r.public()
	return r
}

// admit takes calls for its tunnels.
func (r *replica) admit(_ context.Context, call peer.Call) (func(link.Conn, *link.Handshake), error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, call)
	if call.Token != token {
		return nil, errs.New(errs.TokenInvalid, "not that one")
	}
	tun, ok := r.tunnels[call.Tunnel]
	if !ok {
		return nil, errs.New(errs.TunnelUnknown, "there is no tunnel %s", call.Tunnel)
	}
	return func(conn link.Conn, hs *link.Handshake) {
		lane, err := hs.Resume(tun)
		r.run(conn, lane, err)
	}, nil
}

// run runs a lane, or says why there is none.
func (r *replica) run(conn link.Conn, lane *link.Lane, err error) {
	r.lanes.Go(func() {
		if err == nil {
			_ = lane.Run()
			return
		}
		conn.Close(errs.CloseFrame(err))
		conn.Drain()
		conn.Abort()
		conn.Wait()
	})
}

// public serves sidecars, over TLS, as gateway/server does.
func (r *replica) public() {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(r.t, err)
	dir := r.t.TempDir()
	ca, err := testbed.NewCA(dir)
	require.NoError(r.t, err)
	cert, err := ca.Issue(testbed.CertificateConfig{})
	require.NoError(r.t, err)
	server, err := ca.ServerTLS(cert)
	require.NoError(r.t, err)
	server.DynamicRecordSizingDisabled = true
	r.tls = ca.ClientTLS()
	r.url = "wss://" + tcp.Addr().String() + "/"
	up := websocket.FastHTTPUpgrader{ReadBufferSize: ws.ReadBufferSize, WriteBufferSize: ws.WriteBufferSize, WriteBufferPool: ws.WriteBuffers, Subprotocols: []string{link.Subprotocol}}
	srv := &fasthttp.Server{KeepHijackedConns: true, ReduceMemoryUsage: true, ReadBufferSize: 16 << 10, Handler: func(ctx *fasthttp.RequestCtx) {
		_ = up.Upgrade(ctx, func(c *websocket.Conn) {
			conn, err := ws.New(c, maxMessage)
			if err == nil {
				r.serve(conn)
			}
		})
	}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(tls.NewListener(&ws.Listener{Listener: tcp, Tune: ws.Tune}, server))
	}()
	r.t.Cleanup(func() {
		_ = tcp.Close() // Shutdown knows it only once Serve has begun
		_ = srv.Shutdown()
		<-done
	})
}

// serve takes a sidecar's connection.
func (r *replica) serve(conn *ws.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	hs, err := link.Greet(ctx, conn)
	if err != nil {
		r.run(conn, nil, err)
		return
	}
	id, resumes := hs.Tunnel()
	r.mu.Lock()
	tun, here := r.tunnels[id]
	if !resumes {
		var made *link.Tunnel
		var lane *link.Lane
		if made, lane, err = hs.Accept(r.link); err == nil {
			r.tunnels[made.ID()] = made
		}
		r.mu.Unlock()
		r.run(conn, lane, err)
		return
	}
	r.mu.Unlock()
	if here {
		lane, err := hs.Resume(tun)
		r.run(conn, lane, err)
		return
	}
	r.relay(ctx, conn, hs, id)
}

// relay carries a tunnel to the other replica.
func (r *replica) relay(ctx context.Context, conn *ws.Conn, hs *link.Handshake, id link.ID) {
	address, replica := r.peers()
	owner, err := r.Dial(ctx, address, replica, peer.Call{Tunnel: id, Token: token, Client: conn.RemoteAddr().String(), Via: r.name}, hs.Transfer())
	if err != nil {
		r.run(conn, nil, err)
		return
	}
	client, err := conn.Detach()
	if err != nil {
		owner.Close()
		r.run(conn, nil, err)
		return
	}
	r.lanes.Go(func() {
		_, _, err := r.Carry(r.ctx, peer.Relay{Tunnel: id.String(), Owner: replica, Client: "sidecar"}, client, owner)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.carried = append(r.carried, err)
	})
}

// pair is an owner and another replica, which know of each other.
func pair(t testing.TB, accept func(*link.Stream)) (a, b *replica) {
	t.Helper()
	file := secretFile(t, secret)
	a, b = newReplica(t, "a", file, accept), newReplica(t, "b", file, accept)
	a.peers = func() (string, string) { return b.address(), "b/1" }
	b.peers = func() (string, string) { return a.address(), "a/1" }
	return a, b
}

// sidecar is one end of a tunnel, which is resumed whenever its connection breaks, at the replica that next names.
type sidecar struct {
	tun  *link.Tunnel
	wrap func(attempt int, c net.Conn) net.Conn
	next func(attempt int) *replica
	once sync.Once
	ran  sync.WaitGroup

	mu       sync.Mutex
	attempts int
	lanes    map[string]int // by the replica that they came through
	current  *ws.Conn
}

func (s *sidecar) dial() (*ws.Conn, *replica, error) {
	s.mu.Lock()
	s.attempts++
	n := s.attempts
	s.mu.Unlock()
	r := s.next(n)
	d := ws.Dialer{TLS: r.tls, MaxMessage: maxMessage, Timeout: 20 * time.Second, DialTCP: func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		if err == nil && s.wrap != nil {
			c = s.wrap(n, c)
		}
		return c, err
	}}
	c, err := d.Dial(context.Background(), r.url, nil, link.Subprotocol)
	return c, r, err
}

// connect makes the tunnel.
func (s *sidecar) connect(t testing.TB, cfg link.Config) {
	t.Helper()
	s.lanes = map[string]int{}
	var lane *link.Lane
	for lane == nil {
		c, r, err := s.dial()
		if err != nil {
			continue
		}
		if s.tun, lane, err = link.Connect(context.Background(), c, cfg); err != nil {
			c.Abort()
			continue
		}
		s.through(r, c)
	}
	s.ran.Go(func() { s.keep(lane) })
	t.Cleanup(s.stop)
}

func (s *sidecar) stop() {
	s.once.Do(func() {
		s.tun.Close(nil)
		s.ran.Wait()
		s.tun.Wait()
	})
}

func (s *sidecar) through(r *replica, c *ws.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lanes[r.name]++
	s.current = c
}

func (s *sidecar) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current.Abort()
}

func (s *sidecar) came(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lanes[name]
}

func (s *sidecar) keep(lane *link.Lane) {
	for {
		if lane != nil {
			_ = lane.Run()
		}
		if s.tun.Err() != nil {
			return
		}
		c, r, err := s.dial()
		if err != nil {
			lane = nil
			continue
		}
		if lane, err = s.tun.Resume(context.Background(), c); err != nil {
			c.Abort()
			for _, final := range []errs.Code{errs.TunnelUnknown, errs.OwnerGone, errs.OwnerUnreachable, errs.PeerRefused, errs.ProtocolViolation} {
				if errors.Is(err, final) {
					s.tun.Close(fmt.Errorf("resuming through %s: %w", r.name, err))
				}
			}
			continue
		}
		s.through(r, c)
	}
}
