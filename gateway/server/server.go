// Package server is the gateway's public HTTP face: the upgrade of tunnels and of plain byte streams, health, and refusals
// as JSON. Everything that comes in here is a stranger's until its token is verified.
package server

import (
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
	served   sync.WaitGroup
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
		CloseOnShutdown:   true,
		Logger:            httpLogger{cfg.Logger},
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

// Shutdown stops accepting, and waits for requests and plain streams until ctx ends; then plain streams are cut. Tunnels are
// the registry's.
func (s *Server) Shutdown(ctx context.Context) error {
	defer s.end()
	err := s.http.ShutdownWithContext(ctx)
	s.plain.close(ctx)
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

// handle routes a request. fasthttp recovers from nothing, so a panic is answered here.
func (s *Server) handle(ctx *fasthttp.RequestCtx) {
	defer func() {
		if p := recover(); p != nil {
			s.cfg.Logger.Error("panic in a request", "code", errs.Panicked.String(), "panic", p, logging.FieldStack, string(debug.Stack()))
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
	case isStream && route != "":
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
	path := string(ctx.Path())
	if err != nil {
		s.count("refused", errs.CodeOf(err).String())
		s.cfg.Logger.Warn("authentication refused", append(logging.Error(err), logging.FieldPeer, peer, "path", path)...)
		return who, peer, err
	}
	s.count("accepted", "")
	s.cfg.Logger.Info("authenticated", logging.FieldTenant, who.Tenant, logging.FieldSubject, who.Subject, "token_id", who.TokenID, logging.FieldPeer, peer, "path", path)
	return who, peer, nil
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
		s.hijacked(c, func() {
			conn, err := ws.New(c, s.cfg.MaxMessage)
			if err != nil {
				s.cfg.Logger.Error("cannot use a connection", logging.Error(err)...)
				return
			}
			s.cfg.Sessions.Serve(conn, who, peer)
		})
	})
}

// hijacked runs a handler of an upgraded connection: it is closed afterwards, whatever happens, because fasthttp does not.
func (s *Server) hijacked(c *websocket.Conn, f func()) {
	s.served.Add(1)
	defer s.served.Done()
	defer c.Close()
	defer func() {
		if p := recover(); p != nil {
			s.cfg.Logger.Error("panic in a connection", "code", errs.Panicked.String(), "panic", p, logging.FieldStack, string(debug.Stack()))
		}
	}()
	f()
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
// if the connection comes from a trusted proxy.
func (s *Server) clientAddr(ctx *fasthttp.RequestCtx) netip.Addr {
	addr := peerAddr(ctx.RemoteAddr())
	forwarded := strings.Split(string(ctx.Request.Header.Peek("X-Forwarded-For")), ",")
	for i := len(forwarded) - 1; i >= 0 && s.trusted(addr); i-- {
		next, err := netip.ParseAddr(strings.TrimSpace(forwarded[i]))
		if err != nil {
			break
		}
		addr = next.Unmap()
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
