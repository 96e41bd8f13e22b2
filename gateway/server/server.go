// Package server is the gateway's public HTTP face: the upgrade of tunnels and of plain byte streams, health, and refusals
// as JSON. Everything that comes in here is a stranger's until its token is verified.
package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/fasthttp/websocket"
	"github.com/valyala/fasthttp"

	"fairlead/gateway/session"
	"fairlead/shared/errs"
	"fairlead/shared/lifecycle"
	"fairlead/shared/link"
	"fairlead/shared/logging"
	"fairlead/shared/ws"
)

// Config is what a Server needs.
type Config struct {
	Listen         string
	TLS            *tls.Config // nil: plain text, when the configuration asks for it
	MaxMessage     int         // bytes in a WebSocket message
	TrustedProxies []netip.Prefix
	Sessions       *session.Registry
	Opener         *session.Opener
	Verify         func(ctx context.Context, authorization string) (session.Identity, error) // of an Authorization header
	Handshake      func(addr netip.Addr) error                                               // limit per client address
	Ready          func() error
	Tune           func(net.Conn) // applied to accepted TCP connections
	Logger         *slog.Logger
	Metrics        *metrics.Set
}

// Limits of the HTTP face.
const (
	headerBuffer = 16 << 10 // tokens are long; a larger header answers 431
	bodyLimit    = 64 << 10
	readTimeout  = 10 * time.Second
	writeTimeout = 10 * time.Second
	idleTimeout  = 30 * time.Second
	upgradeTime  = 10 * time.Second // from the answer to an upgrade until its handler must have begun
	maxRoute     = 255              // bytes of a route's name; no route has a longer one
	maxLogged    = 128              // bytes of a stranger's text in a log line
)

// Server serves the public listener.
type Server struct {
	cfg      Config
	listener net.Listener
	http     fasthttp.Server
	upgrader websocket.FastHTTPUpgrader
	plain    *plainStreams
	ctx      context.Context // of requests: a RequestCtx is reused memory once its handler has returned
	end      context.CancelFunc

	mu     sync.Mutex
	closed bool           // no more upgraded connections
	served sync.WaitGroup // upgraded connections
}

// New binds the listener.
func New(cfg Config) (*Server, error) {
	l, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return nil, errs.Wrap(errs.ListenFailed, err, "cannot listen on %s", cfg.Listen)
	}
	var listener net.Listener = &ws.Listener{Listener: l, Tune: cfg.Tune}
	if cfg.TLS != nil {
		listener = tls.NewListener(listener, cfg.TLS)
	}
	s := &Server{cfg: cfg, listener: listener}
	s.ctx, s.end = context.WithCancel(context.Background())
	s.plain = newPlainStreams(cfg)
	s.upgrader = websocket.FastHTTPUpgrader{
		ReadBufferSize:  ws.ReadBufferSize,
		WriteBufferSize: ws.WriteBufferSize,
		WriteBufferPool: ws.WriteBuffers,
		Subprotocols:    []string{link.Subprotocol},
		Error: func(ctx *fasthttp.RequestCtx, _ int, reason error) {
			answer(ctx, errs.Wrap(errs.BadRequest, reason, "this address is for WebSocket upgrades"))
		},
	}
	s.http = fasthttp.Server{
		Handler:            s.handle,
		ErrorHandler:       s.badRequest,
		Name:               "fairlead",
		ReadBufferSize:     headerBuffer,
		ReadTimeout:        readTimeout,
		WriteTimeout:       writeTimeout,
		IdleTimeout:        idleTimeout,
		MaxRequestBodySize: bodyLimit,
		// With the default, Close on a hijacked connection does nothing and its wrapper is reused for other clients.
		KeepHijackedConns: true,
		// A tunnel would keep the buffer its header was read with, which is a third of all that it needs when idle.
		ReduceMemoryUsage: true,
		// Without it, messages about a malformed request quote its header, and with it the token.
		SecureErrorLogMessage: true,
		CloseOnShutdown:       true,
		Logger:                httpLogger{cfg.Logger},
	}
	return s, nil
}

// Addr is the address the server listens on.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Serve answers requests until Shutdown.
func (s *Server) Serve() error {
	if err := s.http.Serve(s.listener); err != nil {
		return errs.Wrap(errs.ListenFailed, err, "serving %s", s.listener.Addr())
	}
	return nil
}

// Drain refuses new plain streams from now on, and waits for the open ones until ctx ends.
func (s *Server) Drain(ctx context.Context) { s.plain.drain(ctx) }

// Shutdown stops accepting, and waits for requests and plain streams until ctx ends; then plain streams are cut. Tunnels are
// the registry's.
func (s *Server) Shutdown(ctx context.Context) error {
	defer s.end()
	err := s.http.ShutdownWithContext(ctx)
	_ = s.listener.Close() // closed already, unless Serve has not begun: fasthttp knows the listener only from then on
	s.plain.drain(ctx)
	s.plain.cut()
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	served := make(chan struct{})
	go func() {
		defer close(served)
		s.served.Wait()
	}()
	select {
	case <-served:
		return err
	case <-ctx.Done():
		return errors.Join(err, context.Cause(ctx))
	}
}

// enter counts an upgraded connection, unless the server has stopped.
func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.served.Add(1)
	return true
}

// handle routes a request. fasthttp recovers from nothing, so a panic is answered here.
func (s *Server) handle(ctx *fasthttp.RequestCtx) {
	defer func() {
		if p := recover(); p != nil {
			s.cfg.Logger.Error("panic in a request", logging.FieldCode, errs.Panicked.String(), "panic", fmt.Sprint(p), logging.FieldStack, string(debug.Stack()))
			answer(ctx, errs.New(errs.Internal, "internal error"))
		}
	}()
	path := string(ctx.Path()) // memory of the request is reused
	route, isStream := strings.CutPrefix(path, "/v1/stream/")
	switch {
	case path == "/healthz":
		ctx.SetBodyString("ok\n")
	case path == "/readyz":
		s.ready(ctx)
	case path == "/v1/tunnel":
		s.tunnel(ctx)
	case isStream && route != "" && len(route) <= maxRoute:
		s.stream(ctx, route)
	default:
		answer(ctx, errs.New(errs.NotFound, "there is nothing at %.100q", path))
	}
}

func (s *Server) ready(ctx *fasthttp.RequestCtx) {
	if err := s.cfg.Ready(); err != nil {
		answer(ctx, err)
		return
	}
	ctx.SetBodyString("ready\n")
}

// authenticate finds out who asks. Every attempt is logged once, with its outcome and never the token.
func (s *Server) authenticate(ctx *fasthttp.RequestCtx) (who session.Identity, peer string, err error) {
	addr := s.clientAddr(ctx)
	peer = addr.String()
	if err = s.cfg.Handshake(addr); err == nil {
		who, err = s.cfg.Verify(s.ctx, string(ctx.Request.Header.Peek("Authorization")))
	}
	path := clip(string(ctx.Path()))
	if err != nil {
		s.count("refused", errs.CodeOf(err).String())
		s.cfg.Logger.Warn("authentication refused", append(logging.Error(err), logging.FieldPeer, peer, "path", path)...)
		return who, peer, err
	}
	s.count("accepted", "")
	s.cfg.Logger.Info("authenticated", logging.FieldTenant, who.Tenant, logging.FieldSubject, who.Subject, "token_id", who.TokenID, logging.FieldPeer, peer, "path", path)
	return who, peer, nil
}

func clip(s string) string {
	if len(s) > maxLogged {
		return s[:maxLogged] + "…"
	}
	return s
}

func (s *Server) count(result, code string) {
	s.cfg.Metrics.GetOrCreateCounter(`fairlead_gateway_authentications_total{result="` + result + `",code="` + code + `"}`).Inc()
}

// tunnel upgrades a sidecar's connection and hands it to the registry.
func (s *Server) tunnel(ctx *fasthttp.RequestCtx) {
	who, peer, err := s.authenticate(ctx)
	if err == nil && !offers(ctx, link.Subprotocol) {
		err = errs.New(errs.VersionUnsupported, "the client does not offer the subprotocol %s", link.Subprotocol)
	}
	if err != nil {
		answer(ctx, err)
		return
	}
	_ = s.upgrader.Upgrade(ctx, func(c *websocket.Conn) { // a refusal is answered by the upgrader
		if err := s.handOver(c, who, peer); err != nil {
			s.cfg.Logger.Error("cannot use a connection", logging.Error(err)...)
			c.Close()
		}
	})
}

// handOver gives an upgraded connection to the registry. When it returns, fasthttp takes the request's memory back; the
// connection stays the registry's (KeepHijackedConns).
func (s *Server) handOver(c *websocket.Conn, who session.Identity, peer string) (err error) {
	if !s.enter() {
		return errs.New(errs.ShuttingDown, "the gateway is shutting down")
	}
	defer s.served.Done()
	return lifecycle.Guard(s.cfg.Logger, "handshake", func() error {
		conn, err := ws.New(c, s.cfg.MaxMessage)
		if err == nil {
			s.cfg.Sessions.Serve(conn, who, peer)
		}
		return err
	})
}

// hijacked runs a handler of an upgraded connection: it is closed afterwards, whatever happens, because fasthttp does not.
func (s *Server) hijacked(c *websocket.Conn, f func()) {
	defer c.Close()
	if !s.enter() {
		return
	}
	defer s.served.Done()
	defer s.recovered()
	f()
}

// recovered ends a panic: it costs the connection, not the process.
func (s *Server) recovered() {
	if p := recover(); p != nil {
		s.cfg.Logger.Error("panic in a connection", logging.FieldCode, errs.Panicked.String(), "panic", fmt.Sprint(p), logging.FieldStack, string(debug.Stack()))
	}
}

func offers(ctx *fasthttp.RequestCtx, protocol string) bool {
	for _, p := range strings.Split(string(ctx.Request.Header.Peek("Sec-WebSocket-Protocol")), ",") {
		if strings.TrimSpace(p) == protocol {
			return true
		}
	}
	return false
}

// clientAddr is the address of the client: the first one, from the right, in X-Forwarded-For that is no trusted proxy's,
// if the connection comes from a trusted proxy. Proxies that add a header of their own instead of extending the client's
// add it as the last one, so all of them count, in their order.
func (s *Server) clientAddr(ctx *fasthttp.RequestCtx) netip.Addr {
	addr := peerAddr(ctx.RemoteAddr())
	forwarded := strings.Split(string(bytes.Join(ctx.Request.Header.PeekAll("X-Forwarded-For"), []byte(","))), ",")
	for i := len(forwarded) - 1; i >= 0 && s.trusted(addr); i-- {
		next, err := netip.ParseAddr(strings.TrimSpace(forwarded[i]))
		if err != nil {
			break
		}
		addr = next.WithZone("").Unmap()
	}
	return addr
}

func peerAddr(a net.Addr) netip.Addr {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

func (s *Server) trusted(addr netip.Addr) bool {
	for _, p := range s.cfg.TrustedProxies {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// badRequest answers what fasthttp could not parse.
func (s *Server) badRequest(ctx *fasthttp.RequestCtx, err error) {
	var small *fasthttp.ErrSmallBuffer
	var network *net.OpError
	e := errs.Wrap(errs.BadRequest, err, "the request is not understood")
	status := 0
	switch {
	case errors.As(err, &small):
		e, status = errs.New(errs.BadRequest, "the request's header is over %d bytes", headerBuffer), fasthttp.StatusRequestHeaderFieldsTooLarge
	case errors.As(err, &network) && network.Timeout():
		e, status = errs.New(errs.BadRequest, "the request did not arrive within %v", readTimeout), fasthttp.StatusRequestTimeout
	}
	answer(ctx, e)
	if status != 0 {
		ctx.SetStatusCode(status)
	}
}

// answer tells an error as JSON.
func answer(ctx *fasthttp.RequestCtx, err error) {
	status, body := errs.HTTP(err)
	ctx.Response.Reset()
	ctx.SetStatusCode(status)
	ctx.SetContentType("application/json")
	if after := errs.From(err).RetryAfter; after > 0 {
		ctx.Response.Header.Set("Retry-After", strconv.Itoa(int((after+time.Second-1)/time.Second)))
	}
	if status == fasthttp.StatusUnauthorized {
		ctx.Response.Header.Set("WWW-Authenticate", `Bearer realm="fairlead"`)
	}
	ctx.SetBody(append(body, '\n'))
}

// httpLogger takes what fasthttp has to say; strangers cause most of it.
type httpLogger struct{ *slog.Logger }

func (l httpLogger) Printf(format string, args ...any) {
	l.Debug("http", logging.FieldError, strings.TrimSpace(fmt.Sprintf(format, args...)))
}
