package relay_test

import (
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/relay"
	"fairlead/shared/testbed/farend"
)

// tunnel is a sidecar's tunnel over a real WebSocket, whose gateway serves streams with accept.
func tunnel(t *testing.T, accept func(*link.Stream)) *link.Tunnel {
	t.Helper()
	return farend.New(t, func(string) link.Config { return link.Config{Accept: accept} }).Connect(t, "")
}

// path is an application's way to a backend: socket, relay, stream, relay, socket.
type path struct {
	t        *testing.T
	tun      *link.Tunnel
	local    net.Listener // of the sidecar
	backends net.Listener
	ended    chan error // of the sidecar's relays
	served   chan error // of the gateway's
	paced    chan int64 // what was paid for on a paced connection that was closed
}

// pacedConn pays for what is read from the socket beneath, and says how much that was.
type pacedConn struct {
	relay.Conn
	paid   atomic.Int64
	once   sync.Once
	closed chan<- int64
}

const piece = 10_000

func (c *pacedConn) Unpaced() relay.Conn { return c.Conn }
func (c *pacedConn) Piece() int          { return piece }
func (c *pacedConn) Pay(n int) error {
	if n > piece {
		return errors.New("too much at once")
	}
	c.paid.Add(int64(n))
	return nil
}

func (c *pacedConn) Read([]byte) (int, error) { panic("the socket is to be read") }

func (c *pacedConn) Close() error {
	c.once.Do(func() { c.closed <- c.paid.Load() })
	return c.Conn.Close()
}

func newPath(t *testing.T, network string) *path {
	pace := network == "paced"
	if pace {
		network = "tcp"
	}
	listen := func(name string) net.Listener {
		addr := "127.0.0.1:0"
		if network == "unix" {
			addr = filepath.Join(t.TempDir(), name)
		}
		l, err := net.Listen(network, addr)
		require.NoError(t, err)
		t.Cleanup(func() { l.Close() })
		return l
	}
	p := &path{t: t, local: listen("app"), backends: listen("backend"), ended: make(chan error, 10), served: make(chan error, 10), paced: make(chan int64, 10)}
	p.tun = tunnel(t, func(s *link.Stream) {
		c, err := net.Dial(network, p.backends.Addr().String())
		if err != nil {
			s.Reset(errs.Wrap(errs.BackendUnreachable, err, "backend"))
			return
		}
		s.Accept()
		conn := c.(relay.Conn)
		if pace {
			conn = &pacedConn{Conn: conn, closed: p.paced}
		}
		relay.Start(s, conn, func(err error) { p.served <- err })
	})
	return p
}

// half is a socket that can be half-closed.
type half interface {
	net.Conn
	CloseWrite() error
}

// connect makes one connection and returns both of its outer ends.
func (p *path) connect() (app, backend half) {
	c, err := net.Dial(p.local.Addr().Network(), p.local.Addr().String())
	require.NoError(p.t, err)
	accepted, err := p.local.Accept()
	require.NoError(p.t, err)
	s, err := p.tun.Open(link.OpenRequest{Route: "git"})
	require.NoError(p.t, err)
	relay.Start(s, accepted.(relay.Conn), func(err error) { p.ended <- err })
	b, err := p.backends.Accept()
	require.NoError(p.t, err)
	p.t.Cleanup(func() { c.Close(); b.Close() })
	return c.(half), b.(half)
}

const size = 5 << 20 // 20 windows

// produce sends random bytes, ends the direction and returns their hash.
func produce(c half, seed byte) (sum [32]byte, err error) {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	_, err = c.Write(b)
	return sha256.Sum256(b), errors.Join(err, c.CloseWrite())
}

func consume(c io.Reader) (sum [32]byte, err error) {
	b, err := io.ReadAll(c)
	return sha256.Sum256(b), err
}

// Each direction ends on its own, whichever is first, and the other goes on for as long as it wants.
//
// Verifies: R1.7, R10.6
func TestHalfCloseIsKeptInBothDirections(t *testing.T) {
	for _, network := range []string{"tcp", "unix", "paced"} {
		for _, first := range []string{"application", "backend"} {
			t.Run(network+" "+first, func(t *testing.T) {
				p := newPath(t, network)
				a, b := p.connect()
				if first == "backend" {
					a, b = b, a
				}
				type sent struct {
					sum [32]byte
					err error
				}
				done := make(chan sent, 1)
				go func() {
					sum, err := produce(a, 1)
					done <- sent{sum, err}
				}()
				got, err := consume(b) // until the end of this direction
				require.NoError(t, err)
				s := <-done
				require.NoError(t, s.err)
				require.Equal(t, s.sum, got)
				go func() {
					sum, err := produce(b, 2)
					done <- sent{sum, err}
				}()
				got, err = consume(a)
				require.NoError(t, err)
				s = <-done
				require.NoError(t, s.err)
				require.Equal(t, s.sum, got)
				require.NoError(t, <-p.ended)
				require.NoError(t, <-p.served)
				if network == "paced" {
					require.EqualValues(t, size, <-p.paced)
				}
			})
		}
	}
}

func abort(t *testing.T, c half) {
	require.NoError(t, c.(*net.TCPConn).SetLinger(0))
	require.NoError(t, c.Close())
}

// A connection that one end resets is reset at the other, not ended, so that nobody takes half of something for all of it;
// the code says which side it was.
func TestResetReachesTheOtherEndAsAReset(t *testing.T) {
	for _, network := range []string{"tcp", "paced"} {
		t.Run(network, func(t *testing.T) { resets(t, network) })
	}
}

func resets(t *testing.T, network string) {
	t.Run("backend", func(t *testing.T) {
		p := newPath(t, network)
		app, backend := p.connect()
		_, err := backend.Write([]byte("half"))
		require.NoError(t, err)
		_, err = io.ReadFull(app, make([]byte, 4))
		require.NoError(t, err)
		abort(t, backend)
		_, err = app.Read(make([]byte, 1))
		require.ErrorIs(t, err, syscall.ECONNRESET)
		require.ErrorIs(t, <-p.ended, errs.BackendBroken)
		require.ErrorIs(t, <-p.served, errs.BackendBroken)
	})
	t.Run("application", func(t *testing.T) {
		p := newPath(t, network)
		app, backend := p.connect()
		_, err := app.Write([]byte("half"))
		require.NoError(t, err)
		_, err = io.ReadFull(backend, make([]byte, 4))
		require.NoError(t, err)
		abort(t, app)
		_, err = backend.Read(make([]byte, 1))
		require.ErrorIs(t, err, syscall.ECONNRESET)
		require.ErrorIs(t, <-p.ended, errs.ConnectionBroken)
		require.ErrorIs(t, <-p.served, errs.ConnectionBroken)
	})
	t.Run("tunnel", func(t *testing.T) {
		p := newPath(t, network)
		app, backend := p.connect()
		p.tun.Close(errs.New(errs.TokenRevoked, "revoked"))
		for _, c := range []half{app, backend} {
			_, err := c.Read(make([]byte, 1))
			require.ErrorIs(t, err, syscall.ECONNRESET)
		}
		require.ErrorIs(t, <-p.ended, errs.TokenRevoked)
		require.ErrorIs(t, <-p.served, errs.TokenRevoked)
	})
}

// A backend that cannot be reached resets the application's connection.
func TestRefusedStreamResetsTheApplication(t *testing.T) {
	p := newPath(t, "tcp")
	require.NoError(t, p.backends.Close())
	app, err := net.Dial("tcp", p.local.Addr().String())
	require.NoError(t, err)
	defer app.Close()
	accepted, err := p.local.Accept()
	require.NoError(t, err)
	s, err := p.tun.Open(link.OpenRequest{Route: "git"})
	require.NoError(t, err)
	require.ErrorIs(t, relay.Pump(s, accepted.(relay.Conn)), errs.BackendUnreachable)
	_, err = app.Read(make([]byte, 1))
	require.ErrorIs(t, err, syscall.ECONNRESET)
}

// An application that takes nothing stops its own backend and nobody else; when it goes on, all bytes are there.
func TestStalledReaderDoesNotBlockTheLane(t *testing.T) {
	p := newPath(t, "tcp")
	stalled, source := p.connect()
	sums := make(chan [32]byte, 1)
	go func() {
		b := make([]byte, 40<<20) // above windows and the kernel's buffers
		_, _ = rand.NewChaCha8([32]byte{9}).Read(b)
		_, _ = source.Write(b)
		_ = source.CloseWrite()
		sums <- sha256.Sum256(b)
	}()
	for range 6 {
		app, backend := p.connect()
		var wg sync.WaitGroup
		wg.Go(func() {
			_, _ = io.Copy(backend, backend)
			_ = backend.CloseWrite()
		})
		sent := make(chan [32]byte, 1)
		go func() {
			sum, _ := produce(app, 3)
			sent <- sum
		}()
		require.NoError(t, app.SetReadDeadline(time.Now().Add(20*time.Second)))
		got, err := consume(app)
		require.NoError(t, err)
		require.Equal(t, <-sent, got)
		wg.Wait()
		require.NoError(t, <-p.ended)
	}
	require.Empty(t, sums, "the source is held back")
	got, err := consume(stalled)
	require.NoError(t, err)
	require.Equal(t, <-sums, got)
	require.NoError(t, stalled.CloseWrite())
	require.NoError(t, <-p.ended)
}

// duplex is a connection that is no socket, as an SSH channel or standard input and output.
type duplex struct {
	*io.PipeReader
	w      *io.PipeWriter
	closed chan struct{}
	once   sync.Once
	faulty bool
}

func (d *duplex) Read(p []byte) (int, error) {
	if d.faulty {
		panic("a fault in the connection")
	}
	return d.PipeReader.Read(p)
}

func (d *duplex) Write(p []byte) (int, error) { return d.w.Write(p) }
func (d *duplex) CloseWrite() error           { return d.w.Close() }
func (d *duplex) Close() error {
	d.once.Do(func() { close(d.closed) })
	return errors.Join(d.PipeReader.Close(), d.w.CloseWithError(io.ErrClosedPipe))
}

func duplexPair() (a, b *duplex) {
	r1, w1 := io.Pipe()
	r2, w2 := io.Pipe()
	return &duplex{PipeReader: r1, w: w2, closed: make(chan struct{})}, &duplex{PipeReader: r2, w: w1, closed: make(chan struct{})}
}

// What is no socket is carried too, with half-close, and is closed when the stream is reset, though a write blocks.
func TestConnectionsThatAreNoSockets(t *testing.T) {
	backend, far := duplexPair()
	streams := make(chan *link.Stream, 2)
	tun := tunnel(t, func(s *link.Stream) {
		s.Accept()
		streams <- s
		_ = relay.Pump(s, backend)
	})
	local, app := duplexPair()
	ended := make(chan error, 1)
	s, err := tun.Open(link.OpenRequest{Route: "git"})
	require.NoError(t, err)
	go func() { ended <- relay.Pump(s, local) }()
	sum := make(chan [32]byte, 1)
	go func() {
		b := make([]byte, size)
		_, _ = rand.NewChaCha8([32]byte{4}).Read(b)
		_, _ = app.Write(b)
		_ = app.CloseWrite()
		sum <- sha256.Sum256(b)
	}()
	got, err := consume(far)
	require.NoError(t, err)
	require.Equal(t, <-sum, got)
	_, err = far.Write([]byte("still open"))
	require.NoError(t, err)
	b := make([]byte, 10)
	_, err = io.ReadFull(app, b)
	require.NoError(t, err)
	require.Equal(t, "still open", string(b))

	gw := <-streams
	go func() { _, _ = far.Write(make([]byte, 1<<20)) }() // nobody reads it: the sidecar's sink blocks
	_, err = io.ReadFull(app, make([]byte, 1))
	require.NoError(t, err)
	gw.Reset(errs.New(errs.BackendBroken, "the backend broke"))
	require.ErrorIs(t, <-ended, errs.BackendBroken)
	<-local.closed
	<-backend.closed
}

// A fault in a connection ends its stream, with an error, and nothing else.
func TestPanicInAConnectionIsAnError(t *testing.T) {
	tun := tunnel(t, func(s *link.Stream) {
		s.Accept()
		_, _ = io.Copy(s, s)
		_ = s.CloseWrite()
	})
	faulty, _ := duplexPair()
	faulty.faulty = true
	s, err := tun.Open(link.OpenRequest{Route: "git"})
	require.NoError(t, err)
	require.ErrorIs(t, relay.Pump(s, faulty), errs.Panicked)
	<-faulty.closed
	require.NoError(t, tun.Err())
	s, err = tun.Open(link.OpenRequest{Route: "git"})
	require.NoError(t, err)
	_, err = s.Write([]byte("fine"))
	require.NoError(t, err)
	require.NoError(t, s.CloseWrite())
	b, err := io.ReadAll(s)
	require.NoError(t, err)
	require.Equal(t, "fine", string(b))
}

// A connection that says that it read nothing, without an end, is broken.
type idler struct{ *duplex }

func (idler) Read([]byte) (int, error) { return 0, nil }

func TestReadOfNothingIsNotAnEnd(t *testing.T) {
	tun := tunnel(t, func(s *link.Stream) { s.Accept(); _ = s.Wait() })
	d, _ := duplexPair()
	s, err := tun.Open(link.OpenRequest{Route: "git"})
	require.NoError(t, err)
	err = relay.Pump(s, idler{d})
	require.ErrorIs(t, err, errs.ConnectionBroken)
}
