// Package server is the gateway's public HTTP face: the upgrade of tunnels and of plain byte streams, health, and refusals
// as JSON. Everything that comes in here is a stranger's until its token is verified.
package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/fasthttp/websocket"
	"github.com/valyala/fasthttp"

	"fairlead/gateway/audit"
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
	// Verify checks an Authorization header, and what the token is bound to: the client's verified certificate, nil without.
	Verify    func(ctx context.Context, authorization string, cert *x509.Certificate) (session.Identity, error)
	Handshake func(addr netip.Addr) error                       // limit per client address
	Admit     func(addr netip.Addr) (release func(), err error) // limit on connections without a token per client address; nil: none
	Strangers int                                               // connections without a token at once; 0: 2,000, but at most a quarter of the file descriptors
	Standing  func(tenant, tier string) errs.Quota              // with its rate of opens, told with each plain stream; nil: it is not
	Ready     func() error
	Audit     audit.Recorder // nil: nothing is recorded
	Tune      func(net.Conn) // applied to accepted TCP connections
	Deflate   bool           // plain streams may be compressed by permessage-deflate, where the route allows compression
	Replica   string         // name of this replica, told with each answer to a sidecar, since its tunnel may be another's; empty: it is not
	Logger    *slog.Logger
	Metrics   *metrics.Set
}

// Limits of the HTTP face. No address takes a body; fasthttp's smallest limit is one byte.
const (
	headerBuffer = 16 << 10 // tokens are long; a larger header answers 431
	bodyLimit    = 1
	readTimeout  = 10 * time.Second // for a TLS handshake, for a request's first byte, and from there to its end
	writeTimeout = 10 * time.Second
	idleTimeout  = 30 * time.Second
	requests     = 100              // on one connection
	upgradeTime  = 10 * time.Second // from the answer to an upgrade until its handler must have begun
	maxRoute     = 255              // bytes of a route's name; no route has a longer one
	maxLogged    = 128              // bytes of a stranger's text in a log line
)

// Server serves the public listener.
type Server struct {
	cfg      Config
	door     *door
	log      *logging.Tamed // what strangers cause
	listener net.Listener   // on the door, with TLS
	http     fasthttp.Server
	upgrader websocket.FastHTTPUpgrader
	deflater websocket.FastHTTPUpgrader // with permessage-deflate; never for tunnels
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
	s := &Server{cfg: cfg, log: logging.NewTamed()}
	s.door = newDoor(&ws.Listener{Listener: l, Tune: cfg.Tune}, doorConfig{places: cfg.Strangers, secure: cfg.TLS != nil, admit: cfg.Admit, trusted: s.trusted, to: cfg.Logger, log: s.log, metrics: cfg.Metrics})
	s.listener = s.door
	if cfg.TLS != nil {
		s.listener = tls.NewListener(s.door, cfg.TLS)
	}
	s.ctx, s.end = context.WithCancel(context.Background())
	s.plain = newPlainStreams(cfg)
	s.upgrader = websocket.FastHTTPUpgrader{
		ReadBufferSize:  ws.ReadBufferSize,
		WriteBufferSize: ws.WriteBufferSize,
		WriteBufferPool: ws.WriteBuffers,
		Subprotocols:    []string{link.Subprotocol},
		Error: func(ctx *fasthttp.RequestCtx, _ int, reason error) {
			answer(ctx, errs.Wrap(errs.BadRequest, reason, "the upgrade is refused"))
		},
	}
	s.deflater = s.upgrader
	s.deflater.EnableCompression = true
	s.http = fasthttp.Server{
		Handler:            s.handle,
		ErrorHandler:       s.badRequest,
		Name:               "fairlead",
		ReadBufferSize:     headerBuffer,
		ReadTimeout:        readTimeout,
		WriteTimeout:       writeTimeout,
		IdleTimeout:        idleTimeout,
		MaxRequestBodySize: bodyLimit,
		MaxRequestsPerConn: requests,
		ContinueHandler:    func(*fasthttp.RequestHeader) bool { return false }, // no body is wanted: 417
		// A body is no form either.
		DisablePreParseMultipartForm: true,
		// With the default, Close on a hijacked connection does nothing and its wrapper is reused for other clients.
		KeepHijackedConns: true,
		// A tunnel would keep the buffer its header was read with, which is a third of all that it needs when idle.
		ReduceMemoryUsage: true,
		// Without it, messages about a malformed request quote its header, and with it the token.
		SecureErrorLogMessage: true,
		CloseOnShutdown:       true,
		Logger:                httpLogger{cfg.Logger, s.log},
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
	defer s.log.Flush()
	_ = s.door.Close() // fasthttp knows it only once Serve has begun
	s.door.dismiss()
	err := s.http.ShutdownWithContext(ctx)
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
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
	guest := guestOf(ctx.Conn())
	guest.yield() // to find out who asks, others may have to be asked
	defer guest.take()
	defer func() {
		if p := recover(); p != nil {
			s.log.Say(s.cfg.Logger, slog.LevelError, "", "panic in a request", logging.FieldCode, errs.Panicked.String(), "panic", fmt.Sprint(p), logging.FieldStack, string(debug.Stack()))
			answer(ctx, errs.New(errs.Internal, "internal error"))
		}
	}()
	path, err := target(ctx)
	if err == nil {
		err = wellFormed(ctx)
	}
	if err != nil {
		answer(ctx, err)
		return
	}
	switch path {
	case "/healthz":
		ctx.SetBodyString("ok\n")
	case "/readyz":
		s.ready(ctx)
	case "/v1/tunnel":
		s.tunnel(ctx, guest)
	default:
		route, ok := routeOf(path)
		if !ok {
			answer(ctx, errs.New(errs.NotFound, "there is nothing at %.100q", path))
			return
		}
		s.stream(ctx, route)
	}
}

func (s *Server) ready(ctx *fasthttp.RequestCtx) {
	if err := s.cfg.Ready(); err != nil {
		answer(ctx, err)
		return
	}
	ctx.SetBodyString("ready\n")
}

// authenticate finds out who asks. Every attempt is logged, with its outcome and never the token; a flood of refusals in
// few lines, which say how many there were.
func (s *Server) authenticate(ctx *fasthttp.RequestCtx) (who session.Identity, peer string, err error) {
	addr := s.clientAddr(ctx)
	peer = addr.String()
	if err = s.admitted(ctx, addr, func() (err error) {
		who, err = s.cfg.Verify(s.ctx, string(ctx.Request.Header.Peek("Authorization")), certificate(ctx))
		if unrecorded := s.record(who, peer, clip(string(ctx.Path())), err); err == nil {
			err = unrecorded
		}
		return err
	}); err != nil {
		code := errs.CodeOf(err).String()
		s.count("refused", code)
		s.log.Say(s.cfg.Logger, slog.LevelWarn, code, "authentication refused", append(logging.Error(err), logging.FieldPeer, peer, "path", clip(string(ctx.Path())))...)
		return who, peer, err
	}
	s.count("accepted", "")
	s.cfg.Logger.Info("authenticated", logging.FieldTenant, who.Tenant, logging.FieldSubject, who.Subject, "token_id", who.TokenID, logging.FieldPeer, peer, "path", clip(string(ctx.Path())))
	return who, peer, nil
}

// record tells the audit log how an attempt to authenticate ended.
func (s *Server) record(who session.Identity, peer, path string, err error) error {
	if s.cfg.Audit == nil {
		return nil
	}
	e := audit.Event{Action: audit.Authenticate, Result: audit.Allowed, Actor: who.Subject, Issuer: who.Issuer, TokenID: who.TokenID, Tenant: who.Tenant, Pod: who.Pod,
		Client: peer, Target: path}
	if err != nil {
		e.Result, e.Code, e.Detail = audit.Refused, errs.CodeOf(err), errs.From(err).Text()
	}
	return s.cfg.Audit.Record(e)
}

// admitted calls verify within the limits on the client's address. The door has asked for that of connections that come
// from the client itself, but cannot know who is behind a proxy.
func (s *Server) admitted(ctx *fasthttp.RequestCtx, addr netip.Addr, verify func() error) error {
	if s.cfg.Admit != nil && s.trusted(peerAddr(ctx.RemoteAddr())) {
		release, err := s.cfg.Admit(addr)
		if err != nil {
			return err
		}
		defer release()
	}
	if err := s.cfg.Handshake(addr); err != nil {
		return err
	}
	return verify()
}

// certificate is the one that the client has proven to have the key of; nil without.
func certificate(ctx *fasthttp.RequestCtx) *x509.Certificate {
	state := ctx.TLSConnectionState()
	if state == nil || len(state.VerifiedChains) == 0 {
		return nil
	}
	return state.PeerCertificates[0]
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

// tunnel upgrades a sidecar's connection and hands it to the registry. Until the link's handshake is over, the connection
// keeps its place at the door: a token alone does not entitle to connections that say nothing.
func (s *Server) tunnel(ctx *fasthttp.RequestCtx, guest *guest) {
	if s.cfg.Replica != "" {
		defer func() { ctx.Response.Header.Set("Fairlead-Replica", s.cfg.Replica) }() // whatever the answer is
	}
	who, peer, err := s.authenticate(ctx)
	if err == nil && !offers(ctx, link.Subprotocol) {
		err = errs.New(errs.VersionUnsupported, "the client does not offer the subprotocol %s", link.Subprotocol)
	}
	if err == nil && !upgrades(ctx) {
		err = errs.New(errs.BadRequest, "this address is for WebSocket upgrades")
	}
	if err != nil {
		answer(ctx, err)
		return
	}
	// The header is a copy: the request's memory is used again.
	arrival := session.Arrival{Who: who, Client: peer, Authorization: string(ctx.Request.Header.Peek("Authorization"))}
	_ = s.upgrader.Upgrade(ctx, func(c *websocket.Conn) { // a refusal is answered by the upgrader
		guest.upgraded()
		defer guest.leave()
		if err := s.handOver(c, arrival); err != nil {
			s.cfg.Logger.Error("cannot use a connection", logging.Error(err)...)
			c.Close()
		}
	})
}

// handOver gives an upgraded connection to the registry. When it returns, fasthttp takes the request's memory back; the
// connection stays the registry's (KeepHijackedConns).
func (s *Server) handOver(c *websocket.Conn, arrival session.Arrival) (err error) {
	if !s.enter() {
		return errs.New(errs.ShuttingDown, "the gateway is shutting down")
	}
	defer s.served.Done()
	return lifecycle.Guard(s.cfg.Logger, "handshake", func() error {
		conn, err := ws.New(c, s.cfg.MaxMessage)
		if err == nil {
			arrival.Conn = conn
			s.cfg.Sessions.Serve(arrival)
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
