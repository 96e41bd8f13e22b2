package server

import (
	"context"
	"io"
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
	closed bool
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

// close refuses new streams, waits for the open ones until ctx ends, and then cuts what is left.
func (p *plainStreams) close(ctx context.Context) {
	p.mu.Lock()
	first := !p.closed
	p.closed = true
	if first && len(p.open) == 0 {
		close(p.idle)
	}
	p.mu.Unlock()
	select {
	case <-p.idle:
		return
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.open {
		c.Close()
	}
}

// stream serves GET /v1/stream/{route}: it connects the backend first, so that a refusal is an HTTP answer, then upgrades.
func (s *Server) stream(ctx *fasthttp.RequestCtx, route string) {
	who, peer, err := s.authenticate(ctx)
	if err != nil {
		answer(ctx, err)
		return
	}
	if !websocket.FastHTTPIsWebSocketUpgrade(ctx) {
		answer(ctx, errs.New(errs.BadRequest, "this address is for WebSocket upgrades"))
		return
	}
	log := s.cfg.Logger.With(logging.FieldTenant, who.Tenant, logging.FieldSubject, who.Subject, logging.FieldPeer, peer, logging.FieldStream, "plain-"+strconv.FormatUint(ctx.ID(), 10))
	opened, err := s.cfg.Opener.Open(s.ctx, who, route, log)
	if err != nil {
		answer(ctx, err)
		return
	}
	drop := func() {
		opened.Conn.Close()
		opened.Release()
	}
	// An upgrade that was answered may still never reach its handler.
	late := time.AfterFunc(upgradeTime, drop)
	err = s.upgrader.Upgrade(ctx, func(c *websocket.Conn) {
		if !late.Stop() {
			c.Close()
			return
		}
		defer opened.Release()
		s.hijacked(c, func() { s.carry(c, opened, route, log) })
	})
	if err != nil && late.Stop() {
		drop()
	}
}

// carry relays until one side ends. The client's close ends the backend's connection only after the backend has been told
// the end and has had its say.
func (s *Server) carry(c *websocket.Conn, opened *session.Opened, route string, log interface{ Info(string, ...any) }) {
	defer opened.Conn.Close()
	conn, err := ws.New(c, s.cfg.MaxMessage)
	if err != nil {
		log.Info("stream ended", append(logging.Error(err), logging.FieldRoute, route)...)
		return
	}
	id, ok := s.plain.add(opened.Conn)
	if !ok {
		conn.Close(errs.CloseFrame(errs.New(errs.ShuttingDown, "the gateway is shutting down")))
		conn.Abort()
		return
	}
	defer s.plain.remove(id)
	start := time.Now()
	var up int64
	upDone := make(chan struct{})
	go func() {
		defer close(upDone)
		up = s.upload(conn, opened.Conn)
	}()
	down, err := copyBuffer(ws.NewBytes(conn), opened.Conn, plainBuffer)
	if err != nil {
		conn.Close(errs.CloseFrame(errs.Wrap(errs.BackendBroken, err, "route %s", route)))
	} else {
		conn.Close(errs.CloseNormal, "done")
	}
	<-upDone // ends with the client's answer to the close, or a second later
	conn.Abort()
	conn.Wait()
	log.Info("stream ended", append(logging.Error(err), logging.FieldRoute, route, "sent", down, "received", up, "duration_ms", time.Since(start).Milliseconds())...)
}

// upload copies from the client to the backend. A client that ends in order half-closes the backend; one that breaks ends
// it.
func (s *Server) upload(conn *ws.Conn, backend relay.Conn) int64 {
	n, err := copyBuffer(backend, ws.NewBytes(conn), plainBuffer)
	if err != nil || backend.CloseWrite() != nil {
		backend.Close()
	}
	return n
}

// copyBuffer is io.CopyBuffer without its short cuts: they would bypass the counting and splice WebSocket frames' memory.
func copyBuffer(dst io.Writer, src io.Reader, size int) (int64, error) {
	return io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, make([]byte, size))
}
