package spool

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
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
	"fairlead/shared/logging"
	"fairlead/shared/testbed"
	"fairlead/shared/ws"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		os.Exit(child(dir))
	}
	goleak.VerifyTestMain(m, // fasthttp keeps one for the Date header, and one for a while after the end of a server
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"))
}

// backend is what is behind the gateway: it takes streams over a real tunnel, and keeps what they brought.
type backend struct {
	t     testing.TB
	l     net.Listener
	srv   *fasthttp.Server
	lanes sync.WaitGroup
	mu    sync.Mutex
	conns []*arrival
	*client
	serve  func(s *link.Stream, a *arrival) error // nil: take everything, then end
	refuse func(req link.OpenRequest) error
}

// client is the sidecar's end: it makes a tunnel whenever there is none.
type client struct {
	url    string
	mu     sync.Mutex
	tunnel *link.Tunnel
	lost   bool // no tunnel for now
	opens  int
	lanes  sync.WaitGroup
}

// arrival is what one stream has brought.
type arrival struct {
	req    link.OpenRequest
	stream uint32
	mu     sync.Mutex
	data   []byte
	done   bool // ended in order
}

func (a *arrival) bytes() []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.data)
}

func (a *arrival) len() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.data)
}

func (a *arrival) ended() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.done
}

func (a *arrival) add(p []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.data = append(a.data, p...)
}

// takeAll reads to the end and ends the other side, as a log receiver does.
func takeAll(s *link.Stream, a *arrival) error {
	buf := make([]byte, 64<<10)
	for {
		n, err := s.Read(buf)
		a.add(buf[:n])
		if err == io.EOF {
			return s.CloseWrite()
		}
		if err != nil {
			return err
		}
	}
}

func newBackend(t testing.TB) *backend {
	b := &backend{t: t}
	var err error
	b.l, err = net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	b.client = &client{url: "ws://" + b.l.Addr().String() + "/v1/tunnel"}
	up := websocket.FastHTTPUpgrader{ReadBufferSize: ws.ReadBufferSize, WriteBufferSize: ws.WriteBufferSize, WriteBufferPool: ws.WriteBuffers, Subprotocols: []string{link.Subprotocol}}
	b.srv = &fasthttp.Server{KeepHijackedConns: true, CloseOnShutdown: true, Handler: func(ctx *fasthttp.RequestCtx) {
		b.lanes.Add(1)
		if up.Upgrade(ctx, func(c *websocket.Conn) {
			defer b.lanes.Done()
			defer c.Close()
			b.lane(c)
		}) != nil {
			b.lanes.Done()
		}
	}}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = b.srv.Serve(&ws.Listener{Listener: b.l})
	}()
	t.Cleanup(func() {
		b.lose()
		_ = b.srv.Shutdown()
		b.l.Close() // the server may not have begun
		<-served
		b.lanes.Wait()
		b.client.lanes.Wait()
	})
	return b
}

func (b *backend) lane(c *websocket.Conn) {
	conn, err := ws.New(c, 1<<20)
	if err != nil {
		return
	}
	hs, err := link.Greet(context.Background(), conn)
	if err != nil {
		return
	}
	t, lane, err := hs.Accept(link.Config{Accept: b.stream})
	if err != nil {
		return
	}
	_ = lane.Run()
	t.Close(nil)
	t.Wait()
}

func (b *backend) with(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
}

func (b *backend) stream(s *link.Stream) {
	var refuse func(link.OpenRequest) error
	serve := takeAll
	a := &arrival{req: s.Request(), stream: s.ID()}
	b.with(func() {
		refuse = b.refuse
		if b.serve != nil {
			serve = b.serve
		}
	})
	if refuse != nil {
		if err := refuse(a.req); err != nil {
			s.Reset(err)
			return
		}
	}
	b.with(func() { b.conns = append(b.conns, a) })
	s.Accept()
	err := serve(s, a)
	a.mu.Lock()
	a.done = err == nil // it has read the end: what the sidecar learns of that is another matter
	a.mu.Unlock()
	if err != nil {
		s.Reset(errs.Wrap(errs.BackendBroken, err, "test"))
	}
	_ = s.Wait()
}

// connect makes the tunnel, if there is none.
func (c *client) connect() (*link.Tunnel, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.opens++; c.lost {
		return nil, errs.New(errs.NoTunnel, "lost")
	}
	if c.tunnel != nil && c.tunnel.Err() == nil {
		return c.tunnel, nil
	}
	d := &ws.Dialer{Timeout: 10 * time.Second, MaxMessage: 1 << 20}
	conn, err := d.Dial(context.Background(), c.url, nil, link.Subprotocol)
	if err != nil {
		return nil, errs.Wrap(errs.NoTunnel, err, "dial")
	}
	t, lane, err := link.Connect(context.Background(), conn, link.Config{})
	if err != nil {
		conn.Abort()
		return nil, errs.Wrap(errs.NoTunnel, err, "handshake")
	}
	c.tunnel = t
	c.lanes.Go(func() {
		_ = lane.Run()
		t.Close(errs.New(errs.TunnelLost, "the lane broke"))
		t.Wait()
	})
	return t, nil
}

// open is Config.Stream.
func (c *client) open(_ context.Context, req link.OpenRequest) (*link.Stream, error) {
	t, err := c.connect()
	if err != nil {
		return nil, err
	}
	return t.Open(req)
}

func (c *client) opened() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.opens
}

// lose ends the tunnel, and keeps it from coming back until find.
func (c *client) lose() {
	c.mu.Lock()
	c.lost = true
	t := c.tunnel
	c.mu.Unlock()
	if t != nil {
		t.Close(errs.New(errs.TunnelLost, "test"))
	}
}

func (c *client) find(s *Spool) {
	c.mu.Lock()
	c.lost = false
	c.mu.Unlock()
	s.Kick()
}

func (b *backend) arrivals() []*arrival {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.conns)
}

// hashes are those of everything that arrived in order to its end.
func (b *backend) hashes() map[[32]byte]int {
	all := map[[32]byte]int{}
	for _, a := range b.arrivals() {
		if a.ended() {
			all[sha256.Sum256(a.bytes())]++
		}
	}
	return all
}

// rig is a spool and its backend.
type rig struct {
	*Spool
	t   testing.TB
	b   *backend
	cfg Config
	log *testbed.LogBuffer
	run sync.WaitGroup
	end context.CancelFunc
}

func newRig(t testing.TB, change func(*Config)) *rig {
	r := &rig{t: t, b: newBackend(t), log: &testbed.LogBuffer{}}
	log, _, err := logging.New(logging.Config{Level: "debug", Format: "json", Writer: r.log})
	require.NoError(t, err)
	r.cfg = Config{Dir: filepath.Join(t.TempDir(), "spool"), Fsync: FsyncNever, Interval: 20 * time.Millisecond, Stream: r.b.open, Logger: log,
		RetryBase: 2 * time.Millisecond, RetryCap: 20 * time.Millisecond, RetryDenied: 40 * time.Millisecond}
	if change != nil {
		change(&r.cfg)
	}
	r.open()
	t.Cleanup(r.stop)
	return r
}

// open opens the directory, without delivering.
func (r *rig) open() {
	r.t.Helper()
	r.cfg.Metrics = metrics.NewSet()
	s, err := New(r.cfg)
	require.NoError(r.t, err)
	r.Spool = s
}

// start delivers.
func (r *rig) start() *rig {
	ctx, cancel := context.WithCancel(context.Background())
	r.end = cancel
	s := r.Spool
	r.run.Go(func() { assert.NoError(r.t, s.Run(ctx)) })
	return r
}

func (r *rig) stop() {
	if r.end != nil {
		r.end()
		r.end = nil
	}
	assert.NoError(r.t, r.Close(context.Background()))
	r.run.Wait()
}

func (r *rig) eventually(what string, ok func() bool) {
	r.t.Helper()
	if !assert.Eventually(r.t, ok, 20*time.Second, 2*time.Millisecond, what) {
		r.t.Fatalf("not: %s\nstatus %+v\n%.2000s\n%.9000s", what, r.Status(), fmt.Sprintf("%+v", r.List()), r.log.String())
	}
}

// sender is an application's end of a connection that is spooled.
type sender struct {
	net.Conn
	done chan error
	rec  Receipt
}

var origin = Origin{Listener: "ship", Route: "logs", Priority: link.Normal, Peer: "127.0.0.1:1", Trace: link.NewTrace()}

// dial makes a real TCP connection that the spool receives.
func (r *rig) dial(from Origin) *sender {
	r.t.Helper()
	return r.dialOver("tcp", "127.0.0.1:0", from)
}

func (r *rig) dialOver(network, addr string, from Origin) *sender {
	r.t.Helper()
	l, err := net.Listen(network, addr)
	require.NoError(r.t, err)
	defer l.Close()
	c, err := net.Dial(network, l.Addr().String())
	require.NoError(r.t, err)
	far, err := l.Accept()
	require.NoError(r.t, err)
	if tcp, ok := far.(*net.TCPConn); ok { // so that pushing back shows before megabytes are on the way
		require.NoError(r.t, tcp.SetReadBuffer(64<<10))
		require.NoError(r.t, c.(*net.TCPConn).SetWriteBuffer(64<<10))
	}
	s := &sender{Conn: c, done: make(chan error, 1)}
	sp := r.Spool
	go func() {
		var err error
		s.rec, err = sp.Accept(context.Background(), far, from, nil)
		s.done <- err
	}()
	r.t.Cleanup(func() { c.Close() })
	return s
}

// finish ends the sending side and waits for the acknowledgement: the end of the other one.
func (s *sender) finish() error {
	if err := s.Conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		return err
	}
	_, err := s.Read(make([]byte, 1))
	if err == io.EOF {
		return nil
	}
	return err
}

// send spools data as one connection, and returns when it is acknowledged.
func (r *rig) send(from Origin, data []byte) Receipt {
	r.t.Helper()
	s := r.dial(from)
	_, err := s.Write(data)
	require.NoError(r.t, err)
	require.NoError(r.t, s.finish())
	require.NoError(r.t, <-s.done)
	return s.rec
}

// content is n bytes that no compression or accident makes equal.
func content(seed uint64, n int) []byte {
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	b := make([]byte, n)
	_, _ = r.Read(b)
	return b
}

// lines is about n bytes of numbered lines.
func lines(n int) []byte {
	var b bytes.Buffer
	for i := 0; b.Len() < n; i++ {
		b.WriteString("line " + strconv.Itoa(i) + "\n")
	}
	return b.Bytes()
}

func (r *rig) files() []string {
	names, err := filepath.Glob(filepath.Join(r.cfg.Dir, "*.*"))
	require.NoError(r.t, err)
	return names
}

func contextWithTimeout(t testing.TB, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), d)
}

// kept waits until n bytes of some connection are on disk.
func (r *rig) kept(n uint64) {
	r.t.Helper()
	r.eventually("it is kept", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, e := range r.byID {
			if e.end == n {
				return true
			}
		}
		return false
	})
}
