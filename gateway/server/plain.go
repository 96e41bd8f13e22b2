package server

import (
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/fasthttp/websocket"
	"github.com/valyala/fasthttp"

	"fairlead/gateway/session"
	"fairlead/shared/errs"
	"fairlead/shared/link"
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

	deflated *metrics.Counter
}

func newPlainStreams(cfg Config) *plainStreams {
	p := &plainStreams{open: map[uint64]io.Closer{}, idle: make(chan struct{}), deflated: cfg.Metrics.NewCounter("fairlead_gateway_plain_streams_deflated_total")}
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
	guestOf(ctx.Conn()).leave() // from here on the tenant's limits hold
	if !upgrades(ctx) {
		answer(ctx, errs.New(errs.BadRequest, "this address is for WebSocket upgrades"))
		return
	}
	if s.plain.draining() {
		answer(ctx, errs.New(errs.Draining, "this gateway takes no new streams"))
		return
	}
	ask := session.Ask{Who: session.NewBearer(who), Route: route, Priority: link.Normal, Client: peer, Stream: "plain-" + strconv.FormatUint(ctx.ID(), 10)}
	log := s.cfg.Logger.With(logging.FieldTenant, who.Tenant, logging.FieldSubject, who.Subject, logging.FieldPeer, peer, logging.FieldStream, ask.Stream)
	opened, err := s.cfg.Opener.Open(s.ctx, ask, log)
	if err != nil {
		answer(ctx, err)
		return
	}
	over, ok := s.hold(opened)
	if !ok {
		err := errs.New(errs.Draining, "this gateway takes no new streams")
		over(err)
		answer(ctx, err)
		return
	}
	s.standing(ctx, who)
	// An upgrade that was answered may still never reach its handler.
	late := time.AfterFunc(upgradeTime, func() { over(errs.New(errs.HandshakeLate, "the client left before its upgrade was done")) })
	upgrader, open := &s.upgrader, ws.New
	if s.cfg.Deflate && opened.Compresses() && offersDeflate(ctx) {
		upgrader, open = &s.deflater, ws.NewDeflated
		s.plain.deflated.Inc()
	}
	err = upgrader.Upgrade(ctx, func(c *websocket.Conn) {
		if !late.Stop() {
			c.Close()
			return
		}
		err := error(errs.New(errs.Panicked, "a fault in the stream")) // unless carry returns
		defer func() { over(err) }()
		s.hijacked(c, func() {
			conn, failed := open(c, s.cfg.MaxMessage)
			if failed != nil {
				err = failed
				return
			}
			err = s.carry(conn, opened)
		})
	})
	if err != nil && late.Stop() {
		over(errs.Wrap(errs.BadRequest, err, "the upgrade was refused"))
	}
}

// hold registers an open stream, so that a drain waits for it. over ends it.
func (s *Server) hold(opened *session.Opened) (over func(error), ok bool) {
	id, ok := s.plain.add(opened.Conn)
	var once sync.Once
	return func(err error) {
		once.Do(func() {
			opened.Conn.Close()
			opened.Over(err)
			if ok {
				s.plain.remove(id)
			}
		})
	}, ok
}

// lingerTime is how long a backend may go on after its client has closed. WebSocket has no half-close, so nothing of what it
// still says arrives; but it shall see an end before its connection breaks.
const lingerTime = 5 * time.Second

// endTime is how long a client may take what was on the way to it when the gateway ended its stream, and why. One that
// takes nothing must not keep what a revocation has ended.
const endTime = 2 * time.Second

// carry relays until one side ends, and returns why unless that was in order.
func (s *Server) carry(conn *ws.Conn, opened *session.Opened) error {
	var sent, received atomic.Uint64
	var ended atomic.Pointer[error] // by the gateway
	abort := sync.OnceValue(func() *time.Timer { return time.AfterFunc(endTime, conn.Abort) })
	end := func(err error) {
		ended.CompareAndSwap(nil, &err)
		opened.Conn.Close()
		abort()
	}
	opened.Carry(func() (uint64, uint64) { return sent.Load(), received.Load() }, end)
	up := s.upload(conn, opened.Conn, &received, end)
	broken, gone := pump(ws.NewBytes(conn), opened.Conn, &sent)
	if gone != nil { // the backend may still be reading; to break its connection now could lose what is on the way to it
		linger := time.AfterFunc(lingerTime, func() { opened.Conn.Close() })
		_, _ = io.Copy(io.Discard, opened.Conn)
		linger.Stop()
	}
	err := s.verdict(broken, opened.Route)
	if e := ended.Load(); e != nil {
		err = *e
		defer abort().Stop()
	}
	conn.Close(errs.CloseFrame(err))
	// The client answers the close, or a second passes; a backend that takes nothing any more must not hold up the end.
	linger := time.AfterFunc(lingerTime, func() { opened.Conn.Close() })
	orderly := <-up
	linger.Stop()
	conn.Abort()
	conn.Wait()
	if err == nil && gone != nil && !orderly {
		err = errs.Wrap(errs.LaneLost, gone, "writing to the client")
	}
	return err
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

// upload copies from the client to the backend, in a goroutine that ends with the WebSocket. A client that ends in order
// half-closes the backend; one that breaks ends it, and one that breaks the protocol is told so by end. The result is
// whether it ended by a close frame of the client.
func (s *Server) upload(conn *ws.Conn, backend relay.Conn, received *atomic.Uint64, end func(error)) <-chan bool {
	result := make(chan bool, 1)
	go func() {
		orderly := false
		defer func() { result <- orderly }()
		defer s.recovered()
		broken, refused := pump(backend, ws.NewBytes(conn), received)
		orderly = broken == nil && refused == nil
		if broken != nil && errs.From(broken).Category() == errs.Protocol {
			end(broken)
		}
		if !orderly || backend.CloseWrite() != nil {
			backend.Close()
			return
		}
		time.AfterFunc(lingerTime, func() { backend.Close() })
	}()
	return result
}

// pump copies until src ends, counts what was written, and tells apart whether reading or writing failed.
func pump(dst io.Writer, src io.Reader, count *atomic.Uint64) (readErr, writeErr error) {
	buf := make([]byte, plainBuffer)
	for {
		got, err := src.Read(buf)
		if got > 0 {
			put, writeErr := dst.Write(buf[:got])
			count.Add(uint64(put))
			if writeErr != nil {
				return nil, writeErr
			}
		}
		if err == io.EOF {
			return nil, nil
		}
		if err != nil {
			return err, nil
		}
	}
}
