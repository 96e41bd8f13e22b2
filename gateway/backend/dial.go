package backend

import (
	"context"
	"errors"
	"net"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// passthrough connects to the backend's own port. Whether a backend that accepts also serves is not seen here, since the
// bytes are the application's: to the breaker it is well.
func (s *Set) passthrough(ctx context.Context, b *remote, tenant string) (Conn, error) {
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return nil, errs.New(errs.ShuttingDown, "the gateway is shutting down")
	}
	var conn Conn
	err := s.guarded(ctx, b, b.dials, tenant, func(ctx context.Context) error {
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

// guarded runs a dial when it is the tenant's turn and the breaker lets it, counts it and times it. The breaker comes
// first: what it refuses does not wait, nor does its probe.
func (s *Set) guarded(ctx context.Context, b *remote, q *turns, tenant string, dial func(context.Context) error) error {
	timed := func(ctx context.Context) error { return s.timed(ctx, b, tenant, dial) }
	for {
		if s.breaker != nil {
			if done, err := s.breaker.Try(ctx, b.Name, timed); done {
				return err
			}
		}
		if turn, err := q.enter(ctx, tenant); err != nil {
			return err
		} else if turn {
			return s.inTurn(ctx, b, q, tenant, timed)
		}
		// The circuit opened while we waited.
	}
}

// inTurn dials with a turn, and gives it back.
func (s *Set) inTurn(ctx context.Context, b *remote, q *turns, tenant string, dial func(context.Context) error) error {
	defer q.leave(tenant)
	if s.breaker == nil {
		return dial(ctx)
	}
	return s.breaker.Do(ctx, b.Name, dial)
}

func (s *Set) timed(ctx context.Context, b *remote, tenant string, dial func(context.Context) error) error {
	start := time.Now()
	err := dial(ctx)
	took := time.Since(start)
	b.counts.dialed(took, err)
	if took > s.slow {
		b.counts.slow.Inc()
		s.log.Warn("a dial was slow", append(append(fields(b, tenant), "took_ms", took.Milliseconds(), logging.FieldCode, codeText(err)),
			waitsOf(ctx).Fields()...)...)
	}
	return err
}

// login makes an SSH connection for a pool. Few at a time have not logged in yet: sshd drops connections at random when
// there are too many of those.
func (s *Set) login(b *remote, e errand) (ses *session, waits *Waits, err error) {
	ctx, waits := WithWaits(s.base)
	err = s.guarded(ctx, b, b.logins, e.who.Tenant, func(ctx context.Context) (err error) {
		start := time.Now()
		ses, err = s.dialSSH(ctx, b, e)
		waits.Handshake = time.Since(start) - waits.TCP
		return err
	})
	if err == nil {
		ses.waits = waits
	}
	return ses, waits, err
}

// fresh is where the time of making the connection went, for those who waited for it; nil for those who come later.
func (l *link) fresh() *Waits {
	if l.opened == 0 {
		return l.waits
	}
	return nil
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
	start := time.Now()
	conn, err := s.dialRaw(dial, "tcp", b.Address)
	waitsOf(dial).connected(time.Since(start))
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
