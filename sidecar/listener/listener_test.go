package listener_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/fasthttp/websocket"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/valyala/fasthttp"
	"go.uber.org/goleak"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/testbed"
	"fairlead/shared/ws"
	"fairlead/sidecar/listener"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, // fasthttp keeps one for the Date header, and one for a while after the end of a server
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"))
}

type opener = func(ctx context.Context, req link.OpenRequest) (*link.Stream, error)

type served struct {
	*listener.Listener
	log  *testbed.LogBuffer
	done chan error
}

func config(listen string, open opener, w io.Writer) listener.Config {
	return listener.Config{Name: "git", Listen: listen, Route: "git", Priority: link.High, Open: open, Logger: slog.New(slog.NewTextHandler(w, nil)), Metrics: metrics.NewSet()}
}

func serve(t *testing.T, listen string, open opener) *served {
	t.Helper()
	log := &testbed.LogBuffer{}
	l, err := listener.New(config(listen, open, log))
	require.NoError(t, err)
	s := &served{l, log, make(chan error, 1)}
	go func() { s.done <- l.Serve() }()
	t.Cleanup(func() {
		over, cancel := context.WithCancel(context.Background())
		cancel()
		_ = l.Close(over)
		assert.NoError(t, <-s.done)
	})
	return s
}

func dial(t *testing.T, l *served) net.Conn {
	t.Helper()
	c, err := net.Dial(l.Addr().Network(), l.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

// outcome connects, and returns how the connection ends. A reset can come before the client knows that it is connected.
func outcome(l *served) error {
	c, err := net.Dial(l.Addr().Network(), l.Addr().String())
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Read(make([]byte, 1))
	return err
}

func refuse(context.Context, link.OpenRequest) (*link.Stream, error) {
	return nil, errs.New(errs.QueueFull, "no room")
}

func hold(ctx context.Context, _ link.OpenRequest) (*link.Stream, error) {
	<-ctx.Done()
	return nil, errs.Wrap(errs.Canceled, ctx.Err(), "the listener closed")
}

// echo makes a tunnel whose far end returns what it gets, and ends its direction after the near one has.
func echo(t *testing.T) opener {
	t.Helper()
	return newFarEnd(t, func(s *link.Stream) {
		s.Accept()
		if _, err := io.Copy(s, s); err == nil {
			_ = s.CloseWrite()
		}
	}).open
}

// farEnd is a gateway with one tunnel to it.
type farEnd struct {
	accept func(*link.Stream)
	tunnel *link.Tunnel
}

func newFarEnd(t *testing.T, accept func(*link.Stream)) *farEnd {
	t.Helper()
	far := &farEnd{accept: accept}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var wg sync.WaitGroup
	up := websocket.FastHTTPUpgrader{WriteBufferPool: ws.WriteBuffers, WriteBufferSize: ws.WriteBufferSize, Subprotocols: []string{link.Subprotocol}}
	srv := &fasthttp.Server{KeepHijackedConns: true, CloseOnShutdown: true, Handler: func(ctx *fasthttp.RequestCtx) {
		wg.Add(1)
		_ = up.Upgrade(ctx, func(c *websocket.Conn) {
			defer wg.Done()
			defer c.Close()
			far.carry(c)
		})
	}}
	wg.Go(func() { _ = srv.Serve(&ws.Listener{Listener: tcp}) })
	conn, err := (&ws.Dialer{MaxMessage: 1 << 20}).Dial(t.Context(), "ws://"+tcp.Addr().String(), http.Header{}, link.Subprotocol)
	require.NoError(t, err)
	tunnel, lane, err := link.Connect(t.Context(), conn, link.Config{})
	require.NoError(t, err)
	far.tunnel = tunnel
	wg.Go(func() { _ = lane.Run() })
	t.Cleanup(func() {
		tunnel.Close(nil)
		tunnel.Wait()
		_ = srv.Shutdown()
		wg.Wait()
	})
	return far
}

func (f *farEnd) open(_ context.Context, req link.OpenRequest) (*link.Stream, error) {
	return f.tunnel.Open(req)
}

func (f *farEnd) carry(c *websocket.Conn) {
	conn, err := ws.New(c, 1<<20)
	if err != nil {
		return
	}
	hs, err := link.Greet(context.Background(), conn)
	if err != nil {
		return
	}
	tunnel, lane, err := hs.Accept(link.Config{Accept: f.accept})
	if err != nil {
		return
	}
	_ = lane.Run()
	tunnel.Close(nil) // a farewell that came too late would leave it waiting for a resume
	tunnel.Wait()
}

func TestCarriesBothDirectionsAndTheirEnds(t *testing.T) {
	for _, listen := range []string{"127.0.0.1:0", "unix:" + filepath.Join(t.TempDir(), "git.sock")} {
		l := serve(t, listen, echo(t))
		c := dial(t, l)
		sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<14)
		wrote := make(chan error, 1)
		go func() {
			_, err := c.Write(sent)
			if err == nil {
				err = c.(interface{ CloseWrite() error }).CloseWrite()
			}
			wrote <- err
		}()
		got, err := io.ReadAll(c) // ends, because the far end ends after ours
		require.NoError(t, err)
		require.NoError(t, <-wrote)
		assert.True(t, bytes.Equal(sent, got))
		require.Eventually(t, func() bool { return l.Status().Active == 0 }, 5*time.Second, time.Millisecond)
		st := l.Status()
		assert.Equal(t, listener.Status{Name: "git", Listen: st.Listen, Route: "git", Priority: "high", Delivery: "stream", Total: 1, Sent: 1 << 18, Received: 1 << 18}, st)
		assert.Contains(t, l.log.String(), "connection opened")
		assert.Contains(t, l.log.String(), "sent=262144 received=262144")
	}
}

// Verifies: R5.4
func TestARefusalIsAReset(t *testing.T) {
	l := serve(t, "127.0.0.1:0", refuse)
	assert.ErrorIs(t, outcome(l), syscall.ECONNRESET, "no end that looks orderly")
	require.Eventually(t, func() bool { return l.Status().Active == 0 }, 5*time.Second, time.Millisecond)
	assert.Contains(t, l.log.String(), "code=FL-S414")
	assert.Contains(t, l.log.String(), "no room")
}

func TestAPanicEndsOneConnection(t *testing.T) {
	l := serve(t, "127.0.0.1:0", func(context.Context, link.OpenRequest) (*link.Stream, error) { panic("boom") })
	for range 2 {
		assert.ErrorIs(t, outcome(l), syscall.ECONNRESET)
	}
	assert.Contains(t, l.log.String(), "FL-U901")
}

func TestTheRequestNamesRoutePriorityAndPeer(t *testing.T) {
	requests := make(chan link.OpenRequest, 1)
	l := serve(t, "127.0.0.1:0", func(ctx context.Context, req link.OpenRequest) (*link.Stream, error) {
		requests <- req
		return hold(ctx, req)
	})
	c := dial(t, l)
	req := <-requests
	assert.Equal(t, "git", req.Route)
	assert.Equal(t, link.High, req.Priority)
	assert.Equal(t, c.LocalAddr().String(), req.Peer)
}

func TestAddressInUse(t *testing.T) {
	l := serve(t, "127.0.0.1:0", refuse)
	_, err := listener.New(config(l.Addr().String(), refuse, io.Discard))
	assert.ErrorIs(t, err, errs.ListenFailed)
	assert.ErrorContains(t, err, "listener git cannot listen on "+l.Addr().String())
}

func TestUnixSockets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "git.sock")
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	_, err = listener.New(config("unix:"+path, refuse, io.Discard))
	assert.ErrorIs(t, err, errs.ListenFailed, "somebody listens there")
	assert.ErrorContains(t, err, "another process listens")

	stale.SetUnlinkOnClose(false)
	stale.Close()
	l := serve(t, "unix:"+path, refuse)
	assert.Equal(t, "unix:"+path, l.Status().Listen)
	require.NoError(t, l.Close(t.Context()))
	_, err = os.Stat(path)
	assert.ErrorIs(t, err, os.ErrNotExist, "nothing is left behind")

	require.NoError(t, os.WriteFile(path, []byte("precious"), 0o600))
	_, err = listener.New(config("unix:"+path, refuse, io.Discard))
	assert.ErrorIs(t, err, errs.ListenFailed)
	kept, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, "precious", string(kept), "a file is not removed")
	_, err = listener.New(config("unix:"+path+"/x", refuse, io.Discard))
	assert.ErrorIs(t, err, errs.ListenFailed)
}

func TestCloseWaitsForConnections(t *testing.T) {
	l := serve(t, "127.0.0.1:0", echo(t))
	c := dial(t, l)
	_, err := c.Write([]byte("hello"))
	require.NoError(t, err)
	_, err = io.ReadFull(c, make([]byte, 5))
	require.NoError(t, err)
	closed := make(chan error, 1)
	go func() { closed <- l.Close(context.Background()) }()
	require.Eventually(t, func() bool {
		other, err := net.Dial("tcp", l.Addr().String())
		if err == nil {
			other.Close()
		}
		return err != nil
	}, 5*time.Second, time.Millisecond, "nobody new")
	_, err = c.Write([]byte("still"))
	require.NoError(t, err)
	_, err = io.ReadFull(c, make([]byte, 5))
	require.NoError(t, err, "the open connection goes on")
	select {
	case err := <-closed:
		t.Fatal("closed with a connection open: ", err)
	default:
	}
	c.Close()
	assert.NoError(t, <-closed)
	assert.NoError(t, l.Close(t.Context()), "again")
}

func TestCloseCutsWhatIsLeft(t *testing.T) {
	for name, open := range map[string]opener{"carried": echo(t), "waiting for a tunnel": hold} {
		l := serve(t, "127.0.0.1:0", open)
		c := dial(t, l)
		require.Eventually(t, func() bool { return l.Status().Active == 1 }, 5*time.Second, time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		err := l.Close(ctx)
		cancel()
		assert.ErrorIs(t, err, errs.Canceled, name)
		assert.ErrorContains(t, err, "1 connections of listener git were cut", name)
		_, err = c.Read(make([]byte, 1))
		assert.Error(t, err, name)
		assert.NotErrorIs(t, err, os.ErrDeadlineExceeded)
		assert.Zero(t, l.Status().Active, name)
	}
}

func TestAConnectionThatBreaksIsCounted(t *testing.T) {
	l := serve(t, "127.0.0.1:0", echo(t))
	c := dial(t, l)
	_, err := c.Write([]byte("x"))
	require.NoError(t, err)
	_, err = io.ReadFull(c, make([]byte, 1))
	require.NoError(t, err)
	require.NoError(t, c.(*net.TCPConn).SetLinger(0))
	c.Close()
	require.Eventually(t, func() bool { return l.Status().Active == 0 }, 5*time.Second, time.Millisecond)
	assert.Contains(t, l.log.String(), "code=FL-N111")
}
