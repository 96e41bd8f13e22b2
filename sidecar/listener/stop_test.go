package listener_test

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/sidecar/listener"
	"fairlead/sidecar/queue"
)

// ping makes a round trip.
func ping(c net.Conn) error {
	if _, err := c.Write([]byte("ping")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 4))
	return err
}

func addresses(t *testing.T) []string {
	return []string{"127.0.0.1:0", "unix:" + filepath.Join(t.TempDir(), "s")}
}

// Draining goes on to serve, new connections too, for as long as any listener has some. It ends by itself after that.
func TestDrainServesUntilApplicationsAreQuiet(t *testing.T) {
	s := newSite(t, echo(t), queue.Config{Size: 10})
	s.comeUp()
	a, b := s.listen(link.High, "127.0.0.1:0"), s.listen(link.Low, "127.0.0.1:0")
	open := dial(t, b)
	require.NoError(t, ping(open))
	drained := make(chan error, 1)
	go func() { drained <- listener.Drain(context.Background(), 50*time.Millisecond, a.Listener, b.Listener) }()
	for range 3 { // a has nothing, but b has
		c := dial(t, a)
		require.NoError(t, ping(c))
		c.Close()
		eventually(t, "closed", func() bool { return a.Active() == 0 })
	}
	require.NoError(t, ping(open))
	require.Empty(t, drained)
	open.Close()
	require.NoError(t, <-drained)
	for _, l := range []*served{a, b} {
		_, err := net.Dial("tcp", l.Addr().String())
		require.Error(t, err, "nobody listens any more")
	}
	assert.NotContains(t, s.metrics(), `connections_cut_total{listener="low"} 1`)
}

// When time is up, what is left is cut, with a reason: to the log, to the metrics, to the gateway and to the application.
func TestDrainCutsWhatIsLeft(t *testing.T) {
	ends := make(chan error, 1)
	far := newFarEnd(t, func(st *link.Stream) {
		st.Accept()
		_, _ = io.Copy(st, st)
		ends <- st.Wait()
	})
	s := newSite(t, far.open, queue.Config{Size: 10})
	s.comeUp()
	l := s.listen(link.High, "127.0.0.1:0")
	carried := dial(t, l)
	require.NoError(t, ping(carried))
	s.up.Store(false)
	waiting := dial(t, l)
	s.waits(1)
	ctx, cancel := context.WithCancel(t.Context())
	drained := make(chan error, 1)
	go func() { drained <- l.Drain(ctx, time.Hour) }()
	cancel()
	err := <-drained
	assert.ErrorIs(t, err, errs.Canceled)
	assert.ErrorContains(t, err, "2 connections of listener high were cut")
	for _, c := range []net.Conn{carried, waiting} {
		_, err := c.Read(make([]byte, 1))
		assert.ErrorContains(t, err, "reset")
	}
	assert.ErrorIs(t, <-ends, errs.ShuttingDown, "the gateway does not take it for the application's reset")
	assert.Contains(t, s.metrics(), `fairlead_sidecar_connections_cut_total{listener="high"} 2`)
	assert.Equal(t, 2, strings.Count(s.log.String(), "reason=cut"))
	assert.Equal(t, 2, strings.Count(s.log.String(), "code=FL-S420"))
	st := l.Status()
	assert.Equal(t, []uint64{2, 4, 4}, []uint64{st.Failed, st.Sent, st.Received})
	assert.Zero(t, st.Active)
	assert.Zero(t, s.queue.Len())
}

// An address is free at once when its listener has stopped accepting, though connections are open, and what the old one does
// later does not touch the new one.
func TestAnAddressIsBoundAgainAtOnce(t *testing.T) {
	for _, listen := range addresses(t) {
		s := newSite(t, echo(t), queue.Config{Size: 10})
		s.comeUp()
		old := s.listen(link.High, listen)
		open := dial(t, old)
		require.NoError(t, ping(open))
		old.StopAccepting()
		address := old.Status().Listen
		next := s.listen(link.High, address)
		assert.Equal(t, address, next.Status().Listen)

		require.NoError(t, ping(open), "the old one's connection goes on")
		c := dial(t, next)
		require.NoError(t, ping(c))
		open.Close()
		require.NoError(t, old.Close(t.Context()))
		require.NoError(t, ping(c))
		require.NoError(t, ping(dial(t, next)), "it can still be reached")
		assert.EqualValues(t, 3, next.Status().Total, "one name, one count")
		assert.Equal(t, 2, next.Status().Active)
		assert.Contains(t, s.metrics(), `fairlead_sidecar_connections{listener="high"} 2`)
	}
}

// A file at the path that is somebody else's by now stays.
func TestAnothersSocketFileStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := listener.New(config("unix:"+path, refuse, io.Discard))
	require.NoError(t, err)
	require.NoError(t, os.Remove(path))
	other, err := net.Listen("unix", path)
	require.NoError(t, err)
	defer other.Close()
	require.NoError(t, l.Close(t.Context()))
	c, err := net.Dial("unix", path)
	require.NoError(t, err)
	c.Close()
}

// A listener that is replaced hands its socket over: whoever connects meanwhile is served, by one or the other.
func TestHandOverRefusesNobody(t *testing.T) {
	for _, listen := range addresses(t) {
		s := newSite(t, echo(t), queue.Config{Size: 100})
		s.comeUp()
		l := s.listen(link.High, listen)
		old, addr := []*served{l}, l.Addr()
		stays := dial(t, l)
		require.NoError(t, ping(stays))
		var clients sync.WaitGroup
		var stop atomic.Bool
		var calls atomic.Int64
		for range 4 {
			clients.Go(func() {
				for !stop.Load() {
					c, err := net.Dial(addr.Network(), addr.String())
					if assert.NoError(t, err) {
						assert.NoError(t, ping(c))
						c.Close()
					}
					calls.Add(1)
				}
			})
		}
		for i := range 20 {
			eventually(t, "calls", func() bool { return calls.Load() > int64(5*i) })
			cfg := s.config(link.High, "ignored")
			cfg.Route = "other"
			next, err := l.HandOver(cfg)
			require.NoError(t, err)
			l = s.serve(next)
			old = append(old, l)
		}
		stop.Store(true)
		clients.Wait()
		assert.Equal(t, "other", l.Status().Route)
		require.NoError(t, ping(stays))
		assert.Equal(t, 1, old[0].Active())
		_, err := old[0].HandOver(s.config(link.High, ""))
		assert.ErrorIs(t, err, errs.ListenFailed, "it has nothing to hand over")
		stays.Close()
		for _, o := range old[:len(old)-1] {
			require.NoError(t, o.Close(t.Context()))
		}
		last := dial(t, l)
		require.NoError(t, ping(last))
		last.Close()
		require.NoError(t, l.Close(t.Context()))
		_, err = net.Dial(addr.Network(), addr.String())
		assert.Error(t, err)
	}
}

// A listener that was never served can be handed over and closed.
func TestStoppingWithoutServing(t *testing.T) {
	l, err := listener.New(config("127.0.0.1:0", refuse, io.Discard))
	require.NoError(t, err)
	next, err := l.HandOver(config("", refuse, io.Discard))
	require.NoError(t, err)
	require.NoError(t, l.Serve(), "it returns at once")
	require.NoError(t, l.Close(t.Context()))
	c, err := net.Dial("tcp", next.Addr().String())
	require.NoError(t, err, "the socket lives")
	c.Close()
	require.NoError(t, next.Drain(t.Context(), 0))
	require.NoError(t, next.Serve())
}
