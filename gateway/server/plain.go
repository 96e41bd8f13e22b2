package server

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/fasthttp/websocket"
	"github.com/valyala/fasthttp"

	"fairlead/gateway/session"
	"fairlead/shared/errs"
	"fairlead/shared/logging"
	"fairlead/shared/relay"
	"fairlead/shared/ws"
)

// plainBuffer is what a plain stream reads from its backend at once, in bytes.
const plainBuffer = 32 << 10

// plainStreams are the byte streams without a tunnel: one WebSocket, one backend connection.
type plainStreams struct {
	mu     sync.Mutex
	next   uint64
	open   map[uint64]io.Closer
	closed bool          // no new ones
	ended  bool          // the open ones were cut
	idle   chan struct{} // closed when closed and nothing is open
}

func newPlainStreams(cfg Config) *plainStreams {
	p := &plainStreams{open: map[uint64]io.Closer{}, idle: make(chan struct{})}
	cfg.Metrics.NewGauge("fairlead_gateway_plain_streams", func() float64 {
		p.mu.Lock()
		defer p.mu.Unlock()
		return float64(len(p.open))
	})
	return p
}

func (p *plainStreams) add(c io.Closer) (id uint64, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return 0, false
	}
	p.next++
	p.open[p.next] = c
	return p.next, true
}

func (p *plainStreams) remove(id uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, id)
	if p.closed && len(p.open) == 0 {
		close(p.idle)
	}
}

// drain refuses new streams, and waits for the open ones until ctx ends.
func (p *plainStreams) drain(ctx context.Context) {
	p.mu.Lock()
	if !p.closed && len(p.open) == 0 {
		close(p.idle)
	}
	p.closed = true
	p.mu.Unlock()
	select {
	case <-p.idle:
	case <-ctx.Done():
	}
}

// cut ends the streams that are open.
func (p *plainStreams) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	for _, c := range p.open {
		c.Close()
	}
}

func (p *plainStreams) draining() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

func (p *plainStreams) wasCut() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ended
}

// stream serves GET /v1/stream/{route}: it connects the backend first, so that a refusal is an HTTP answer, then upgrades.
func (s *Server) stream(ctx *fasthttp.RequestCtx, route string) {
	who, peer, err := s.authenticate(ctx)
	if err != nil {
		answer(ctx, err)
		return
	}
	if !upgrades(ctx) {
		answer(ctx, errs.New(errs.BadRequest, "this address is for WebSocket upgrades"))
		return
	}
	if s.plain.draining() {
		answer(ctx, errs.New(errs.Draining, "this gateway takes no new streams"))
		return
	}
	log := s.cfg.Logger.With(logging.FieldTenant, who.Tenant, logging.FieldSubject, who.Subject, logging.FieldPeer, peer, logging.FieldStream, "plain-"+strconv.FormatUint(ctx.ID(), 10))
	opened, err := s.cfg.Opener.Open(s.ctx, who, route, log)
	if err != nil {
		answer(ctx, err)
		return
	}
	over, ok := s.hold(opened)
	if !ok {
		over()
		answer(ctx, errs.New(errs.Draining, "this gateway takes no new streams"))
		return
	}
	// An upgrade that was answered may still never reach its handler.
	late := time.AfterFunc(upgradeTime, over)
	err = s.upgrader.Upgrade(ctx, func(c *websocket.Conn) {
		if !late.Stop() {
			c.Close()
			return
		}
		defer over()
		s.hijacked(c, func() { s.carry(c, opened, route, log) })
	})
	if err != nil && late.Stop() {
		over()
	}
}

// hold registers an open stream, so that a drain waits for it. over ends it.
func (s *Server) hold(opened *session.Opened) (over func(), ok bool) {
	id, ok := s.plain.add(opened.Conn)
	return sync.OnceFunc(func() {
		opened.Conn.Close()
		opened.Release()
		if ok {
			s.plain.remove(id)
		}
	}), ok
}

// lingerTime is how long a backend may go on after its client has closed. WebSocket has no half-close, so nothing of what it
// still says arrives; but it shall see an end before its connection breaks.
const lingerTime = 5 * time.Second

// upgrades says whether the upgrader would take the request: what it would refuse must not have a backend dialled for it.
func upgrades(ctx *fasthttp.RequestCtx) bool {
	h := &ctx.Request.Header
	return ctx.IsGet() && websocket.FastHTTPIsWebSocketUpgrade(ctx) && string(h.Peek("Sec-WebSocket-Version")) == "13" && len(h.Peek("Sec-WebSocket-Key")) > 0
}

// carry relays until one side ends.
func (s *Server) carry(c *websocket.Conn, opened *session.Opened, route string, log *slog.Logger) {
	conn, err := ws.New(c, s.cfg.MaxMessage)
	if err != nil {
		log.Error("cannot use a connection", logging.Error(err)...)
		return
	}
	start := time.Now()
	up := s.upload(conn, opened.Conn)
	down, broken, gone := pump(ws.NewBytes(conn), opened.Conn)
	if gone != nil { // the backend may still be reading; to break its connection now could lose what is on the way to it
		linger := time.AfterFunc(lingerTime, func() { opened.Conn.Close() })
		_, _ = io.Copy(io.Discard, opened.Conn)
		linger.Stop()
	}
	err = s.verdict(broken, route)
	conn.Close(errs.CloseFrame(err))
	// The client answers the close, or a second passes; a backend that takes nothing any more must not hold up the end.
	linger := time.AfterFunc(lingerTime, func() { opened.Conn.Close() })
	sent := <-up
	linger.Stop()
	conn.Abort()
	conn.Wait()
	if err == nil && gone != nil && !sent.orderly {
		err = errs.Wrap(errs.LaneLost, gone, "writing to the client")
	}
	log.Info("stream ended", append(logging.Error(err), logging.FieldRoute, route, "sent", down, "received", sent.n, "duration_ms", time.Since(start).Milliseconds())...)
}

// verdict is how a stream ended whose backend was read until broken; nil when that was its end.
func (s *Server) verdict(broken error, route string) error {
	switch {
	case s.plain.wasCut():
		return errs.New(errs.ShuttingDown, "the gateway is shutting down")
	case broken != nil && !errors.Is(broken, net.ErrClosed): // we close it only when the client has gone
		return errs.Wrap(errs.BackendBroken, broken, "route %s: the backend's connection broke", route)
	}
	return nil
}

// uploaded is how the direction to the backend ended.
type uploaded struct {
	n       int64
	orderly bool // by a close frame of the client
}

// upload copies from the client to the backend, in a goroutine that ends with the WebSocket. A client that ends in order
// half-closes the backend; one that breaks ends it.
func (s *Server) upload(conn *ws.Conn, backend relay.Conn) <-chan uploaded {
	result := make(chan uploaded, 1)
	go func() {
		var u uploaded
		defer func() { result <- u }()
		defer s.recovered()
		n, broken, refused := pump(backend, ws.NewBytes(conn))
		u = uploaded{n: n, orderly: broken == nil && refused == nil}
		if !u.orderly || backend.CloseWrite() != nil {
			backend.Close()
			return
		}
		time.AfterFunc(lingerTime, func() { backend.Close() })
	}()
	return result
}

// pump copies until src ends, and tells apart whether reading or writing failed.
func pump(dst io.Writer, src io.Reader) (n int64, readErr, writeErr error) {
	buf := make([]byte, plainBuffer)
	for {
		got, err := src.Read(buf)
		if got > 0 {
			put, writeErr := dst.Write(buf[:got])
			n += int64(put)
			if writeErr != nil {
				return n, nil, writeErr
			}
		}
		if err == io.EOF {
			return n, nil, nil
		}
		if err != nil {
			return n, err, nil
		}
	}
}
