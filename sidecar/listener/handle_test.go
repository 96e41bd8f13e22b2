package listener_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/sidecar/listener"
	"fairlead/sidecar/queue"
)

func (s *site) handled(handle func(context.Context, net.Conn, func(int)) error) *served {
	cfg := s.config(link.Low, "127.0.0.1:0")
	cfg.Open, cfg.Handle = nil, handle
	l, err := listener.New(cfg)
	require.NoError(s.t, err)
	return s.serve(l)
}

// A handler has a connection to itself: bytes are counted, and its end is closed for it, in order.
func TestHandle(t *testing.T) {
	got := make(chan string, 1)
	s := newSite(t, nil, queue.Config{Size: 1})
	l := s.handled(func(_ context.Context, c net.Conn, took func(int)) error {
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			return err
		}
		line := make([]byte, 10)
		if _, err := io.ReadFull(c, line); err != nil {
			return err
		}
		took(len(line))
		rest, err := io.ReadAll(c)
		got <- string(line) + string(rest)
		return err
	})
	c := dial(t, l)
	answer, err := io.ReadAll(c)
	require.NoError(t, err)
	assert.Empty(t, answer)
	_, err = c.Write([]byte("a log line"))
	require.NoError(t, err)
	eventually(t, "the bytes are counted while it is open", func() bool { return l.Status().Sent == 10 })
	assert.Equal(t, 1, l.Active())
	require.NoError(t, c.(*net.TCPConn).CloseWrite())
	assert.Equal(t, "a log line", <-got)
	eventually(t, "over", func() bool { return l.Active() == 0 })
	st := l.Status()
	assert.Equal(t, listener.Status{Name: "low", Listen: st.Listen, Route: "git", Priority: "low", Delivery: "spool", Total: 1, Sent: 10}, st)
	assert.Contains(t, s.log.String(), "sent=10 received=0")
}

// An error or a fault of a handler is one connection's, and its application sees that it failed.
func TestHandlersThatFail(t *testing.T) {
	for code, handle := range map[string]func(context.Context, net.Conn, func(int)) error{
		"FL-S414": func(context.Context, net.Conn, func(int)) error { return errs.New(errs.QueueFull, "no room") },
		"FL-U901": func(context.Context, net.Conn, func(int)) error { panic("boom") },
		"FL-U900": func(context.Context, net.Conn, func(int)) error { return errors.New("whatever") },
	} {
		s := newSite(t, nil, queue.Config{Size: 1})
		l := s.handled(handle)
		for range 2 {
			assert.ErrorIs(t, outcome(l), syscall.ECONNRESET)
		}
		eventually(t, "counted", func() bool { return l.Status().Failed == 2 && l.Active() == 0 })
		assert.Equal(t, 2, strings.Count(s.log.String(), "msg=\"connection ended\""))
		assert.Contains(t, s.log.String(), "code="+code)
	}
}

// Handlers are cut as streams are: their context ends, and so do their reads.
func TestHandlersAreCut(t *testing.T) {
	s := newSite(t, nil, queue.Config{Size: 1})
	causes := make(chan error, 1)
	l := s.handled(func(ctx context.Context, c net.Conn, _ func(int)) error {
		_, err := io.ReadAll(c)
		<-ctx.Done()
		causes <- context.Cause(ctx)
		return err
	})
	c := dial(t, l)
	eventually(t, "open", func() bool { return l.Active() == 1 })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	assert.ErrorIs(t, l.Close(ctx), errs.Canceled)
	assert.ErrorIs(t, <-causes, errs.ShuttingDown)
	_, err := c.Read(make([]byte, 1))
	assert.ErrorIs(t, err, syscall.ECONNRESET)
	assert.Contains(t, s.log.String(), "reason=cut")
	assert.Contains(t, s.log.String(), "code=FL-S420")
	assert.Contains(t, s.metrics(), `fairlead_sidecar_connections_cut_total{listener="low"} 1`)
}
