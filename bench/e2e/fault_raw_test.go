package e2e

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fasthttp/websocket"
	"github.com/stretchr/testify/require"

	"fairlead/shared/link"
)

// rawLane is a WebSocket to the gateway without any of the sidecar's code around it, so that tests see and send what the
// sidecar hides or would never send. It is also a link.Conn, for tests that want a tunnel over it.
type rawLane struct {
	ws       *websocket.Conn
	received atomic.Uint64              // messages
	told     chan *websocket.CloseError // takes the peer's close frame that NextReader meets, if there is room
}

var _ link.Conn = (*rawLane)(nil)

// dialRaw upgrades with a token for a tenant that is valid for ttl.
func (w *world) dialRaw(tenant string, ttl time.Duration) *rawLane {
	w.t.Helper()
	lane, resp, err := w.tryRaw(w.token(tenant, ttl))
	require.NoError(w.t, err, "%v", resp)
	return lane
}

func (w *world) tryRaw(token string) (*rawLane, *http.Response, error) {
	w.t.Helper()
	d := websocket.Dialer{TLSClientConfig: &tls.Config{RootCAs: w.ca.Pool()}, Subprotocols: []string{link.Subprotocol}, HandshakeTimeout: patience,
		ReadBufferSize: 128 << 10, WriteBufferSize: 128 << 10}
	ws, resp, err := d.DialContext(w.t.Context(), w.endpoint(w.proxy.Addr())+"v1/tunnel", http.Header{"Authorization": {"Bearer " + token}})
	if err != nil {
		return nil, resp, err
	}
	w.t.Cleanup(func() { _ = ws.Close() }) // most tests have closed it
	return &rawLane{ws: ws}, resp, ws.SetReadDeadline(time.Now().Add(2 * patience))
}

// Kinds of frames; PROTOCOL.md has them all.
const (
	frameChallenge = 0x01
	frameHello     = 0x02
	frameWelcome   = 0x03
	frameSync      = 0x04
	frameData      = 0x12
	framePing      = 0x20
	framePong      = 0x21
	frameGoAway    = 0x23

	frameHeader = 16
	helloSize   = 2 + 4 + 4 + 16 + 8 + 32
)

// hello makes a HELLO; a zero tunnel asks for a new one.
func hello(version uint16, tunnel link.ID, epoch uint64) []byte {
	f := make([]byte, frameHeader, frameHeader+helloSize)
	f[0] = frameHello
	f = binary.BigEndian.AppendUint16(f, version)
	f = binary.BigEndian.AppendUint32(f, 1<<20)
	f = binary.BigEndian.AppendUint32(f, 256<<10)
	f = append(f, tunnel[:]...)
	f = binary.BigEndian.AppendUint64(f, epoch)
	return append(f, make([]byte, 32)...)
}

// send writes one binary message.
func (r *rawLane) send(t *testing.T, message []byte) {
	t.Helper()
	require.NoError(t, r.ws.WriteMessage(websocket.BinaryMessage, message))
}

// next reads one message, which must be a frame of this kind.
func (r *rawLane) next(t *testing.T, kind byte) []byte {
	t.Helper()
	_, m, err := r.ws.ReadMessage()
	require.NoError(t, err)
	require.Equal(t, kind, m[0], "%x", m[:frameHeader])
	return m[frameHeader:]
}

// skipTo reads to a frame of this kind.
func (r *rawLane) skipTo(t *testing.T, kind byte) []byte {
	t.Helper()
	for {
		_, m, err := r.ws.ReadMessage()
		require.NoError(t, err)
		if m[0] == kind {
			return m[frameHeader:]
		}
	}
}

// greet makes a new tunnel and returns its id and its resume key.
func (r *rawLane) greet(t *testing.T) (id link.ID, key []byte) {
	t.Helper()
	r.next(t, frameChallenge)
	r.send(t, hello(link.Version, link.ID{}, 0))
	welcome := r.next(t, frameWelcome)[2+4+4:]
	return link.ID(welcome[:16]), welcome[16:48]
}

// resume carries a tunnel on, with a proof made from its key.
func (r *rawLane) resume(t *testing.T, id link.ID, key []byte, epoch uint64) {
	t.Helper()
	h := hello(link.Version, id, epoch)
	mac := hmac.New(sha256.New, key)
	_, _ = mac.Write([]byte("fairlead.link.v1 resume\x00")) // never fails
	_, _ = mac.Write(h[len(h)-32-8-16 : len(h)-32])         // id and epoch
	_, _ = mac.Write(r.next(t, frameChallenge))
	r.send(t, mac.Sum(h[:len(h)-32]))
	r.next(t, frameWelcome)
}

// closed reads to the peer's close frame.
func (r *rawLane) closed(t *testing.T) *websocket.CloseError {
	t.Helper()
	for {
		_, _, err := r.ws.ReadMessage()
		if err == nil {
			continue
		}
		var closed *websocket.CloseError
		require.ErrorAs(t, err, &closed)
		return closed
	}
}

// NextReader implements link.Conn.
func (r *rawLane) NextReader() (io.Reader, error) {
	_, reader, err := r.ws.NextReader()
	r.received.Add(1)
	var closed *websocket.CloseError
	if errors.As(err, &closed) {
		select {
		case r.told <- closed:
		default:
		}
	}
	return reader, err
}

// Write implements link.Conn.
func (r *rawLane) Write(head, payload []byte) error {
	w, err := r.ws.NextWriter(websocket.BinaryMessage)
	if err != nil {
		return err
	}
	if _, err := w.Write(head); err != nil {
		return err
	}
	if _, err := w.Write(payload); err != nil {
		return err
	}
	return w.Close()
}

// Flush implements link.Conn; nothing is buffered.
func (r *rawLane) Flush() error { return nil }

// Buffered implements link.Conn.
func (r *rawLane) Buffered() int { return 0 }

// Close implements link.Conn.
func (r *rawLane) Close(code int, reason string) {
	_ = r.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, reason), time.Now().Add(time.Second)) // the peer may be gone
}

// Drain implements link.Conn.
func (r *rawLane) Drain() {}

// Abort implements link.Conn.
func (r *rawLane) Abort() { _ = r.ws.Close() }

// Wait implements link.Conn.
func (r *rawLane) Wait() {}

// Received implements link.Conn.
func (r *rawLane) Received() uint64 { return r.received.Load() }

// rawTunnel makes a tunnel over the lane and runs it. The lane's end, of which it returns the close frame, is to be waited
// for by the test that causes it.
func (r *rawLane) rawTunnel(t *testing.T, cfg link.Config) (*link.Tunnel, <-chan error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tun, lane, err := link.Connect(ctx, r, cfg)
	require.NoError(t, err)
	ended := make(chan error, 1)
	ran := make(chan struct{})
	go func() {
		defer close(ran)
		ended <- lane.Run()
	}()
	t.Cleanup(func() {
		tun.Close(nil)
		<-ran
		tun.Wait()
	})
	return tun, ended
}
