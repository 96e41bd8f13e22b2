package e2e

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fasthttp/websocket"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/ws"
)

// lane is a WebSocket to a gateway's /v1/tunnel, made without a sidecar, that remembers the close frame.
type lane struct {
	*ws.Conn
	mu     sync.Mutex
	closed *websocket.CloseError // guarded by mu; nil until the gateway has sent one
	ended  chan error            // gets what Run returned
}

// closeFrame is what the gateway closed with; nil while it has not.
func (l *lane) closeFrame() *websocket.CloseError {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed
}

// dialLane upgrades with a token. An answer other than an upgrade is an error.
func (w *world) dialLane(token string) (*lane, error) {
	w.t.Helper()
	dialer := websocket.Dialer{TLSClientConfig: w.clientTLS(), HandshakeTimeout: patience, Subprotocols: []string{link.Subprotocol},
		ReadBufferSize: ws.ReadBufferSize, WriteBufferSize: ws.WriteBufferSize,
		NetDialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return ws.NewCork(c), nil
		}}
	c, _, err := dialer.DialContext(w.t.Context(), w.endpoint(w.gateway.address)+"v1/tunnel", http.Header{"Authorization": {"Bearer " + token}})
	if err != nil {
		return nil, err
	}
	conn, err := ws.New(c, 1<<20)
	require.NoError(w.t, err)
	l := &lane{Conn: conn, ended: make(chan error, 1)}
	c.SetCloseHandler(func(code int, text string) error {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.closed = &websocket.CloseError{Code: code, Text: text}
		return nil
	})
	w.t.Cleanup(func() { l.Abort(); l.Wait() })
	return l, nil
}

// connectLink makes a tunnel, as a sidecar would.
func (w *world) connectLink(token string) (*link.Tunnel, *lane) {
	w.t.Helper()
	conn, err := w.dialLane(token)
	require.NoError(w.t, err)
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	tunnel, running, err := link.Connect(ctx, conn, link.Config{})
	require.NoError(w.t, err)
	conn.run(running)
	w.t.Cleanup(func() { tunnel.Close(nil); tunnel.Wait() })
	return tunnel, conn
}

// resumeLink tries to carry a tunnel on, and returns how the gateway refused.
func (w *world) resumeLink(tunnel *link.Tunnel, token string) (*lane, error) {
	w.t.Helper()
	conn, err := w.dialLane(token)
	require.NoError(w.t, err)
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	running, err := tunnel.Resume(ctx, conn)
	if err != nil {
		conn.Close(errs.CloseFrame(err))
		conn.Abort()
		return conn, err
	}
	conn.run(running)
	return conn, nil
}

func (l *lane) run(running *link.Lane) {
	go func() { l.ended <- running.Run() }()
}

// openLink opens a stream and waits until its backend is connected, or refused.
func openLink(t *testing.T, tunnel *link.Tunnel, route string) (*link.Stream, error) {
	t.Helper()
	s, err := tunnel.Open(link.OpenRequest{Route: route, Peer: "test"})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return s, s.WaitOpened(ctx)
}

// echoes asserts that a stream to an echo server works.
func echoes(t *testing.T, s io.ReadWriter, text string) {
	t.Helper()
	_, err := io.WriteString(s, text)
	require.NoError(t, err)
	answer := make([]byte, len(text))
	_, err = io.ReadFull(s, answer)
	require.NoError(t, err)
	require.Equal(t, text, string(answer))
}

// refused connects to a listener and asserts that the connection is broken by the sidecar without a byte. It returns how
// long that took.
func (w *world) refused(listener string) time.Duration {
	w.t.Helper()
	begin := time.Now()
	c, err := net.DialTimeout("tcp", w.sidecar.addr(w.t, listener), patience)
	if errors.Is(err, syscall.ECONNRESET) {
		return time.Since(begin) // broken before connecting had returned
	}
	require.NoError(w.t, err)
	defer c.Close()
	require.NoError(w.t, c.SetDeadline(time.Now().Add(patience)))
	raw, err := io.ReadAll(c)
	assert.ErrorIs(w.t, err, syscall.ECONNRESET, "an application must not take a refusal for an end")
	assert.Empty(w.t, raw)
	return time.Since(begin)
}
