package ws_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fasthttp/websocket"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/ws"
)

// echo sends each message back.
func echo(c *ws.Conn) {
	for {
		r, err := c.NextReader()
		if err != nil {
			return
		}
		b, err := io.ReadAll(r)
		if err != nil || c.Write(b, nil) != nil || c.Flush() != nil {
			return
		}
	}
}

func message(t *testing.T, c *ws.Conn) []byte {
	r, err := c.NextReader()
	require.NoError(t, err)
	b, err := io.ReadAll(r)
	require.NoError(t, err)
	return b
}

// foreign is a WebSocket client that is not ours.
func foreign(t *testing.T, u *upgradeServer) *websocket.Conn {
	d := websocket.Dialer{TLSClientConfig: u.tls, Subprotocols: []string{link.Subprotocol}}
	c, _, err := d.Dial(u.url, nil)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

// Whatever ends a connection, the other side reads the code, in both directions, and answers the close frame.
//
// Verifies: R6.7
func TestCloseCodesArriveInBothDirections(t *testing.T) {
	for _, secure := range []bool{false, true} {
		for _, code := range []errs.Code{errs.ShuttingDown, errs.ProtocolViolation, errs.RouteForbidden, errs.MessageTooBig, errs.Internal, errs.Draining, errs.BackendTimeout,
			errs.TokenExpired, errs.TokenRevoked, errs.TunnelUnknown, errs.Displaced, errs.TunnelLimit} {
			sent := errs.New(code, "because %s", strings.Repeat("ä", 100))
			wire, reason := errs.CloseFrame(sent)
			require.Equal(t, code.Info().Close, wire)
			require.LessOrEqual(t, len(reason), 123)

			// The gateway closes; a foreign client sees the numbers.
			u := serve(t, secure, func(c *ws.Conn) {
				c.Close(wire, reason)
				c.Drain()
			})
			var closed *websocket.CloseError
			_, _, err := foreign(t, u).ReadMessage()
			require.ErrorAs(t, err, &closed)
			require.Equal(t, wire, closed.Code)
			require.Equal(t, reason, closed.Text)

			// The sidecar closes; the gateway gets the error back.
			got := make(chan error, 1)
			u = serve(t, secure, func(c *ws.Conn) {
				_, err := c.NextReader()
				got <- err
			})
			c := u.dial(t)
			c.Close(wire, reason)
			require.ErrorIs(t, <-got, code)
			_, err = c.NextReader()
			require.ErrorIs(t, err, errs.Canceled, "the close frame is answered with 1000")
			c.Abort()
			c.Wait()
		}
	}
}

// Codes of others, without a reason of ours, are understood by their number.
func TestCloseCodesOfOthers(t *testing.T) {
	for wire, code := range map[int]errs.Code{1000: errs.Canceled, 1001: errs.LaneLost, 1002: errs.ProtocolViolation, 1008: errs.RouteForbidden, 1009: errs.MessageTooBig, 1011: errs.LaneLost} {
		got := make(chan error, 1)
		u := serve(t, false, func(c *ws.Conn) {
			_, err := c.NextReader()
			got <- err
		})
		c := foreign(t, u)
		require.NoError(t, c.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(wire, "bye"), time.Now().Add(time.Second)))
		require.ErrorIs(t, <-got, code, "%d", wire)
	}
	got := make(chan error, 1)
	u := serve(t, false, func(c *ws.Conn) {
		_, err := c.NextReader()
		got <- err
	})
	c := foreign(t, u)
	require.NoError(t, c.NetConn().Close())
	require.ErrorIs(t, <-got, errs.LaneLost, "cut")
}

// refusing reads one message and closes with whatever was wrong with it, as the handshake of the gateway does.
func refusing(c *ws.Conn) {
	r, err := c.NextReader()
	if err == nil {
		_, err = io.Copy(io.Discard, r)
	}
	c.Close(errs.CloseFrame(err))
	c.Drain()
}

// A message over the limit is refused with 1009, one that is text or no WebSocket frame at all with 1002, with a reason
// that a person can read.
//
// Verifies: R6.6, R6.7
func TestWrongMessagesAreRefusedWithTheirCode(t *testing.T) {
	for name, c := range map[string]struct {
		send  func(c *websocket.Conn) error
		close int
		text  string
	}{
		"too big": {func(c *websocket.Conn) error {
			return c.WriteMessage(websocket.BinaryMessage, make([]byte, maxMessage+1))
		},
			errs.CloseTooBig, "FL-P502 a message over 1048576 bytes"},
		"too big in fragments": {func(c *websocket.Conn) error {
			w, err := c.NextWriter(websocket.BinaryMessage)
			for i := 0; i < 20 && err == nil; i++ {
				_, err = w.Write(make([]byte, 100_000)) // larger than the buffer: leaves in pieces
			}
			return errors.Join(err, w.Close())
		}, errs.CloseTooBig, "FL-P502 a message over 1048576 bytes"},
		"text":        {func(c *websocket.Conn) error { return c.WriteMessage(websocket.TextMessage, []byte("hello")) }, errs.CloseProtocol, "FL-P501 a text message"},
		"wild opcode": {func(c *websocket.Conn) error { _, err := c.NetConn().Write([]byte{0x8F, 0x80, 0, 0, 0, 0}); return err }, errs.CloseProtocol, "bad opcode"},
		"not masked":  {func(c *websocket.Conn) error { _, err := c.NetConn().Write([]byte{0x82, 0x01, 'x'}); return err }, errs.CloseProtocol, "MASK"},
		"just allowed": {func(c *websocket.Conn) error {
			return c.WriteMessage(websocket.BinaryMessage, make([]byte, maxMessage))
		}, errs.CloseNormal, "done"},
	} {
		t.Run(name, func(t *testing.T) {
			conn := foreign(t, serve(t, false, refusing))
			_ = c.send(conn)
			var closed *websocket.CloseError
			_, _, err := conn.ReadMessage()
			require.ErrorAs(t, err, &closed)
			require.Equal(t, c.close, closed.Code)
			require.Contains(t, closed.Text, c.text)
		})
	}
}

// The same on a lane: the tunnel ends with the code, and the close frame says so.
//
// Verifies: R6.6
func TestHugeMessageEndsTheTunnel(t *testing.T) {
	ended := make(chan error, 1)
	u := serve(t, true, func(c *ws.Conn) {
		hs, err := link.Greet(context.Background(), c)
		if err != nil {
			ended <- err
			return
		}
		tun, lane, err := hs.Accept(link.Config{})
		if err != nil {
			ended <- err
			return
		}
		_ = lane.Run()
		ended <- tun.Err()
		tun.Wait()
	})
	c := u.dial(t)
	tun, _, err := link.Connect(context.Background(), c, link.Config{})
	require.NoError(t, err)
	huge := make([]byte, maxMessage+1)
	huge[0] = 0x80 // a type that is ignored: only its size is wrong
	require.NoError(t, c.Write(huge, nil))
	_ = c.Flush() // the gateway may close before it has all
	var code error
	for code == nil {
		_, code = c.NextReader()
	}
	require.ErrorIs(t, code, errs.MessageTooBig)
	require.ErrorIs(t, <-ended, errs.MessageTooBig)
	c.Abort()
	tun.Close(nil)
}

// A ping of the WebSocket is answered while data flows, and one that comes while the writer is blocked neither stalls the
// reader nor is forgotten.
func TestPingsDoNotStallTheReader(t *testing.T) {
	blocked, read := make(chan struct{}), make(chan int, 1)
	u := serve(t, false, func(c *ws.Conn) {
		wrote := make(chan struct{})
		go func() {
			defer close(wrote)
			for range 400 { // far more than the kernel takes
				if c.Write(make([]byte, 128<<10), nil) != nil || c.Flush() != nil {
					return
				}
			}
		}()
		<-blocked
		n := 0
		for n < 50 {
			r, err := c.NextReader()
			if err != nil {
				break
			}
			_, _ = io.Copy(io.Discard, r)
			n++
		}
		read <- n
		_, _ = c.NextReader()
		c.Abort()
		<-wrote
		c.Wait()
	})
	c := foreign(t, u)
	var pongs []string
	enough := false
	c.SetPongHandler(func(data string) error {
		pongs = append(pongs, data)
		if enough {
			return c.SetReadDeadline(time.Now())
		}
		return nil
	})
	for range 50 {
		require.NoError(t, c.WriteControl(websocket.PingMessage, []byte("alive?"), time.Now().Add(time.Second)))
		require.NoError(t, c.WriteMessage(websocket.BinaryMessage, []byte("x")))
	}
	close(blocked)
	require.Equal(t, 50, <-read, "nothing is read from the gateway, whose writer is blocked: it goes on reading")
	for range 400 {
		_, r, err := c.NextReader()
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, r)
		require.NoError(t, err)
	}
	if enough = true; len(pongs) == 0 {
		require.NoError(t, c.WriteControl(websocket.PingMessage, []byte("alive?"), time.Now().Add(time.Second)))
		require.NoError(t, c.SetReadDeadline(time.Now().Add(5*time.Second)))
		_, _, err := c.NextReader()
		require.Error(t, err)
	}
	require.NotEmpty(t, pongs)
	require.Equal(t, "alive?", pongs[0])
}

// A close does not wait for a peer that takes nothing, and unblocks the writer.
func TestCloseDoesNotWaitForAStalledPeer(t *testing.T) {
	closed := make(chan time.Duration, 1)
	var count atomic.Int64
	u := serve(t, false, func(c *ws.Conn) {
		wrote := make(chan error, 1)
		go func() {
			for {
				count.Add(1)
				err := c.Write(make([]byte, 128<<10), nil)
				if err == nil {
					err = c.Flush()
				}
				if err != nil {
					wrote <- err
					return
				}
			}
		}()
		_, _ = c.NextReader() // the client's only message
		start := time.Now()
		c.Close(errs.CloseRestart, "restarting")
		<-wrote
		closed <- time.Since(start)
		c.Abort()
	})
	c := foreign(t, u)
	before := int64(0)
	require.Eventually(t, func() bool { // the writer is blocked
		n := count.Load()
		still := n == before && n > 1
		before = n
		return still
	}, 10*time.Second, 50*time.Millisecond)
	require.NoError(t, c.WriteMessage(websocket.BinaryMessage, []byte("x")))
	require.Less(t, <-closed, 4*time.Second)
}

// A plain byte stream reads across messages and ends with a normal close only.
func TestBytesAreAStreamOverMessages(t *testing.T) {
	u := serve(t, false, func(c *ws.Conn) {
		b := ws.NewBytes(c)
		for _, s := range []string{"one ", "", "two ", "three"} {
			_, _ = io.WriteString(b, s)
		}
		c.Close(errs.CloseNormal, "done")
		c.Drain()
	})
	got, err := io.ReadAll(ws.NewBytes(u.dial(t)))
	require.NoError(t, err)
	require.Equal(t, "one two three", string(got))

	u = serve(t, false, func(c *ws.Conn) {
		_, _ = ws.NewBytes(c).Write([]byte("half"))
		c.Close(errs.CloseFrame(errs.New(errs.BackendBroken, "the backend broke")))
		c.Drain()
	})
	got, err = io.ReadAll(ws.NewBytes(u.dial(t)))
	require.ErrorIs(t, err, errs.BackendBroken)
	require.Equal(t, "half", string(got))
}

// A WebSocket whose connection is not corked is refused, not used slowly.
func TestConnectionMustBeCorked(t *testing.T) {
	u := serve(t, false, echo)
	_, err := ws.New(foreign(t, u), maxMessage)
	require.ErrorIs(t, err, errs.Internal)
}

// Tune and RemoteAddr work on what is dialled; Tune leaves what is no TCP connection alone.
func TestTuneAndAddresses(t *testing.T) {
	u := serve(t, true, echo)
	tuned := 0
	d := ws.Dialer{TLS: u.tls, MaxMessage: maxMessage, Tune: func(c net.Conn) { tuned++; ws.Tune(c) }}
	c, err := d.Dial(context.Background(), u.url, http.Header{"X-Test": {"1"}}, link.Subprotocol)
	require.NoError(t, err)
	require.Equal(t, 1, tuned)
	require.Equal(t, u.addr, c.RemoteAddr().String())
	require.NotZero(t, c.Received())
	c.Abort()
	near, far := net.Pipe()
	ws.Tune(near)
	near.Close()
	far.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	tl := &ws.Listener{Listener: l, Tune: func(net.Conn) { tuned++ }}
	peer, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer peer.Close()
	accepted, err := tl.Accept()
	require.NoError(t, err)
	require.IsType(t, &ws.Cork{}, accepted)
	require.Equal(t, 2, tuned)
	accepted.Close()
}
