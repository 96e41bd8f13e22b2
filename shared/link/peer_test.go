package link

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

// peer is one end of a lane played by a test, frame by frame.
type peer struct {
	t    testing.TB
	conn Conn
	mu   sync.Mutex // a test may write while another of its goroutines answers pings
}

func (p *peer) send(h header, payload []byte) {
	p.t.Helper()
	require.NoError(p.t, p.try(h, payload))
}

// try is send to an end that may be gone.
func (p *peer) try(h header, payload []byte) error {
	var head [headerSize]byte
	h.put(&head)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.conn.Write(head[:], payload); err != nil {
		return err
	}
	return p.conn.Flush()
}

func (p *peer) recv() (header, []byte, error) {
	r, err := p.conn.NextReader()
	if err != nil {
		return header{}, nil, err
	}
	m, err := io.ReadAll(r)
	require.NoError(p.t, err)
	buf := make([]byte, MaxPayload)
	h, n, err := readMessage(bytes.NewReader(m), buf)
	require.NoError(p.t, err)
	return h, buf[:n], nil
}

// expect returns the next frame other than PING and PONG, which must be of the given type.
func (p *peer) expect(kind frameType) (header, []byte) {
	p.t.Helper()
	for {
		h, payload, err := p.recv()
		require.NoError(p.t, err, "waiting for %v", kind)
		if h.kind == typePing || h.kind == typePong {
			continue
		}
		require.Equal(p.t, kind, h.kind, "frame %+v %q", h, payload)
		return h, payload
	}
}

// until returns the first frame of the given type.
func (p *peer) until(kind frameType) (header, []byte) {
	p.t.Helper()
	for {
		h, payload, err := p.recv()
		require.NoError(p.t, err, "waiting for %v", kind)
		if h.kind == kind {
			return h, payload
		}
	}
}

// end reads until the connection ends, and returns why.
func (p *peer) end() error {
	for {
		if _, _, err := p.recv(); err != nil {
			return err
		}
	}
}

// played is a real tunnel whose other end is played.
type played struct {
	*peer
	tun  *Tunnel
	lane *Lane
	ran  chan error // of Lane.Run
	key  [keySize]byte
}

func run(l *Lane) chan error {
	ran := make(chan error, 1)
	go func() { ran <- l.Run() }()
	return ran
}

var testLimits = limits{maxMessage: 1 << 20, window: defaultWindow}

// playSidecar makes a gateway's tunnel whose sidecar is played.
func playSidecar(t testing.TB, cfg Config) *played {
	return playSidecarSaying(t, cfg, hello{version: Version, limits: testLimits})
}

// playSidecarSaying is playSidecar with a HELLO of the test's own.
func playSidecarSaying(t testing.TB, cfg Config, h hello) *played {
	pair := newMemPair()
	p := &played{peer: &peer{t: t, conn: pair.client}}
	type made struct {
		tun  *Tunnel
		lane *Lane
		err  error
	}
	done := make(chan made, 1)
	go func() {
		hs, err := Greet(context.Background(), pair.server)
		if err != nil {
			done <- made{err: err}
			return
		}
		tun, lane, err := hs.Accept(cfg)
		done <- made{tun, lane, err}
	}()
	_, nonce := p.expect(typeChallenge)
	require.Len(t, nonce, nonceSize)
	p.send(header{kind: typeHello}, h.append(nil))
	_, b := p.expect(typeWelcome)
	w, err := parseWelcome(b)
	require.NoError(t, err)
	m := <-done
	require.NoError(t, m.err)
	p.tun, p.lane, p.key = m.tun, m.lane, w.key
	p.ran = run(m.lane)
	return p
}

// playGateway makes a sidecar's tunnel whose gateway is played.
func playGateway(t testing.TB, cfg Config) *played {
	return playGatewayOver(t, cfg, func(c Conn) Conn { return c })
}

// playGatewayOver is playGateway with a connection of the sidecar's that the test changes.
func playGatewayOver(t testing.TB, cfg Config, wrap func(Conn) Conn) *played {
	pair := newMemPair()
	p := &played{peer: &peer{t: t, conn: pair.server}}
	done := make(chan error, 1)
	go func() {
		var err error
		p.tun, p.lane, err = Connect(context.Background(), wrap(pair.client), cfg)
		done <- err
	}()
	p.send(header{kind: typeChallenge}, make([]byte, nonceSize))
	p.expect(typeHello)
	p.send(header{kind: typeWelcome}, welcome{version: Version, limits: testLimits, tunnel: ID{1}, key: [keySize]byte{2}, replica: "gw-0"}.append(nil))
	require.NoError(t, <-done)
	p.ran = run(p.lane)
	return p
}

// resume plays a sidecar's resume of the tunnel, up to the gateway's decision.
func (p *played) resume(h hello, key [keySize]byte) (*peer, *Lane, error) {
	pair := newMemPair()
	next := &peer{t: p.t, conn: pair.client}
	type made struct {
		lane *Lane
		err  error
	}
	done := make(chan made, 1)
	go func() {
		hs, err := Greet(context.Background(), pair.server)
		if err != nil {
			done <- made{err: err}
			return
		}
		lane, err := hs.Resume(p.tun)
		if err != nil {
			pair.server.Close(errs.CloseFrame(err))
		}
		done <- made{lane, err}
	}()
	_, nonce := next.expect(typeChallenge)
	h.version, h.limits = Version, testLimits
	h.proof = proof(key, h.tunnel, h.epoch, nonce)
	next.send(header{kind: typeHello}, h.append(nil))
	m := <-done
	return next, m.lane, m.err
}

// bubble runs f on a clock of its own and checks that no buffer stays behind.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		before := held.Load()
		f(t)
		synctest.Wait()
		require.Equal(t, before, held.Load(), "buffers left behind")
	})
}

// stop ends the tunnel from this side and waits for everything.
func (p *played) stop() {
	p.tun.Close(nil)
	p.conn.Abort()
	<-p.ran
	p.tun.Wait()
}

// drained reads a stream to its end and closes it.
func drained(s *Stream) {
	s.Accept()
	_, _ = io.Copy(io.Discard, s)
	_ = s.CloseWrite()
	_ = s.Wait()
}

// pause is the clock of the bubble.
func pause(d time.Duration) { <-time.After(d) }

func openPayload(route string) []byte { return OpenRequest{Route: route}.append(nil) }

// isCode asserts on the code of an error and returns the error.
func isCode(t testing.TB, code errs.Code, err error) {
	t.Helper()
	require.True(t, errors.Is(err, code), "want %v, got %v", code, err)
}
