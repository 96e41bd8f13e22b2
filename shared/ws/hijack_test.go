package ws_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fasthttp/websocket"
	"github.com/stretchr/testify/require"
	"github.com/valyala/fasthttp"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/ws"
)

// hijacking is a fasthttp server as the gateway runs it, with a request handler of the test's.
func hijacking(t *testing.T, handler fasthttp.RequestHandler) (addr string) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	srv := &fasthttp.Server{KeepHijackedConns: true, Handler: handler}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(&ws.Listener{Listener: tcp})
	}()
	t.Cleanup(func() {
		_ = tcp.Close() // Shutdown knows it only once Serve has begun
		_ = srv.Shutdown()
		<-done
	})
	return tcp.Addr().String()
}

func upgrader() *websocket.FastHTTPUpgrader {
	return &websocket.FastHTTPUpgrader{ReadBufferSize: ws.ReadBufferSize, WriteBufferSize: ws.WriteBufferSize, WriteBufferPool: ws.WriteBuffers, Subprotocols: []string{link.Subprotocol}}
}

// A goroutine that still writes after its hijack handler has returned writes to its own client, not to one that came
// later; and Close really closes.
func TestStrayWriteAfterTheHandlerDoesNotReachAnotherClient(t *testing.T) {
	conns := make(chan *ws.Conn, 100)
	up := upgrader()
	addr := hijacking(t, func(ctx *fasthttp.RequestCtx) {
		_ = up.Upgrade(ctx, func(c *websocket.Conn) {
			conn, err := ws.New(c, maxMessage)
			if err == nil {
				conns <- conn // and return at once
			}
		})
	})
	u := &upgradeServer{url: "ws://" + addr + "/"}
	first := foreign(t, u)
	stray := <-conns
	var others []*websocket.Conn
	var kept []*ws.Conn // a connection that nobody holds is closed by the garbage collector
	for range 20 {      // connections for which fasthttp may take used wrappers
		others = append(others, foreign(t, u))
		kept = append(kept, <-conns)
	}
	require.NoError(t, stray.Write([]byte("for the first client only"), nil))
	require.NoError(t, stray.Flush())
	_, b, err := first.ReadMessage()
	require.NoError(t, err)
	require.Equal(t, "for the first client only", string(b))
	stray.Abort()
	_, _, err = first.ReadMessage()
	require.Error(t, err)
	require.False(t, websocket.IsCloseError(err, errs.CloseNormal), "the connection itself is closed")
	for _, c := range others {
		require.NoError(t, c.SetReadDeadline(time.Now().Add(time.Millisecond)))
		_, _, err := c.ReadMessage()
		var timeout net.Error
		require.ErrorAs(t, err, &timeout, "nothing came for the others")
		require.True(t, timeout.Timeout())
	}
	for _, c := range kept {
		c.Abort()
	}
}

// What is copied out of the request before the upgrade is what the request said, however many requests follow in the same
// memory.
func TestStringsOfTheRequestAreCopiedBeforeTheUpgrade(t *testing.T) {
	type kept struct{ path, header string }
	got, goOn := make(chan kept, 1), make(chan struct{})
	up := upgrader()
	addr := hijacking(t, func(ctx *fasthttp.RequestCtx) {
		k := kept{string(ctx.Path()), string(ctx.Request.Header.Peek("X-Name"))}
		if k.header != "first" {
			return
		}
		_ = up.Upgrade(ctx, func(c *websocket.Conn) {
			defer c.Close()
			<-goOn
			got <- k
		})
	})
	c, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer c.Close()
	upgradeRequest(t, c, "/v1/first", "X-Name: first\r\n")
	_, err = bufio.NewReader(c).ReadString('\n')
	require.NoError(t, err)
	for i := range 200 {
		other, err := net.Dial("tcp", addr)
		require.NoError(t, err)
		_, err = fmt.Fprintf(other, "GET /v1/%s HTTP/1.1\r\nHost: x\r\nX-Name: %s\r\nConnection: close\r\n\r\n", strings.Repeat("z", 1+i%7), strings.Repeat("y", 5))
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, other)
		require.NoError(t, err)
		other.Close()
	}
	close(goOn)
	require.Equal(t, kept{"/v1/first", "first"}, <-got)
}

func upgradeRequest(t *testing.T, c net.Conn, path, extra string) {
	_, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n%s\r\n", path, extra)
	require.NoError(t, err)
}

// Upgrade may succeed though its handler never runs, here because the request also asks for the connection to be closed:
// what the handler is to give back must be taken inside it.
func TestUpgradeSucceedsThoughItsHandlerNeverRuns(t *testing.T) {
	var upgraded, slots atomic.Int64
	ran := make(chan struct{}, 10)
	up := upgrader()
	addr := hijacking(t, func(ctx *fasthttp.RequestCtx) {
		err := up.Upgrade(ctx, func(c *websocket.Conn) {
			slots.Add(1)
			defer slots.Add(-1)
			defer c.Close()
			ran <- struct{}{}
		})
		if err == nil {
			upgraded.Add(1)
		}
		ctx.SetConnectionClose() // as fasthttp itself does for such a request, and while it shuts down
	})
	for range 5 {
		c, err := net.Dial("tcp", addr)
		require.NoError(t, err)
		upgradeRequest(t, c, "/", "")
		_, err = io.Copy(io.Discard, c)
		require.NoError(t, err)
		c.Close()
	}
	require.Equal(t, int64(5), upgraded.Load())
	require.Empty(t, ran, "no handler ran")
	require.Zero(t, slots.Load())
}
