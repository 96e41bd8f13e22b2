package doctor

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fasthttp/websocket"
	"github.com/stretchr/testify/require"
	"github.com/valyala/fasthttp"
	"go.uber.org/goleak"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/relay"
	"fairlead/shared/testbed"
	"fairlead/shared/ws"
	"fairlead/sidecar/config"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, // fasthttp keeps one for the Date header, and one for a while after the end of a server
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"))
}

// patience bounds probes that must work: far longer than they take, since machines that run tests are busy.
const patience = 60 * time.Second

// gateway is the gateway's end of the protocol, with the probe and with routes to TCP addresses.
type gateway struct {
	addr   string
	routes map[string]string
	refuse func(token string) error    // of the upgrade; nil: nothing
	turn   error                       // of the handshake
	open   func(route string) error    // of a stream; nil: nothing
	bytes  func(relay.Conn) relay.Conn // what the probe returns; nil: what it gets
	old    bool                        // knows no probe
	wg     sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	asked []string // routes that were opened
}

type tracker struct {
	net.Listener
	g *gateway
}

func (l tracker) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.g.mu.Lock()
		l.g.conns[c] = struct{}{}
		l.g.mu.Unlock()
	}
	return c, err
}

// start serves, over TLS unless cfg is nil, until the test ends.
func (g *gateway) start(t *testing.T, cfg *tls.Config) *gateway {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	g.addr, g.conns = tcp.Addr().String(), map[net.Conn]struct{}{}
	var l net.Listener = &ws.Listener{Listener: tracker{tcp, g}}
	if cfg != nil {
		l = tls.NewListener(l, cfg)
	}
	srv := fasthttp.Server{KeepHijackedConns: true, CloseOnShutdown: true, Handler: g.handle, Logger: quiet{}}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = srv.Serve(l)
	}()
	t.Cleanup(func() {
		_ = srv.Shutdown()
		tcp.Close() // a server that has not begun yet is not shut down
		g.mu.Lock()
		for c := range g.conns {
			c.Close()
		}
		g.mu.Unlock()
		<-served
		g.wg.Wait()
	})
	return g
}

type quiet struct{}

func (quiet) Printf(string, ...any) {}

func (g *gateway) handle(ctx *fasthttp.RequestCtx) {
	path := string(ctx.Path())
	if path == "/healthz" {
		return
	}
	if g.refuse != nil {
		if err := g.refuse(strings.TrimPrefix(string(ctx.Request.Header.Peek("Authorization")), "Bearer ")); err != nil {
			answer(ctx, err)
			return
		}
	}
	serve := g.tunnel
	if route, ok := strings.CutPrefix(path, "/v1/stream/"); ok {
		c, err := g.connect(route)
		if err != nil {
			answer(ctx, err)
			return
		}
		serve = func(conn *ws.Conn) { plain(conn, c) }
	}
	up := websocket.FastHTTPUpgrader{ReadBufferSize: ws.ReadBufferSize, WriteBufferSize: ws.WriteBufferSize, WriteBufferPool: ws.WriteBuffers, Subprotocols: []string{link.Subprotocol}}
	g.wg.Add(1)
	if up.Upgrade(ctx, func(c *websocket.Conn) {
		defer g.wg.Done()
		defer c.Close()
		if conn, err := ws.New(c, 1<<20); err == nil {
			serve(conn)
		}
	}) != nil {
		g.wg.Done()
	}
}

func answer(ctx *fasthttp.RequestCtx, err error) {
	status, body := errs.HTTP(err)
	ctx.SetStatusCode(status)
	ctx.SetBody(body)
}

func (g *gateway) tunnel(conn *ws.Conn) {
	hs, err := link.Greet(context.Background(), conn)
	if err == nil {
		err = g.turn
	}
	var lane *link.Lane
	if err == nil {
		_, lane, err = hs.Accept(link.Config{Replica: "replica-1", ResumeTTL: time.Minute, Accept: g.accept})
	}
	if err != nil {
		conn.Close(errs.CloseFrame(err))
		conn.Drain()
		conn.Abort()
		conn.Wait()
		return
	}
	_ = lane.Run()
}

func (g *gateway) accept(s *link.Stream) {
	c, err := g.connect(s.Request().Route)
	if err != nil {
		s.Reset(err)
		return
	}
	s.Accept()
	_ = relay.Pump(s, c)
}

// connect finds what is behind a route.
func (g *gateway) connect(route string) (relay.Conn, error) {
	g.mu.Lock()
	g.asked = append(g.asked, route)
	g.mu.Unlock()
	if g.open != nil {
		if err := g.open(route); err != nil {
			return nil, err
		}
	}
	if route == link.ProbeRoute && !g.old {
		r, w := io.Pipe()
		c := relay.Conn(&echo{r, w})
		if g.bytes != nil {
			c = g.bytes(c)
		}
		return c, nil
	}
	addr, ok := g.routes[route]
	if !ok {
		return nil, errs.New(errs.RouteUnknown, "there is no route %q", route)
	}
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, errs.Wrap(errs.BackendUnreachable, err, "backend %q", route)
	}
	return c.(*net.TCPConn), nil
}

// plain carries a plain stream until one side ends.
func plain(conn *ws.Conn, c relay.Conn) {
	b := ws.NewBytes(conn)
	up := make(chan struct{})
	go func() {
		defer close(up)
		_, _ = io.Copy(c, b)
		c.Close()
	}()
	_, _ = io.Copy(b, c)
	conn.Close(errs.CloseFrame(nil))
	<-up
	conn.Abort()
	conn.Wait()
}

type echo struct {
	*io.PipeReader
	w *io.PipeWriter
}

func (e *echo) Write(p []byte) (int, error) { return e.w.Write(p) }
func (e *echo) CloseWrite() error           { return e.w.Close() }
func (e *echo) Close() error {
	e.w.CloseWithError(io.ErrClosedPipe)
	return e.PipeReader.Close()
}

// patient is what the doctor examines in a test.
type patient struct {
	t        *testing.T
	ca       *testbed.CA
	cert     *testbed.Certificate
	cfg      Config
	settings config.Config
	dialer   *ws.Dialer
	token    func() (string, error)
	environ  map[string]string
}

func newPatient(t *testing.T) *patient {
	ca, cert := testbed.NewTestCA(t)
	p := &patient{t: t, ca: ca, cert: cert, settings: config.Default(), environ: map[string]string{},
		dialer: &ws.Dialer{TLS: ca.ClientTLS(), MaxMessage: 1 << 20, Tune: ws.Tune}, token: func() (string, error) { return "a-token", nil }}
	p.cfg = Config{Version: "test", Timeout: patience, Environ: func(name string) string { return p.environ[name] },
		Load:  func() (config.Config, error) { return p.settings, nil },
		Build: func(config.Config) (Parts, error) { return Parts{Dialer: p.dialer, Token: p.token}, nil }}
	return p
}

// gateway starts a gateway with the patient's certificate.
func (p *patient) gateway(g *gateway) *gateway {
	p.t.Helper()
	cfg, err := p.ca.ServerTLS(p.cert)
	require.NoError(p.t, err)
	g.start(p.t, cfg)
	p.at("wss://" + g.addr + "/")
	return g
}

// at sets the endpoints.
func (p *patient) at(endpoints ...string) { p.settings.Gateway.Endpoints = endpoints }

// listener adds a route.
func (p *patient) listener(route, listen string) {
	p.settings.Listeners = append(p.settings.Listeners, config.Listener{Name: route, Route: route, Listen: listen})
}

func (p *patient) examine() report {
	p.t.Helper()
	return report{p.t, Run(p.t.Context(), p.cfg)}
}

// report finds its way in a Report.
type report struct {
	t *testing.T
	Report
}

// hop is the only result of a hop.
func (r report) hop(hop string) Result {
	r.t.Helper()
	all := r.all(hop)
	require.Len(r.t, all, 1, hop)
	return all[0]
}

func (r report) all(hop string) (all []Result) {
	for _, h := range r.Hops {
		if h.Hop == hop {
			all = append(all, h)
		}
	}
	return all
}

// statuses is how each hop is, in order, as "hop status".
func (r report) statuses() (all []string) {
	for _, h := range r.Hops {
		all = append(all, h.Hop+" "+string(h.Status))
	}
	return all
}
