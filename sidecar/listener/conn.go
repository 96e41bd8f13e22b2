package listener

import (
	"context"
	"errors"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/lifecycle"
	"fairlead/shared/link"
	"fairlead/shared/logging"
	"fairlead/shared/relay"
	"fairlead/sidecar/queue"
)

// conn is an application's connection. The listener's mu guards stream and waiting.
type conn struct {
	net.Conn
	start   time.Time
	stream  *link.Stream // that carries it; nil while it waits, and where Handle has it
	waiting bool         // in the queue
	gone    error        // why the application went away while it waited

	read, wrote atomic.Uint64 // bytes, where Handle has it
}

// totals is the bytes from and to the application. Called with the listener's mu held.
func (c *conn) totals() (sent, received uint64) {
	if c.stream != nil {
		return c.stream.Totals()
	}
	return c.read.Load(), c.wrote.Load()
}

func (c *conn) peer() string { return c.RemoteAddr().String() }

// reset closes the connection so that its peer sees an error, not an end.
func (c *conn) reset() {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	c.Close()
}

// handle opens a stream for one connection and lets it be carried.
func (l *Listener) handle(c *conn) {
	if l.cfg.Handle != nil {
		l.handOn(c)
		return
	}
	req := link.OpenRequest{Route: l.cfg.Route, Priority: l.cfg.Priority, Peer: c.peer(), Trace: link.NewTrace()}
	s, early, err := l.open(c, req)
	if err != nil {
		defer l.done(c)
		l.refused(c, req, err)
		return
	}
	l.log.Info("connection opened", append(streamAttrs(s), "early", len(early))...)
	l.carried(c, s)
	relay.StartAfter(s, c.Conn.(relay.Conn), early, func(err error) {
		defer l.done(c)
		l.ended(c, s, err)
	})
}

// open opens a stream, in the queue if need be. early is what the connection has brought meanwhile.
func (l *Listener) open(c *conn, req link.OpenRequest) (s *link.Stream, early []byte, err error) {
	open := func() (err error) {
		s, err = l.cfg.Open(l.ctx, req)
		return err
	}
	var ticket *queue.Ticket
	err = lifecycle.Guard(l.log, "open", func() (err error) {
		if l.cfg.Queue != nil {
			ticket, err = l.cfg.Queue.Enter(l.cfg.Priority, open)
			return err
		}
		return open()
	})
	if ticket != nil {
		early, err = l.wait(c, ticket)
	}
	if err == nil && c.gone != nil { // at the moment when it was its turn
		s.Reset(c.gone)
	}
	return s, early, err
}

// wait lets the connection wait for a tunnel, for as long as its application does.
func (l *Listener) wait(c *conn, ticket *queue.Ticket) (early []byte, err error) {
	l.setWaiting(c, true)
	defer l.setWaiting(c, false)
	ctx, cancel := context.WithCancelCause(l.ctx)
	defer cancel(nil)
	watched := relay.NewEarly(c.Conn.(relay.Conn), l.cfg.EarlyBytes)
	if watched == nil { // never: what is accepted is a socket
		return nil, ticket.Wait(ctx)
	}
	var watch sync.WaitGroup
	watch.Go(func() {
		if c.gone = lifecycle.Guard(l.log, "watch", watched.Watch); c.gone != nil {
			cancel(c.gone)
		}
	})
	err = ticket.Wait(ctx)
	watched.Stop()
	watch.Wait()
	return watched.Kept(), err
}

func (l *Listener) setWaiting(c *conn, waiting bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.waiting = waiting
}

// carried notes the stream of a connection. If connections were cut meanwhile, it is too.
func (l *Listener) carried(c *conn, s *link.Stream) {
	l.mu.Lock()
	c.stream = s
	cut := l.cutBy
	l.mu.Unlock()
	if cut != nil {
		s.Reset(cut)
	}
}

// refused ends a connection that got no stream.
func (l *Listener) refused(c *conn, req link.OpenRequest, err error) {
	c.reset()
	attrs := []any{logging.FieldPeer, req.Peer, logging.FieldTrace, link.TraceID(req.Trace), "waited_ms", time.Since(c.start).Milliseconds()}
	cut := l.cutReason()
	if cut == nil && c.gone != nil && errors.Is(err, errs.Canceled) {
		l.log.Info("connection left the queue", append(append(attrs, logging.FieldReason, "application_gone"), logging.Error(c.gone)...)...)
		return
	}
	l.count.failed.Inc()
	if cut != nil && errors.Is(err, errs.Canceled) {
		err = cut
	}
	l.log.Warn("connection refused", append(append(attrs, logging.FieldReason, refusal(err)), logging.Error(err)...)...)
}

// refusal is the reason code of a refusal.
func refusal(err error) string {
	switch reason := queue.ReasonOf(err); {
	case reason != "":
		return string(reason)
	case errors.Is(err, errs.NoTunnel), errors.Is(err, errs.OpenTimeout):
		return "expired"
	case errors.Is(err, errs.ShuttingDown):
		return "cut"
	}
	return "open_failed"
}

func streamAttrs(s *link.Stream) []any {
	return []any{logging.FieldStream, strconv.FormatUint(uint64(s.ID()), 10), logging.FieldTunnel, s.Tunnel().Name(), logging.FieldPeer, s.Request().Peer,
		logging.FieldTrace, link.TraceID(s.Request().Trace)}
}

func (l *Listener) ended(c *conn, s *link.Stream, err error) {
	if err != nil && l.cfg.Queue != nil {
		l.cfg.Queue.Refused(err)
	}
	sent, received := s.Totals()
	l.log.Log(context.Background(), levelOf(err), "connection ended", append(append(streamAttrs(s), "sent", sent, "received", received,
		"duration_ms", time.Since(c.start).Milliseconds(), "open_us", s.OpenLatency().Microseconds()), l.failure(err)...)...)
}
