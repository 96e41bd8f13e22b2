// Package farend is the gateway's end of tunnels over real WebSockets, for tests of what works on their streams.
package farend

import (
	"context"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/fasthttp/websocket"
	"github.com/valyala/fasthttp"

	"fairlead/shared/link"
	"fairlead/shared/testbed"
	"fairlead/shared/ws"
)

// maxMessage is the most bytes in a message.
const maxMessage = 1 << 20

// Server accepts every tunnel, and resumes none.
type Server struct {
	addr     string
	tunnel   func(path string) link.Config
	upgrader websocket.FastHTTPUpgrader
	http     *fasthttp.Server
	served   chan struct{}  // closed once http has ended
	tunnels  sync.WaitGroup // handlers of their WebSockets
}

// New starts a server until the test ends. Each tunnel has the configuration that tunnel returns for the path that its
// WebSocket asked for, without the slash.
func New(tb testbed.TB, tunnel func(path string) link.Config) *Server {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatalf("far end: %v", err)
	}
	s := &Server{addr: l.Addr().String(), tunnel: tunnel, served: make(chan struct{})}
	s.upgrader = websocket.FastHTTPUpgrader{ReadBufferSize: ws.ReadBufferSize, WriteBufferSize: ws.WriteBufferSize, WriteBufferPool: ws.WriteBuffers,
		Subprotocols: []string{link.Subprotocol}}
	s.http = &fasthttp.Server{KeepHijackedConns: true, MaxIdleWorkerDuration: 10 * time.Millisecond, Handler: s.upgrade}
	go func() {
		defer close(s.served)
		_ = s.http.Serve(&ws.Listener{Listener: l}) // ends with the listener
	}()
	tb.Cleanup(func() {
		_ = l.Close() // Shutdown knows it only once Serve has begun
		_ = s.http.Shutdown()
		<-s.served
		s.tunnels.Wait()
	})
	return s
}

func (s *Server) upgrade(ctx *fasthttp.RequestCtx) {
	path := strings.TrimPrefix(string(ctx.Path()), "/") // a copy: the request's memory is used again
	s.tunnels.Add(1)
	err := s.upgrader.Upgrade(ctx, func(c *websocket.Conn) {
		defer s.tunnels.Done()
		defer c.Close()
		s.serve(c, path)
	})
	if err != nil {
		s.tunnels.Done()
	}
}

// serve carries a tunnel until it or its lane ends. What fails shows at the other end.
func (s *Server) serve(c *websocket.Conn, path string) {
	conn, err := ws.New(c, maxMessage)
	if err != nil {
		return
	}
	hs, err := link.Greet(context.Background(), conn)
	if err != nil {
		return
	}
	tun, lane, err := hs.Accept(s.tunnel(path))
	if err != nil {
		return
	}
	_ = lane.Run()
	tun.Close(nil)
	tun.Wait()
}

// Connect makes a sidecar's tunnel at a path. It lives until the test ends, or until its lane does.
func (s *Server) Connect(tb testbed.TB, path string) *link.Tunnel {
	tb.Helper()
	c, err := (&ws.Dialer{MaxMessage: maxMessage}).Dial(context.Background(), "ws://"+s.addr+"/"+path, nil, link.Subprotocol)
	if err != nil {
		tb.Fatalf("far end: %v", err)
	}
	tun, lane, err := link.Connect(context.Background(), c, link.Config{})
	if err != nil {
		tb.Fatalf("far end: %v", err)
	}
	ran := make(chan struct{})
	go func() {
		defer close(ran)
		_ = lane.Run()
	}()
	tb.Cleanup(func() {
		tun.Close(nil)
		<-ran
		tun.Wait()
	})
	return tun
}
