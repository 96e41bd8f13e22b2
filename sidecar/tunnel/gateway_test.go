package tunnel

import (
	"context"
	"io"
	"log"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/fasthttp/websocket"
	"github.com/stretchr/testify/require"
	"github.com/valyala/fasthttp"
	"go.uber.org/goleak"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/ws"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, // fasthttp keeps one for the Date header, and one for a while after the end of a server
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"))
}

// gateway is the gateway's end of the protocol, without anything behind it: streams are accepted and stay open until the
// sidecar ends them.
type gateway struct {
	t   *testing.T
	url string
	srv fasthttp.Server
	l   net.Listener

	mu       sync.Mutex
	refuse   func(authorization string) error // of the upgrade
	turn     func() error                     // of the handshake
	greet    func(resume bool) error          // of the handshake, too
	echo     bool                             // streams send back what they get
	decline  error                            // of streams
	name     string                           // of the replica, told to sidecars
	door     string                           // the replica that answers upgrades
	peers    []*gateway                       // whose tunnels can be resumed here
	resumed  int
	handlers int
	idle     sync.Cond
	upgrades int
	conns    map[net.Conn]struct{}
	tunnels  map[link.ID]*link.Tunnel
	renewed  []string
	opened   []string // routes
	cookie   string   // that refusals set
	sent     string   // cookies that came with the last upgrade
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// tracker lets the test cut connections.
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

func newGateway(t *testing.T) *gateway {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	g := &gateway{t: t, l: l, url: "ws://" + l.Addr().String() + "/v1/tunnel", name: "test", conns: map[net.Conn]struct{}{}, tunnels: map[link.ID]*link.Tunnel{}}
	g.idle.L = &g.mu
	up := websocket.FastHTTPUpgrader{ReadBufferSize: ws.ReadBufferSize, WriteBufferSize: ws.WriteBufferSize, WriteBufferPool: ws.WriteBuffers, Subprotocols: []string{link.Subprotocol}}
	g.srv = fasthttp.Server{KeepHijackedConns: true, CloseOnShutdown: true, Logger: log.New(io.Discard, "", 0), Handler: func(ctx *fasthttp.RequestCtx) {
		g.mu.Lock()
		g.upgrades++
		g.sent = string(ctx.Request.Header.Peek("Cookie"))
		refuse, cookie, door := g.refuse, g.cookie, g.door
		g.mu.Unlock()
		if string(ctx.Path()) == "/readyz" {
			g.with(func() { g.upgrades-- })
			return
		}
		if refuse != nil {
			if err := refuse(string(ctx.Request.Header.Peek("Authorization"))); err != nil {
				if cookie != "" {
					ctx.Response.Header.Set("Set-Cookie", cookie)
				}
				status, body := errs.HTTP(err)
				ctx.SetStatusCode(status)
				ctx.SetBody(body)
				return
			}
		}
		if door != "" {
			ctx.Response.Header.Set("Fairlead-Replica", door)
		}
		_ = up.Upgrade(ctx, func(c *websocket.Conn) { // which does not run if the connection was cut meanwhile
			g.running(1)
			defer g.running(-1)
			defer c.Close()
			g.serve(c)
		})
	}}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = g.srv.Serve(&ws.Listener{Listener: tracker{l, g}})
	}()
	t.Cleanup(func() {
		g.stop()
		<-served
	})
	return g
}

func (g *gateway) stop() {
	_ = g.l.Close() // Serve may not have begun, and then Shutdown knows of no listener
	_ = g.srv.Shutdown()
	g.end(nil)
	g.cut()
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.handlers > 0 {
		g.idle.Wait()
	}
}

// running counts handlers.
func (g *gateway) running(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.handlers += n
	g.idle.Broadcast()
}

func (g *gateway) serve(c *websocket.Conn) {
	conn, err := ws.New(c, 1<<20)
	if err != nil {
		return
	}
	lane, err := g.handshake(conn)
	if err != nil {
		conn.Close(errs.CloseFrame(err))
		conn.Drain()
		conn.Abort()
		conn.Wait()
		return
	}
	_ = lane.Run()
}

func (g *gateway) handshake(conn *ws.Conn) (*link.Lane, error) {
	hs, err := link.Greet(context.Background(), conn)
	if err != nil {
		return nil, err
	}
	id, resume := hs.Tunnel()
	g.mu.Lock()
	turn, greet, name := g.turn, g.greet, g.name
	g.mu.Unlock()
	if turn != nil {
		if err := turn(); err != nil {
			return nil, err
		}
	}
	if greet != nil {
		if err := greet(resume); err != nil {
			return nil, err
		}
	}
	if resume {
		t := g.find(id)
		if t == nil {
			return nil, errs.New(errs.TunnelUnknown, "not here")
		}
		lane, err := hs.Resume(t)
		if err == nil {
			g.with(func() { g.resumed++ })
		}
		return lane, err
	}
	_, lane, err := hs.Accept(link.Config{Replica: name, Made: func(t *link.Tunnel) {
		g.with(func() { g.tunnels[t.ID()] = t })
	}, Accept: func(s *link.Stream) {
		g.mu.Lock()
		g.opened = append(g.opened, s.Request().Route)
		echo, decline := g.echo, g.decline
		g.mu.Unlock()
		if decline != nil {
			s.Reset(decline)
			return
		}
		s.Accept()
		if echo {
			_, _ = io.Copy(s, s)
			_ = s.CloseWrite()
		}
	}, Renew: func(token string) (time.Time, error) {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.renewed = append(g.renewed, token)
		if token == "bad" {
			return time.Time{}, errs.New(errs.TokenInvalid, "bad")
		}
		return time.Now().Add(time.Hour), nil
	}})
	return lane, err
}

// find looks for a tunnel here and at the replicas that this one can relay to.
func (g *gateway) find(id link.ID) (t *link.Tunnel) {
	g.mu.Lock()
	t, peers := g.tunnels[id], g.peers
	g.mu.Unlock()
	for _, p := range peers {
		if t == nil {
			p.with(func() { t = p.tunnels[id] })
		}
	}
	return t
}

func (g *gateway) with(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f()
}

func (g *gateway) all() (all []*link.Tunnel) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, t := range g.tunnels {
		if t.Err() == nil {
			all = append(all, t)
		}
	}
	return all
}

// cut breaks every connection without a word.
func (g *gateway) cut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := range g.conns {
		c.Close()
	}
	clear(g.conns)
}

// end ends every tunnel.
func (g *gateway) end(err error) {
	for _, t := range g.all() {
		t.Close(err)
	}
}

// forget makes the gateway deny that it ever had a tunnel.
func (g *gateway) forget() {
	g.mu.Lock()
	defer g.mu.Unlock()
	clear(g.tunnels)
}

func (g *gateway) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.upgrades
}
