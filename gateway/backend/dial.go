package backend

import (
	"context"
	"errors"
	"net"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// passthrough connects to the backend's own port.
func (s *Set) passthrough(ctx context.Context, b *remote) (Conn, error) {
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return nil, errs.New(errs.ShuttingDown, "the gateway is shutting down")
	}
	var conn Conn
	err := s.guarded(ctx, b, func(ctx context.Context) error {
		dial, cancel := context.WithTimeout(ctx, b.DialTimeout)
		defer cancel()
		raw, err := s.connect(dial, ctx, b)
		if err != nil {
			return err
		}
		var ok bool
		if conn, ok = raw.(Conn); !ok {
			_ = raw.Close()
			return errs.New(errs.Internal, "the connection to backend %q cannot be half-closed", b.Name)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// guarded runs a dial through the breaker, counts it and times it.
func (s *Set) guarded(ctx context.Context, b *remote, dial func(context.Context) error) error {
	timed := func(ctx context.Context) error {
		start := time.Now()
		err := dial(ctx)
		took := time.Since(start)
		b.counts.dialed(took, err)
		if took > s.slow {
			b.counts.slow.Inc()
			s.log.Warn("a dial was slow", logging.FieldComponent, "backend", logging.FieldBackend, b.Name, logging.FieldPeer, b.Address,
				"took_ms", took.Milliseconds(), logging.FieldCode, codeText(err))
		}
		return err
	}
	if s.breaker == nil {
		return timed(ctx)
	}
	return s.breaker.Do(ctx, b.Name, timed)
}

func codeText(err error) string {
	if err == nil {
		return "ok"
	}
	return errs.CodeOf(err).String()
}

// connect makes the TCP connection. dial bounds it, caller is who asked: when the caller's own context ended, the
// backend is not to blame.
func (s *Set) connect(dial, caller context.Context, b *remote) (net.Conn, error) {
	conn, err := s.dialRaw(dial, "tcp", b.Address)
	if err == nil {
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetNoDelay(true) // fails only on a connection that is already gone, as the next use will tell
		}
		return conn, nil
	}
	switch {
	case caller.Err() != nil:
		return nil, s.ended(caller, b, "TCP dial")
	case dial.Err() != nil || timedOut(err):
		return nil, errs.New(errs.BackendTimeout, "backend %q (%s) did not answer the TCP dial in %s", b.Name, b.Address, b.DialTimeout)
	}
	return nil, errs.Wrap(errs.BackendUnreachable, err, "backend %q (%s) cannot be reached (phase: TCP dial)", b.Name, b.Address)
}

func timedOut(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

// ended says why a context ended a dial in a phase.
func (s *Set) ended(ctx context.Context, b *remote, phase string) error {
	switch {
	case s.base.Err() != nil:
		return errs.New(errs.ShuttingDown, "the gateway is shutting down")
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return errs.Wrap(errs.OpenTimeout, ctx.Err(), "there was no time left for backend %q (phase: %s)", b.Name, phase)
	}
	return errs.Wrap(errs.Canceled, ctx.Err(), "the dial of backend %q was canceled (phase: %s)", b.Name, phase)
}
